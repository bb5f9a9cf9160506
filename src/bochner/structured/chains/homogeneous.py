"""Chains by products of m x m matrices: log-depth scans, and any number of equal steps at once.

    M_t = R^T diag(w_t) L  [m, m],      Z = (w_1^T L) M_2 ... M_{T-1} (R^T w_T)

with K = L R^T, L = exp(log_left), R = exp(log_right) [X, m] and w_t = exp(unaries_t) [X]. The matrices
do not wait for each other: a product tree multiplies them in O(log T) rounds. Where they are all equal,
repeated squaring takes O(log T) products in all, and nothing is done once per step.

Numerics:   logarithms throughout, every product's largest one moved into a float64 scale; a product is
            one of row- and column-normalised values, and an entry that underflows there is summed again
            in the log domain.
Cost:       scan: T X m^2 + T m^3 time, against T X m of `Chain`'s recursion: it pays where m is small
            and the hardware wider than the chain is long. Equal steps: X m^2 + m^3 log T, free of T X.
Reference:  docs/theory.md 15.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.features import Features, log_inner
from bochner.structured.edges.low_rank import LowRank
from bochner.structured.matrix import finite_maximum
from bochner.structured.semirings import log_sum
from bochner.validation import check_count


def log_matmul(one: Tensor, other: Tensor) -> Tensor:
    """log(exp(one) exp(other)) for logarithms [*b, n, k] and [*b, k, l] of any range, -inf included.

    Example:
        >>> log_matmul(torch.tensor([[1000.0, 0.0]]), torch.tensor([[1.0], [2000.0]]))
        tensor([[2000.]])
    """
    present = [log.detach() > -math.inf for log in (one, other)]
    where = None
    if not all(bool(some.all()) for some in present):
        where = present[0].to(one.dtype) @ present[1].to(one.dtype) > 0  # others are exactly 0
    rows, columns = Features.from_logs(one), Features.from_logs(other.transpose(-1, -2))
    return log_inner(rows, columns, where=where).log_abs


class ScaledMatrix(NamedTuple):
    """exp(log + scale): log [*b, n, k] with 0 as its largest entry, scale [*b] in float64."""

    log: Tensor
    scale: Tensor

    @classmethod
    def of(cls, log: Tensor) -> ScaledMatrix:
        """From logarithms [*b, n, k] of any size."""
        top = finite_maximum(log.flatten(-2), -1)
        return cls(log - top.unsqueeze(-1), top.squeeze(-1).double())

    def times(self, other: ScaledMatrix) -> ScaledMatrix:
        """The matrix product."""
        log, scale = ScaledMatrix.of(log_matmul(self.log, other.log))
        return ScaledMatrix(log, scale + self.scale + other.scale)

    def entry(self) -> Tensor:
        """The logarithm of a 1 x 1 matrix, [*b], in the dtype of `log`."""
        return (self.log[..., 0, 0].double() + self.scale).to(self.log.dtype)


def product_tree(matrices: ScaledMatrix) -> ScaledMatrix:
    """The product of matrices [*b, n, m, m] in order of their dimension n >= 1: [*b, m, m].

    Neighbours are multiplied in O(log n) rounds.
    """
    log, scale = matrices
    while (count := scale.shape[-1]) > 1:
        pairs = 2 * (count // 2)
        even = ScaledMatrix(log[..., 0:pairs:2, :, :], scale[..., 0:pairs:2])
        odd = ScaledMatrix(log[..., 1:pairs:2, :, :], scale[..., 1:pairs:2])
        joined = even.times(odd)
        log = torch.cat([joined.log, log[..., pairs:, :, :]], dim=-3)
        scale = torch.cat([joined.scale, scale[..., pairs:]], dim=-1)
    return ScaledMatrix(log.squeeze(-3), scale.squeeze(-1))


def scan_log_partition(
    transitions: LowRank, unaries: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """log Z by a product tree over the steps instead of a recursion along them; differentiable.

    Shapes:     unaries [*b, T, X], lengths int [*b], 1 <= lengths <= T -> [*b].
    Cost:       T X m^2 + T m^3 time, T m^2 + X m memory, O(log T) rounds.
    Example:
        >>> from bochner.structured import Chain
        >>> g = torch.Generator().manual_seed(0)
        >>> k = LowRank(torch.randn(1, 50, 4, generator=g), torch.randn(1, 50, 4, generator=g))
        >>> u = torch.randn(9, 50, generator=g)
        >>> bool((scan_log_partition(k, u) - Chain(k, u).log_partition).abs() < 1e-4)
        True
    """
    steps = unaries.shape[-2]
    if steps == 1:
        return log_sum(unaries.squeeze(-2), -1)
    left, right = transitions.log_left, transitions.log_right
    blocks = transitions.num_blocks
    start = log_sum(unaries[..., 0, :, None] + left[..., 0, :, :], -2)
    ends = torch.stack(  # R^T w of every step that may be the last one
        [
            log_sum(unaries[..., t, :, None] + right[..., (t - 1) % blocks, :, :], -2)
            for t in range(1, steps)
        ],
        dim=-2,
    )
    inner = [
        log_matmul(
            right[..., (t - 1) % blocks, :, :].transpose(-1, -2),
            unaries[..., t, :, None] + left[..., t % blocks, :, :],
        )
        for t in range(1, steps - 1)
    ]
    one = _log_identity(ends)
    matrices = torch.stack([one.expand(*ends.shape[:-2], *one.shape), *inner], dim=-3)
    if lengths is not None:
        within = torch.arange(steps - 1, device=unaries.device) < lengths.unsqueeze(-1) - 1
        matrices = torch.where(within[..., None, None], matrices, one)
        last = (lengths - 2).clamp(min=0)[..., None, None]
        end = ends.gather(-2, last.expand(*ends.shape[:-2], 1, ends.shape[-1])).squeeze(-2)
    else:
        end = ends[..., -1, :]
    product = product_tree(ScaledMatrix.of(matrices))
    total = _between(start, product, end)
    if lengths is None:
        return total
    return torch.where(lengths > 1, total, log_sum(unaries[..., 0, :], -1))


def repeated_log_partition(
    transitions: LowRank, unaries: Tensor, num_steps: int, *, start: Tensor | None = None
) -> Tensor:
    """log Z of `num_steps` steps that all have the same unaries, by repeated squaring; differentiable.

    Shapes:     unaries [*b, X]; start [*b, X], more log-weights of the first step (none) -> [*b].
    Cost:       X m^2 + m^3 log(num_steps) time, X m + m^2 memory: a million steps cost as much as twenty.
    Raises:     ValueError for transitions that differ from edge to edge.
    Example:
        >>> two = LowRank(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
        >>> float(repeated_log_partition(two, torch.zeros(2), 1_000_000) / math.log(2.0))
        1000000.0
    """
    check_count("num_steps", num_steps)
    if transitions.num_blocks != 1:
        raise ValueError(
            f"transitions have {transitions.num_blocks} blocks, but only equal edges can be squared;"
            " give one block, or use scan_log_partition."
        )
    first = unaries if start is None else unaries + start
    if num_steps == 1:
        return log_sum(first, -1)
    left, right = transitions.log_left.squeeze(-3), transitions.log_right.squeeze(-3)
    row = ScaledMatrix.of(log_sum(first.unsqueeze(-1) + left, -2).unsqueeze(-2))
    column = ScaledMatrix.of(log_sum(unaries.unsqueeze(-1) + right, -2).unsqueeze(-1))
    step = log_matmul(right.transpose(-1, -2), unaries.unsqueeze(-1) + left)
    power, remaining = ScaledMatrix.of(step), num_steps - 2
    while remaining:
        if remaining % 2:
            row = row.times(power)
        remaining //= 2
        if remaining:
            power = power.times(power)
    return row.times(column).entry()


def _log_identity(like: Tensor) -> Tensor:
    size = like.shape[-1]
    diagonal = torch.eye(size, dtype=torch.bool, device=like.device)
    return like.new_full((size, size), -math.inf).masked_fill(diagonal, 0.0)


def _between(start: Tensor, matrix: ScaledMatrix, end: Tensor) -> Tensor:
    """log(start^T M end) from the logarithms of the vectors [*b, m]."""
    row, column = ScaledMatrix.of(start.unsqueeze(-2)), ScaledMatrix.of(end.unsqueeze(-1))
    return row.times(matrix).times(column).entry()
