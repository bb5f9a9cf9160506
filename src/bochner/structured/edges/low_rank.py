"""Transitions of low rank: K(x, y) = sum_j left(x, j) right(y, j), with positive features known by logs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from bochner.features import Features, log_inner
from bochner.structured.draws import draw_by_key
from bochner.structured.edges.transitions import Transitions, expected_logs, peaked
from bochner.structured.matrix import Matrix
from bochner.structured.semirings import LogSum, Message, Semiring, Sum, log_sum


class LowRank(Transitions):
    """K_e(x, y) = sum_j exp(log_left_e(x, j) + log_right_e(y, j)).

    Shapes:     log_left, log_right [*b, B, X, m]: B blocks used in turn; -inf is a feature that is 0.
    Numerics:   rows and columns are equilibrated exactly (`Matrix`); no eps is needed or used.
    Cost:       O(X m) time an edge and O(B X m) memory; nothing of size X^2 is ever made, except by
                `log_block`, whose rows are the caller's choice.
    Raises:     ValueError for shapes that do not match.
    Example:
        >>> import torch
        >>> k = LowRank(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))            # K = 2 everywhere
        >>> float(k.log_potential(torch.tensor([0]), torch.tensor([2])).exp())
        2.0
    """

    def __init__(self, log_left: Tensor, log_right: Tensor) -> None:
        if log_left.ndim < 3 or log_left.shape != log_right.shape:
            raise ValueError(
                f"log_left has shape {list(log_left.shape)}, log_right {list(log_right.shape)}; both must"
                " be [*batch, blocks, X, m] (one block, [1, X, m], for a homogeneous chain)."
            )
        self.log_left, self.log_right = log_left, log_right
        *batch, self.num_blocks, self.num_states, self.rank = log_left.shape
        self.batch_shape = tuple(batch)

    @cached_property
    def left(self) -> list[Matrix]:
        """Features of the state before, [*b, X, m], one for every block."""
        return [Matrix(block) for block in self.log_left.unbind(-3)]

    @cached_property
    def right(self) -> list[Matrix]:
        """Features of the state after, [*b, X, m], one for every block."""
        return [Matrix(block) for block in self.log_right.unbind(-3)]

    def to_rank(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """sum_x message(x) left(x, j): the message of the hidden index j of an edge."""
        return semiring.through(message, self.left[edge % self.num_blocks])

    def from_rank(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """sum_j message(j) right(y, j)."""
        return semiring.through(message, self.right[edge % self.num_blocks].T)

    def factors(self, block: int) -> tuple[Matrix, ...] | None:
        """Features of the state before, features of the state after."""
        return None if self.batch_shape else (self.left[block], self.right[block].T)

    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """Into the rank and out of it: two thin products."""
        return self.from_rank(semiring, self.to_rank(semiring, message, edge), edge)

    def backward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """The same from the other side."""
        block = edge % self.num_blocks
        hidden = semiring.through(message, self.right[block])
        return semiring.through(hidden, self.left[block].T)

    def bilinear(self, left: Tensor, right: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """(left A) . (right B) in the rank."""
        values = left.new_empty(left.shape[:-1])
        shifts = torch.zeros_like(values)
        for block, edges in self.edge_blocks(first, left.shape[-2]):
            a, b = self.left[block], self.right[block]
            p, p_top = peaked(left[..., edges, :] + a.row_scale.unsqueeze(-2))
            q, q_top = peaked(right[..., edges, :] + b.row_scale.unsqueeze(-2))
            weight, top = peaked(a.column_scale + b.column_scale)
            hidden = (p @ a.values) * (q @ b.values) * weight.unsqueeze(-2)
            values[..., edges] = hidden.sum(-1)
            shifts[..., edges] = p_top + q_top + top.unsqueeze(-1)
        return values, shifts

    def log_potential(self, before: Tensor, after: Tensor) -> Tensor:
        """Two rows of features, O(m) a pair."""
        logs = self.picked(self.log_left, before) + self.picked(self.log_right, after)
        return log_sum(logs, -1)

    def log_block(self, edge: int, rows: slice) -> Tensor:
        """A dense block of the sum over j, rescued where it underflows."""
        block = edge % self.num_blocks
        some = Features.from_logs(self.log_left[..., block, rows, :])
        return log_inner(some, Features.from_logs(self.log_right[..., block, :, :])).log_abs

    @property
    def num_terms(self) -> int:
        """The rank m."""
        return self.rank

    def expected_log_terms(self, left: Tensor, right: Tensor) -> Tensor:
        """E[log_left(x, j) + log_right(y, j)]."""
        return expected_logs(self, left, right)

    def log_rows(self, edge: int, states: Tensor, elements: Tensor) -> Tensor:
        """Thin products of some rows of features with all; rescued where they underflow."""
        block = edge % self.num_blocks
        left, right = self.log_left[..., block, :, :], self.log_right[..., block, :, :]
        if not self.batch_shape:
            return log_inner(Features.from_logs(left[states]), Features.from_logs(right)).log_abs
        rows = left.new_empty(len(states), self.num_states)
        for element in elements.unique().tolist():
            mine = elements == element
            some = Features.from_logs(left[element, states[mine]])
            rows[mine] = log_inner(some, Features.from_logs(right[element])).log_abs
        return rows

    def log_between(self, edge: int, before: Tensor, after: Tensor) -> Tensor:
        """A small product of features of the states alone."""
        block = edge % self.num_blocks
        rows = self.left[block].rows(before).log
        columns = self.right[block].rows(after).log
        return log_inner(Features.from_logs(rows), Features.from_logs(columns)).log_abs

    def draw(
        self, edge: int, states: Tensor, log_weights: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """First the hidden index, j ~ left(x, j) sum_y right(y, j) weight(y), then y ~ right(y, j) weight(y).

        O(m) and O(X) a sample; samples with the same j share the O(X).
        """
        block, elements = edge % self.num_blocks, torch.arange(states.shape[-1]).to(states.device)
        message = Sum().lift(log_weights)
        hidden = Sum().through(message, self.right[block])
        if hidden.doubt is not None:  # an index that is rare in all may be all that one state has
            hidden = LogSum().through(message, self.right[block])
        left, right = self.log_left[..., block, :, :], self.log_right[..., block, :, :]

        def ranks_of(keys: Tensor) -> Tensor:
            element, state = keys // self.num_states, keys % self.num_states
            rows = left[element, state] if self.batch_shape else left[state]
            return rows + hidden.log[element]

        def states_of(keys: Tensor) -> Tensor:
            element, j = keys // self.rank, keys % self.rank
            columns = right[element, :, j] if self.batch_shape else right[:, j].T
            return columns + log_weights[element]

        keys = (elements * self.num_states + states).view(-1)
        ranks = draw_by_key(keys, ranks_of, self.rank, generator=generator).view(states.shape)
        keys = (elements * self.rank + ranks).view(-1)
        return draw_by_key(keys, states_of, self.num_states, generator=generator).view(states.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        """The logarithms of the features."""
        return self.log_left, self.log_right

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Other features."""
        return type(self)(*tensors)
