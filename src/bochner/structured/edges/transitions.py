"""What connects neighbouring steps of a chain or neighbouring nodes of a tree: K(x, y) >= 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from bochner.structured.draws import draw_by_key
from bochner.structured.matrix import Matrix, finite_maximum
from bochner.structured.semirings import LogSum, Message, Semiring

_HELD = 1e-250  # sums of products of numbers up to 1 lose nothing above it, in float64


class Transitions(ABC):
    """Weights K_e(x, y) >= 0 of state x before and state y after edge e, for any number of edges.

    `num_blocks` different matrices are used in turn: edge e has block e mod num_blocks. One block is a
    homogeneous chain, as many blocks as edges a chain whose edges all differ.

    Shapes:     messages and states have leading dimensions [*b]; a batch of transitions has batch_shape,
                which broadcasts with them.
    Subclasses: the first dimensions of every tensor of `tensors()` are batch_shape.
    """

    num_states: int
    num_blocks: int
    batch_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """sum_x message(x) K_edge(x, y): from the step before the edge to the one after it."""

    @abstractmethod
    def backward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """sum_y K_edge(x, y) message(y): from the step after the edge to the one before it."""

    @abstractmethod
    def bilinear(self, left: Tensor, right: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """sum_xy exp(left_e(x)) K_e(x, y) exp(right_e(y)) for the edges first, first + 1, ... at once.

        Shapes:     left, right [*b, E, X], logarithms whose largest entries are about 0
                    -> values, shifts [*b, E]: the sum is values * exp(shifts), the shifts constants.
        Autograd:   in the parameters only; the values of E edges are one batched product.
        """

    @abstractmethod
    def log_potential(self, before: Tensor, after: Tensor) -> Tensor:
        """log K_e(before_e, after_e) of given states, integers [*s, *b, E] -> [*s, *b, E]."""

    @abstractmethod
    def log_block(self, edge: int, rows: slice) -> Tensor:
        """log K_edge of some rows and all columns, [*batch_shape, r, X]: what exact queries read."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that depends on the batch, parameters first."""

    @abstractmethod
    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """The same transitions with other tensors in place of `tensors()`; nothing cached is kept."""

    # -- what follows from those, and may be done better -----------------------------------------------
    @property
    def num_terms(self) -> int:
        """How many terms j every K(x, y) is the sum of, where `Max` sees the largest instead of the sum."""
        return 1

    def expected_log_terms(self, left: Tensor, right: Tensor) -> Tensor:
        """E[log of the term] when x, y and the term j are drawn together, for all edges at once.

        Shapes:     left, right [N, E, X], logarithms of the weights of x and y; flattened -> [N, E].
        Raises:     ValueError where there are no terms to speak of.
        """
        raise ValueError(
            f"{type(self).__name__} is no sum over a hidden index; use entropy() or entropy_sampled()."
        )

    def log_rows(self, edge: int, states: Tensor, elements: Tensor) -> Tensor:
        """log K_edge(x, .) of k pairs (state, element of the flattened batch): [k], [k] -> [k, X]."""
        distinct, inverse = states.unique(return_inverse=True)
        rows = torch.stack([self.log_block(edge, slice(x, x + 1)) for x in distinct.tolist()])
        rows = rows.squeeze(-2)
        return rows[inverse, elements] if self.batch_shape else rows[inverse]

    def log_between(self, edge: int, before: Tensor, after: Tensor) -> Tensor:
        """log K_edge between some states: [N, k], [N, l], a flattened batch -> [N, k, l]."""
        count, size = before.shape
        elements = torch.arange(count, device=before.device).repeat_interleave(size)
        rows = self.log_rows(edge, before.reshape(-1), elements).view(count, size, -1)
        return rows.gather(-1, after.unsqueeze(-2).expand(count, size, after.shape[-1]))

    def draw(
        self, edge: int, states: Tensor, log_weights: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """States after the edge, drawn by K_edge(x, .) exp(log_weights), one for every x.

        Shapes:     states [s, N] before the edge, log_weights [N, X], a flattened batch -> [s, N].
        """

        def conditionals(keys: Tensor) -> Tensor:
            elements = keys // self.num_states
            return self.log_rows(edge, keys % self.num_states, elements) + log_weights[elements]

        elements = torch.arange(states.shape[-1], device=states.device)
        keys = elements * self.num_states + states
        drawn = draw_by_key(keys.view(-1), conditionals, self.num_states, generator=generator)
        return drawn.view(states.shape)

    def factors(self, block: int) -> tuple[Matrix, ...] | None:
        """Matrices whose product is K of a block, if it is such a product and has no batch; else None."""
        return None

    # -- what follows from those ----------------------------------------------------------------------
    def flattened(self, batch: torch.Size) -> Self:
        """For messages whose batch dimensions [*b] have been made one."""
        if not self.batch_shape:
            return self
        count = len(self.batch_shape)
        return self.with_tensors(
            [t.expand(*batch, *t.shape[count:]).flatten(0, len(batch) - 1) for t in self.tensors()]
        )

    def selected(self, index: Tensor) -> Self:
        """The elements of a flattened batch that index [k] names."""
        if not self.batch_shape:
            return self
        return self.with_tensors([t[index] for t in self.tensors()])

    def double(self) -> Self:
        """In float64."""
        return self.with_tensors(
            [t.double() if t.is_floating_point() else t for t in self.tensors()]
        )

    def edge_blocks(self, first: int, count: int) -> list[tuple[int, slice]]:
        """(block, which of the `count` edges from `first` on use it), for all blocks in use."""
        blocks = min(self.num_blocks, count)
        return [
            ((first + at) % self.num_blocks, slice(at, None, self.num_blocks))
            for at in range(blocks)
        ]

    def picked(self, tensor: Tensor, states: Tensor) -> Tensor:
        """tensor [*batch_shape, blocks, X, ...] at (edge's block, state) for states [*s, *b, E]."""
        return tensor[(*self.places(states), states)]

    def places(self, states: Tensor) -> tuple[Tensor, ...]:
        """Indices of the batch and of the edge's block for states [*s, *b, E], to be followed by states."""
        edges = states.shape[-1]
        block = torch.arange(edges, device=states.device) % self.num_blocks
        lead = len(self.batch_shape)
        places = [
            torch.arange(size, device=states.device).view(-1, *(1,) * (lead - at))
            if size > 1
            else torch.zeros((), dtype=torch.long, device=states.device)
            for at, size in enumerate(self.batch_shape)
        ]
        return (*places, block)


class Dense(Transitions):
    """Every weight given: the exact model, O(X^2) memory and O(X^2) time an edge.

    Shapes:     log_potentials [*b, B, X, X]: B blocks, row the state before, column the state after.
    Example:
        >>> import torch
        >>> from bochner.structured.semirings import Sum
        >>> two = Dense(torch.zeros(1, 2, 2))
        >>> start = Sum().lift(torch.zeros(2))
        >>> round(float(Sum().total(two.forward(Sum(), start, 0)).exp()), 4)  # four paths
        4.0
    """

    def __init__(self, log_potentials: Tensor) -> None:
        if log_potentials.ndim < 3 or log_potentials.shape[-1] != log_potentials.shape[-2]:
            raise ValueError(
                f"log_potentials has shape {list(log_potentials.shape)}; expected [*batch, blocks, X, X]"
                " (one block, [1, X, X], for a homogeneous chain)."
            )
        self.log_potentials = log_potentials
        *batch, self.num_blocks, self.num_states = log_potentials.shape[:-1]
        self.batch_shape = tuple(batch)

    @cached_property
    def matrices(self) -> list[Matrix]:
        """One for every block."""
        return [Matrix(block) for block in self.log_potentials.unbind(-3)]

    def factors(self, block: int) -> tuple[Matrix, ...] | None:
        """The matrix itself."""
        return None if self.batch_shape else (self.matrices[block],)

    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """One product with the matrix."""
        return semiring.through(message, self.matrices[edge % self.num_blocks])

    def backward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """One product with its transpose."""
        return semiring.through(message, self.matrices[edge % self.num_blocks].T)

    def bilinear(self, left: Tensor, right: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """left K, then the inner product with right."""
        values = left.new_empty(left.shape[:-1])
        shifts = torch.zeros_like(values)
        for block, edges in self.edge_blocks(first, left.shape[-2]):
            matrix = self.matrices[block]
            p, p_top = peaked(left[..., edges, :] + matrix.row_scale.unsqueeze(-2))
            q, q_top = peaked(right[..., edges, :] + matrix.column_scale.unsqueeze(-2))
            values[..., edges] = ((p @ matrix.values) * q).sum(-1)
            shifts[..., edges] = p_top + q_top
        return values, shifts

    def log_potential(self, before: Tensor, after: Tensor) -> Tensor:
        """Read from the table."""
        before, after = torch.broadcast_tensors(before, after)
        return self.log_potentials[(*self.places(before), before, after)]

    def log_block(self, edge: int, rows: slice) -> Tensor:
        """Read from the table."""
        return self.log_potentials[..., edge % self.num_blocks, rows, :]

    def log_rows(self, edge: int, states: Tensor, elements: Tensor) -> Tensor:
        """Read from the table."""
        block = self.log_potentials[..., edge % self.num_blocks, :, :]
        return block[elements, states] if self.batch_shape else block[states]

    def log_between(self, edge: int, before: Tensor, after: Tensor) -> Tensor:
        """Read from the table."""
        block = self.log_potentials[..., edge % self.num_blocks, :, :]
        rows, columns = before.unsqueeze(-1), after.unsqueeze(-2)
        if not self.batch_shape:
            return block[rows, columns]
        return block[torch.arange(len(before), device=before.device)[:, None, None], rows, columns]

    def expected_log_terms(self, left: Tensor, right: Tensor) -> Tensor:
        """One term: E[log K]."""
        return expected_logs(self, left, right)

    def tensors(self) -> tuple[Tensor, ...]:
        """The table."""
        return (self.log_potentials,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Another table."""
        return type(self)(*tensors)


def peaked(log: Tensor) -> tuple[Tensor, Tensor]:
    """(exp(log - top), top) with top [*b] the largest logarithm of every row; written over `log`."""
    top = finite_maximum(log, -1)
    return log.sub_(top).exp_(), top.squeeze(-1)


def expected_logs(transitions: Transitions, left: Tensor, right: Tensor) -> Tensor:
    """Expected log-weights of edges whose K is a sum of exponentials of sums of `tensors()`: [N, E].

        E[theta . d log-weight / d theta] = theta . d log s / d theta,   s = left K(theta) right

    The derivative along theta, by differentiating `bilinear` twice; per element and edge, though the
    tensors are shared by all. Edges whose sides barely meet are summed again in the log domain.
    """
    left, right = left.detach(), right.detach()
    found, held = _along(transitions, lambda bare: bare.bilinear(left, right)[0])
    semiring = LogSum()
    for edge in (~held).any(dim=0).nonzero().squeeze(-1).tolist():
        start = semiring.lift(left[:, edge])

        def total(bare: Transitions, edge: int = edge, start: Message = start) -> Tensor:
            message = bare.forward(semiring, start, edge)
            value = semiring.total(semiring.times(message, right[:, edge]))
            return torch.exp(value - value.detach())

        found[:, edge] = torch.where(held[:, edge], found[:, edge], _along(transitions, total)[0])
    return found


def _along(
    transitions: Transitions, function: Callable[[Transitions], Tensor]
) -> tuple[Tensor, Tensor]:
    """theta . d log values / d theta of every value of a function, and whether it is in float64's range."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in transitions.tensors()]
        values = function(transitions.with_tensors(leaves))
        probe = torch.ones_like(values, requires_grad=True)
        slopes = torch.autograd.grad(values, leaves, probe, create_graph=True)
        products = [
            (slope * leaf.detach().masked_fill(leaf == -torch.inf, 0.0)).sum()
            for slope, leaf in zip(slopes, leaves, strict=True)
        ]
        (slope,) = torch.autograd.grad(torch.stack(products).sum(), probe)
    return slope / values.detach(), values.detach() > _HELD
