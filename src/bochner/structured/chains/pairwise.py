"""Marginals of neighbouring steps, never laid out: each is diag(left) K diag(right) / Z.

    p(x_t = x, x_{t+1} = y) = alpha_t(x) K_t(x, y) w_{t+1}(y) beta_{t+1}(y) / Z

For low-rank K a row, a product with a vector and an expectation cost O(X m), as a step of the recursion.

Reference:  docs/theory.md 15.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bochner.structured.arguments import check_possible
from bochner.structured.chains.messages import Messages, both_messages
from bochner.structured.edges.transitions import Transitions
from bochner.structured.semirings import LogSum, Message, Semiring, Sum

if TYPE_CHECKING:
    from bochner.structured.chains.chain import Chain

_ELEMENTS = 1 << 22  # of vectors that are passed through an edge together: 16 MB in float32


class Pairwise:
    """The joint marginals of steps (edge, edge + 1) of a chain, constants to autograd.

    Shapes:     edges are 0 .. T-2; vectors and functions of states have X as a dimension; results have
                the chain's batch [*b]. Where an edge lies beyond the length of a sequence they are 0.
    Cost:       the messages once, O(T) products with the transitions and O(T X) memory, kept.
    Raises:     ValueError if no path of some sequence is allowed, IndexError for an edge that is none.
    Example:
        >>> from bochner.structured import LowRankChain
        >>> left, right = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
        >>> pair = LowRankChain(left, right, torch.zeros(3, 2)).pairwise
        >>> pair.dense(0)
        tensor([[0.0128, 0.2562],
                [0.0347, 0.6964]])
        >>> pair.row(0, torch.tensor(1))
        tensor([0.0347, 0.6964])
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    @cached_property
    def _parts(self) -> tuple[Transitions, Tensor, Tensor, Messages]:
        transitions, unaries, lengths = self._chain.flat()
        bare = transitions.with_tensors([t.detach() for t in transitions.tensors()])
        messages = both_messages(bare, unaries.detach(), lengths)
        check_possible(messages.log_partition)
        return bare, unaries.detach(), lengths, messages

    def _sides(self, edge: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log left, log right [N, X], the logarithm [N] that is to be added, and which exist [N]."""
        if not 0 <= edge < self._chain.num_steps - 1:
            raise IndexError(
                f"edge={edge} of a chain of {self._chain.num_steps} steps; edges are 0 to"
                f" {self._chain.num_steps - 2}: edge t joins the steps t and t+1."
            )
        _, unaries, lengths, m = self._parts
        rest = m.alpha_scale[:, edge] + m.beta_scale[:, edge + 1] - m.log_partition
        right = unaries[:, edge + 1] + m.beta[:, edge + 1]
        there = lengths > edge + 1
        return m.alpha[:, edge], torch.where(there.unsqueeze(-1), right, 0.0), rest, there

    # -- queries --------------------------------------------------------------------------------------
    @torch.no_grad()
    def row(self, edge: int, states: Tensor) -> Tensor:
        """p(x_edge = states, x_{edge+1} = .): integers [*s, *b] -> [*s, *b, X]."""
        left, right, rest, there = self._sides(edge)
        batch, size = self._chain.batch_shape, self._chain.num_states
        if not isinstance(states, Tensor) or states.is_floating_point():
            got = states.dtype if isinstance(states, Tensor) else type(states).__name__
            raise TypeError(f"states must be a torch.Tensor of integers, got {got}.")
        if states.numel() and not 0 <= int(states.min()) <= int(states.max()) < size:
            raise ValueError(
                f"states holds values from {int(states.min())} to {int(states.max())}; expected"
                f" 0..{size - 1}."
            )
        states = states.long()
        chosen = states.expand(torch.broadcast_shapes(states.shape, batch)).reshape(-1, len(left))
        elements = torch.arange(len(left), device=left.device).expand(chosen.shape)
        logs = self._parts[0].log_rows(edge, chosen.reshape(-1), elements.reshape(-1))
        logs = logs.view(*chosen.shape, -1) + right + left.gather(-1, chosen.T).T.unsqueeze(-1)
        shift = torch.where(there, rest, -torch.inf).to(logs.dtype)
        rows = torch.exp(logs + shift.unsqueeze(-1))
        return rows.view(*states.shape[: max(0, states.ndim - len(batch))], *batch, -1)

    def dense(self, edge: int) -> Tensor:
        """All of it, [*b, X, X]: for small X."""
        size, batch = self._chain.num_states, self._chain.batch_shape
        states = torch.arange(size, device=self._chain.unaries.device)
        rows = self.row(edge, states.view(-1, *(1,) * len(batch)).expand(size, *batch))
        return rows.movedim(0, -2)

    @torch.no_grad()
    def matvec(self, edge: int, vectors: Tensor) -> Tensor:
        """sum_y p(x_edge = ., x_{edge+1} = y) v(y): real vectors [*s, *b, X] -> [*s, *b, X]."""
        return self._flat_call(edge, vectors, transposed=False)

    @torch.no_grad()
    def rmatvec(self, edge: int, vectors: Tensor) -> Tensor:
        """sum_x v(x) p(x_edge = x, x_{edge+1} = .): real vectors [*s, *b, X] -> [*s, *b, X]."""
        return self._flat_call(edge, vectors, transposed=True)

    @torch.no_grad()
    def expectation(self, f: Tensor, g: Tensor) -> Tensor:
        """E[f(x_t) . g(x_{t+1})] of every edge, [*b, T-1], for f, g [*b, X, n] or [X, n].

        With f = a and g = b of K = exp(a.b) it is the expected log-potential.

        Cost:       O(T n) products with the transitions.
        """
        batch, size = self._chain.batch_shape, self._chain.num_states
        for name, of in (("f", f), ("g", g)):
            if of.ndim < 2 or of.shape[-2] != size or of.shape[-1] != f.shape[-1]:
                raise ValueError(
                    f"{name} has shape {list(of.shape)}; expected [*batch, {size}, {f.shape[-1]}]: one row a"
                    " state (a function with one value: [X, 1])."
                )
        steps, dtype = self._chain.num_steps - 1, self._chain.unaries.dtype
        flat = [
            of.to(dtype).expand(*batch, *of.shape[-2:]).reshape(-1, *of.shape[-2:]).movedim(-1, 0)
            for of in (f, g)
        ]
        found = [
            sum(
                (part * self._product(edge, vectors, transposed=False)).sum(dim=(0, -1))
                for part, vectors in self._chunks(*flat)
            )
            for edge in range(steps)
        ]
        if not found:
            return self._chain.unaries.new_zeros(*batch, 0)
        return torch.stack([torch.as_tensor(value) for value in found], -1).reshape(*batch, steps)

    # -- how ------------------------------------------------------------------------------------------
    def _chunks(self, f: Tensor, g: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """f and g [n, N, X] in pieces along n."""
        step = max(1, _ELEMENTS // f[0].numel())
        yield from zip(f.split(step), g.split(step), strict=True)

    def _flat_call(self, edge: int, vectors: Tensor, *, transposed: bool) -> Tensor:
        batch, size = self._chain.batch_shape, self._chain.num_states
        if vectors.shape[-1:] != (size,):
            raise ValueError(
                f"vectors has shape {list(vectors.shape)}; expected [*samples, *batch, {size}]: one number a"
                " state."
            )
        vectors = vectors.to(self._chain.unaries.dtype)
        shape = torch.broadcast_shapes(vectors.shape, (*batch, size))
        flat = vectors.expand(shape).reshape(-1, self._parts[1].shape[0], size)
        return self._product(edge, flat, transposed=transposed).reshape(shape)

    def _product(self, edge: int, vectors: Tensor, *, transposed: bool) -> Tensor:
        """P_edge v, or v P_edge: [s, N, X] -> [s, N, X], the two signs one after the other."""
        positive = self._passed(edge, vectors.clamp(min=0).log(), transposed=transposed)
        if not bool((vectors < 0).any()):
            return positive
        negative = self._passed(edge, vectors.neg().clamp(min=0).log(), transposed=transposed)
        return positive - negative

    def _passed(self, edge: int, logs: Tensor, *, transposed: bool) -> Tensor:
        """The product with exp(logs), not negative."""
        left, right, rest, there = self._sides(edge)
        if transposed:
            left, right = right, left
        transitions = self._parts[0]

        def passed(semiring: Semiring, bare: Transitions, dtype: torch.dtype) -> Message:
            start = semiring.lift(logs.to(dtype) + right.to(dtype))
            move = bare.forward if transposed else bare.backward
            return semiring.settled(semiring.times(move(semiring, start, edge), left.to(dtype)))

        message = passed(Sum(), transitions, logs.dtype)
        if message.lost is not None and bool(message.lost.any()):
            message = passed(LogSum(), transitions.double(), torch.float64)
        shift = torch.where(there, message.scale + rest, -torch.inf)
        return torch.exp(message.log.double() + shift.unsqueeze(-1)).to(self._parts[1].dtype)
