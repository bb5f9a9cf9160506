"""K(x, y) = exp(a_x . b_y), exactly and on the fly: rows are computed in blocks and forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bochner.structured.edges.transitions import Transitions, peaked
from bochner.structured.matrix import Matrix
from bochner.structured.semirings import Message, Semiring

_BLOCK_ELEMENTS = 1 << 22  # of a block of K that exists at one time: 16 MB in float32


class LogBilinear(Transitions):
    """Log-bilinear transitions log K(x, y) = a_x . b_y, the same on every edge; no X x X matrix is kept.

    Shapes:     a, b [*b, X, n].
    Cost:       O(X^2 n) time an edge, O(X n) memory and one block of 16 MB (32 MB in float64).
    Example:
        >>> import torch
        >>> from bochner.structured.semirings import Sum
        >>> k = LogBilinear(torch.ones(3, 1), torch.zeros(3, 1))
        >>> start = Sum().lift(torch.zeros(3))
        >>> round(float(Sum().total(k.forward(Sum(), start, 0)).exp()), 4)        # nine paths
        9.0
    """

    num_blocks = 1

    def __init__(self, a: Tensor, b: Tensor) -> None:
        if a.ndim < 2 or a.shape[-2:] != b.shape[-2:]:
            raise ValueError(
                f"a has shape {list(a.shape)}, b {list(b.shape)}; expected [*batch, X, n] for both."
            )
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        self.a, self.b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
        self.batch_shape = tuple(batch)
        self.num_states = a.shape[-2]

    def _rows(self) -> Iterator[slice]:
        """The rows of one block after another."""
        batch = torch.Size(self.batch_shape).numel()
        step = max(1, _BLOCK_ELEMENTS // (self.num_states * batch))
        return (
            slice(start, min(start + step, self.num_states))
            for start in range(0, self.num_states, step)
        )

    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """The messages of some states at a time, added up."""
        return self._through(semiring, message, self.a, self.b)

    def backward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """The same with a and b exchanged."""
        return self._through(semiring, message, self.b, self.a)

    def _through(
        self, semiring: Semiring, message: Message, source: Tensor, target: Tensor
    ) -> Message:
        total: Message | None = None
        for rows in self._rows():
            index = torch.arange(rows.start, rows.stop, device=source.device)
            block = Matrix(source[..., rows, :] @ target.transpose(-1, -2))
            part = semiring.through(semiring.gather(message, index), block)
            total = part if total is None else semiring.plus(total, part)
        assert total is not None
        return total

    def bilinear(self, left: Tensor, right: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """Block after block of rows; what the gradient needs of a block is made again."""
        parts = [
            checkpoint(
                _block_bilinear,
                *(left[..., rows], right, self.a[..., rows, :], self.b),
                use_reentrant=False,
            )
            for rows in self._rows()
        ]
        return added(parts)

    def log_potential(self, before: Tensor, after: Tensor) -> Tensor:
        """a_x . b_y of the given states."""
        rows = self.picked(self.a.unsqueeze(-3), before)
        return (rows * self.picked(self.b.unsqueeze(-3), after)).sum(-1)

    def log_block(self, edge: int, rows: slice) -> Tensor:
        """One matrix product."""
        return self.a[..., rows, :] @ self.b.transpose(-1, -2)

    def log_rows(self, edge: int, states: Tensor, elements: Tensor) -> Tensor:
        """One matrix product, for every element of the batch that is asked for."""
        if not self.batch_shape:
            return self.a[states] @ self.b.transpose(-1, -2)
        rows = self.a.new_empty(len(states), self.num_states)
        for element in elements.unique().tolist():
            mine = elements == element
            rows[mine] = self.a[element, states[mine]] @ self.b[element].transpose(-1, -2)
        return rows

    def log_between(self, edge: int, before: Tensor, after: Tensor) -> Tensor:
        """A small matrix product."""
        return self.between(before, after)

    def between(self, before: Tensor, after: Tensor) -> Tensor:
        """log K of all pairs of some states: before [*c, j], after [*c, k] -> [*c, j, k].

        The leading dimensions [*c] start like the batch and may go on (one set for every step).
        """
        return chosen(self.a, before, self.batch_shape) @ chosen(
            self.b, after, self.batch_shape
        ).transpose(-1, -2)

    def tensors(self) -> tuple[Tensor, ...]:
        """The embeddings."""
        return self.a, self.b

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Other embeddings."""
        return type(self)(*tensors)


def _block_bilinear(left: Tensor, right: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """sum over some rows x and all y of exp(left(x) + a_x.b_y + right(y)), as values and shifts."""
    block = Matrix(a @ b.transpose(-1, -2))
    p, p_top = peaked(left + block.row_scale.unsqueeze(-2))
    q, q_top = peaked(right + block.column_scale.unsqueeze(-2))
    return ((p @ block.values) * q).sum(-1), p_top + q_top


def added(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """sum_i values_i exp(shifts_i) as one pair of values and (constant) shifts."""
    values = torch.stack(torch.broadcast_tensors(*(v for v, _ in parts)))
    shifts = torch.stack(torch.broadcast_tensors(*(s for _, s in parts))).detach()
    # a part that is 0 says nothing about the size of the sum, whatever its shift
    top = shifts.masked_fill(values.detach() == 0, -torch.inf).amax(0)
    top = torch.where(torch.isfinite(top), top, 0.0)
    weights = torch.exp((shifts - top).clamp_max(0.0))
    return (values * weights).sum(0), top


def chosen(points: Tensor, states: Tensor, batch_shape: tuple[int, ...]) -> Tensor:
    """Rows of points [*batch_shape, X, n] for states [*c, k], [*c] starting like the batch: [*c, k, n]."""
    if not batch_shape:
        return points[states]
    extra = states.ndim - 1 - len(batch_shape)
    points = points.reshape(*points.shape[:-2], *(1,) * extra, *points.shape[-2:])
    points = points.expand(*states.shape[:-1], *points.shape[-2:])
    index = states.unsqueeze(-1).expand(*states.shape, points.shape[-1])
    return points.gather(-2, index)
