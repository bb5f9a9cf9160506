"""The joint distribution of two neighbours, as what it is made of: two messages and the transitions."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.escalation import escalated, in_dtype
from bochner.structured.graphs.blockwise import row_slices
from bochner.structured.semirings import Message, Semiring


class EdgeMarginal:
    """p(x, y) = exp(left(x)) K(x, y) exp(right(y)) / z of one edge; a constant to autograd.

    Shapes:     left, right [*b, X]: logarithms, of any scale. x is the parent's state, y the child's.
    Cost:       O(X m) where nothing else is said: low-rank transitions are never multiplied out.
    Example:
        >>> from bochner.structured import Dense
        >>> edge = EdgeMarginal(Dense(torch.eye(2)[None]), 0, torch.zeros(2), torch.zeros(2))
        >>> edge.dense()                                                      # e / (2 e + 2), 1 / (2 e + 2)
        tensor([[0.3655, 0.1345],
                [0.1345, 0.3655]])
        >>> spin = torch.tensor([1.0, -1.0])
        >>> round(float(edge.expectation(spin, spin)), 4)                     # tanh(1/2)
        0.4621
    """

    def __init__(self, transitions: Transitions, edge: int, left: Tensor, right: Tensor) -> None:
        bare = transitions.with_tensors([t.detach() for t in transitions.tensors()])
        self._batch = left.shape[:-1]
        self._transitions = in_dtype(bare, left.dtype).flattened(self._batch)
        self._edge = edge
        self._left, self._right = (m.detach().reshape(-1, m.shape[-1]) for m in (left, right))

    def row(self, states: Tensor) -> Tensor:
        """p(x = states, y = .): integers [*s, *b] -> [*s, *b, X]."""
        chosen = states.reshape(-1, len(self._left))
        elements = torch.arange(len(self._left), device=states.device).expand(chosen.shape)
        logs = self._transitions.log_rows(self._edge, chosen.reshape(-1), elements.reshape(-1))
        logs = logs.reshape(*chosen.shape, -1) + self._right
        logs = logs + self._left.gather(-1, chosen.T).T.unsqueeze(-1)
        shift = self._log_normaliser.to(logs.dtype).unsqueeze(-1)
        return torch.exp(logs - shift).reshape(*states.shape, -1)

    def matvec(self, weights: Tensor) -> Tensor:
        """sum_y p(x, y) weights(y): real weights [*b, X] -> [*b, X]."""
        flat = weights.expand(*self._batch, weights.shape[-1]).reshape(self._right.shape)
        # only non-negative weights have logarithms
        above, below = flat.clamp_min(0).log(), (-flat).clamp_min(0).log()
        found = self._times(above) - self._times(below)
        return found.reshape(*self._batch, -1)

    def expectation(self, f: Tensor, g: Tensor) -> Tensor:
        """E[f(x) g(y)] for real f, g [*b, X] -> [*b]."""
        return (f * self.matvec(g)).sum(dim=-1)

    def dense(self) -> Tensor:
        """All of it, [*b, X, X]: O(X^2) memory."""
        log = self._transitions.log_block(self._edge, slice(0, self._left.shape[-1]))
        log = self._left.unsqueeze(-1) + log + self._right.unsqueeze(-2)
        return torch.softmax(log.flatten(-2), dim=-1).reshape(*self._batch, *log.shape[-2:])

    def expected_log_potential(self) -> Tensor:
        """E[log K(x, y)] [*b], float64, exactly: K in dense blocks, O(X^2 m) time."""
        z = self._log_normaliser[..., None, None]
        total = torch.zeros(len(self._left), dtype=torch.float64, device=self._left.device)
        for rows in row_slices(self._left.shape[-1], len(total)):
            block = self._transitions.log_block(self._edge, rows)
            weight = self._left[..., rows, None] + block + self._right[..., None, :]
            probability = torch.exp(weight.double() - z)
            # 0 log 0 is 0
            potential = torch.where(probability > 0, block, 0.0)
            total = total + (probability * potential).sum(dim=(-1, -2))
        return total.reshape(self._batch)

    @cached_property
    def _log_normaliser(self) -> Tensor:
        """log z [N], float64."""
        message = self._backward(self._right)
        return torch.logsumexp(self._left.double() + message, dim=-1)

    def _times(self, log_weights: Tensor) -> Tensor:
        message = self._backward(self._right + log_weights)
        log = self._left.double() + message - self._log_normaliser.unsqueeze(-1)
        return torch.exp(log).to(self._left.dtype)

    def _backward(self, log_right: Tensor) -> Tensor:
        """log sum_y K(x, y) exp(log_right(y)) [N, X], float64."""

        def run(
            semiring: Semiring, transitions: Transitions, right: Tensor
        ) -> tuple[Message, Tensor | None]:
            moved = transitions.backward(semiring, semiring.lift(right), self._edge)
            seen = semiring.settled(semiring.times(moved, self._left.to(right.dtype)))
            return moved, seen.lost

        found = escalated(run, self._transitions, log_right)
        return found.log.double() + found.scale.unsqueeze(-1)
