"""Measured error: fresh redraws against exact attention, beside the trivial baseline."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.attention.window import ExactWindow
from bochner.attention.window_pairs import WindowPairs
from bochner.diagnostics.exact import (
    check_inputs,
    exact_logs,
    largest_log,
    row_blocks,
    visible_keys,
)
from bochner.diagnostics.interval import Interval, median
from bochner.feature_map import FeatureMap, compute_dtype
from bochner.features import Features, SignedLog, log_inner
from bochner.kernels import Kernel
from bochner.request import fresh_generator
from bochner.validation import check_count

_KEPT_ELEMENTS = 1 << 25
"""Exact attention is kept between redraws up to this many entries, and computed again beyond."""


@dataclass(frozen=True)
class ErrorReport:
    """Errors of one feature map on given data; each the median over heads, then mean over redraws.

    kernel_error:               |K^ - K|_F / |K|_F.
    output_error:               |O^ - O|_F / |O|_F of the attention output; None without values.
    row_variation:              total variation between estimated and exact attention rows.
    negative_entries:           share of kernel estimates below 0.
    nonpositive_denominators:   share of rows whose denominator is <= 0.
    trivial_output_error:       output error of averaging the values: what a map has to beat.
    trivial_row_variation:      total variation of uniform attention.
    per_head:                   metric -> [redraws, *heads], the raw figures; [1, *heads] of a map that
                                draws nothing, whose intervals are points with redraws = 0.
    """

    num_features: int
    kernel_error: Interval
    output_error: Interval | None
    row_variation: Interval
    negative_entries: Interval
    nonpositive_denominators: Interval
    trivial_output_error: float | None
    trivial_row_variation: float
    per_head: dict[str, Tensor]

    @property
    def beats_trivial(self) -> bool | None:
        """Whether the whole interval lies below averaging the values; None without values."""
        if self.output_error is None or self.trivial_output_error is None:
            return None
        return self.output_error.high < self.trivial_output_error

    def __str__(self) -> str:
        redraws, level = self.kernel_error.redraws, self.kernel_error.level
        draws = f"{redraws} redraws ({level:.0%} intervals)" if redraws else "nothing is drawn"
        lines = [
            f"num_features {self.num_features}, {draws}, median over heads",
            f"  kernel relative error     {self.kernel_error}",
        ]
        if self.output_error is not None:
            lines.append(f"  attention output error    {self.output_error}   (exact attention: 0)")
            lines.append(f"    averaging the values    {self.trivial_output_error:.3f}")
        lines += [
            f"  row total variation       {self.row_variation}"
            f"   (uniform: {self.trivial_row_variation:.3f})",
            f"  negative kernel entries   {self.negative_entries}",
            f"  denominators <= 0         {self.nonpositive_denominators}",
        ]
        return "\n".join(lines)


def measure(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    causal: bool = False,
    exact: ExactWindow | None = None,
    num_redraws: int = 8,
    generator: torch.Generator | None = None,
) -> ErrorReport:
    """Measure a feature map on queries, keys and values, over whole redraws.

    Shapes:     q [*heads, n, d], k [*heads, n', d], v [*heads, n', dv]; a map with batch_shape wants
                matching heads.
    Arguments:  exact: measure the map with this window of exact pairs, as in `linear_attention`;
                num_redraws: independent redraws of all directions (what is fitted stays); a map
                that draws nothing (`calibrated`) is measured once, as it is.
                generator: their source, a fresh one unless given. `feature_map` is not changed.
    Returns:    ErrorReport; the reference is exact attention under feature_map.kernel, in float32
                (float64 for float64 input).
    Cost:       O(n n' (d + m + dv)) time a redraw, streamed over rows. A diagnostic: quadratic.
    Raises:     ValueError for shapes, NaN, num_redraws < 1; NotFittedError for an unfitted map.
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("positive", dim=8, num_features=64, generator=g)
        >>> q, k, v = (0.3 * torch.randn(40, 8, generator=g) for _ in range(3))
        >>> report = measure(phi, q, k, v, generator=g)
        >>> report.negative_entries.value, report.output_error.redraws
        (0.0, 8)
    """
    check_count("num_redraws", num_redraws)
    check_inputs(q, k, v, feature_map.dim, causal=causal)
    generator = fresh_generator() if generator is None else generator
    dtype = compute_dtype(q)
    q, k, v = (
        q.detach().to(dtype),
        k.detach().to(dtype),
        None if v is None else v.detach().to(dtype),
    )
    with torch.no_grad(), torch.autocast(device_type=q.device.type, enabled=False):
        if fixed := not (feature_map.draws() or feature_map.num_projections):
            maps = [feature_map]
        else:
            maps = [copy.deepcopy(feature_map).resample_(generator) for _ in range(num_redraws)]
        pairs = None if exact is None else WindowPairs.of(exact, feature_map, q, k, causal=causal)
        per_head, trivial = _accumulate(maps, q, k, v, pairs, causal=causal)

    def over(values: Tensor) -> Interval:
        return Interval.fixed(float(values)) if fixed else Interval.over(values)

    def typical(name: str) -> Interval:
        return over(median(per_head[name].reshape(len(maps), -1)))

    def mean(name: str) -> Interval:
        return over(per_head[name].reshape(len(maps), -1).mean(dim=1))

    return ErrorReport(
        num_features=feature_map.num_features,
        kernel_error=typical("kernel"),
        output_error=None if v is None else typical("output"),
        row_variation=typical("variation"),
        negative_entries=mean("negative_entries"),
        nonpositive_denominators=mean("nonpositive_denominators"),
        trivial_output_error=None if v is None else float(median(trivial["output"].flatten())),
        trivial_row_variation=float(median(trivial["variation"].flatten())),
        per_head=per_head,
    )


class _Totals(defaultdict[str, Tensor]):
    """Named sums per head, in float64 on the CPU."""

    def __init__(self, heads: tuple[int, ...]) -> None:
        super().__init__(lambda: torch.zeros(heads, dtype=torch.float64))

    def add(self, name: str, block: Tensor) -> None:
        """Add the sum of a block [*heads, rows, columns] to one total."""
        self[name] = self[name] + block.sum((-1, -2), dtype=torch.float64).cpu()


class _Block(NamedTuple):
    """Exact attention of some query rows; kernel is exp(logs - peak)."""

    rows: slice
    visible: Tensor | None
    kernel: Tensor
    attention: Tensor
    output: Tensor | None


def _exact_blocks(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor | None, peak: Tensor, *, causal: bool
) -> Iterator[_Block]:
    for rows in row_blocks(q, k):
        visible = visible_keys(rows, k.shape[-2], q.device, causal=causal)
        logs = exact_logs(kernel, q[..., rows, :], k, visible)
        attention = torch.softmax(logs, dim=-1)
        output = None if v is None else attention @ v
        yield _Block(rows, visible, torch.exp(logs - peak), attention, output)


def _accumulate(
    maps: list[FeatureMap],
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    pairs: WindowPairs | None,
    *,
    causal: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics of every map [redraws, *heads] and of uniform attention [*heads]."""
    kernel = maps[0].kernel
    heads, length, num_keys = tuple(q.shape[:-2]), q.shape[-2], k.shape[-2]
    peak = largest_log(kernel, q, k, causal=causal)
    make_blocks = partial(_exact_blocks, kernel, q, k, v, peak, causal=causal)
    kept = list(make_blocks()) if math.prod(heads) * length * num_keys <= _KEPT_ELEMENTS else None
    exact, uniform = _Totals(heads), _Totals(heads)
    entries = 0
    for block in kept or make_blocks():
        shape = block.attention.shape[-2:]
        seen = q.new_ones(shape) if block.visible is None else block.visible.to(q.dtype)
        entries += math.prod(shape) if block.visible is None else int(block.visible.sum())
        exact.add("kernel", block.kernel.square())
        flat = (seen / seen.sum(-1, keepdim=True)).expand_as(block.attention)
        _compare(uniform, flat, block, v)
        if block.output is not None:
            exact.add("output", block.output.square())
    draws = (_Draw(phi, q, k, phi.key(k), pairs) for phi in maps)
    totals = [_one_map(draw, v, peak, kept or make_blocks()) for draw in draws]
    per_head = {
        "kernel": torch.stack([(t["kernel"] / exact["kernel"]).sqrt() for t in totals]),
        "variation": torch.stack([t["variation"] / length for t in totals]),
        "negative_entries": torch.stack([t["negative_entries"] / entries for t in totals]),
        "nonpositive_denominators": torch.stack(
            [t["nonpositive_denominators"] / length for t in totals]
        ),
    }
    trivial = {"variation": uniform["variation"] / length}
    if v is not None:
        per_head["output"] = torch.stack([(t["output"] / exact["output"]).sqrt() for t in totals])
        trivial["output"] = (uniform["output"] / exact["output"]).sqrt()
    return per_head, trivial


class _Draw(NamedTuple):
    """One draw of a map, on all queries and keys, with the pairs that are exact."""

    phi: FeatureMap
    q: Tensor
    k: Tensor
    keys: Features
    pairs: WindowPairs | None

    def kernel(self, block: _Block) -> tuple[SignedLog, Tensor | None]:
        """What stands for the kernel in some rows, and which of it is exact."""
        q = self.q[..., block.rows, :]
        estimates = log_inner(self.phi.query(q), self.keys, where=block.visible)
        if self.pairs is None:
            return estimates, None
        known = self.pairs.rows(block.rows)
        known = known if block.visible is None else known & block.visible
        logs = torch.where(known, self.phi.log_kernel(q, self.k), estimates.log_abs)
        return SignedLog(logs, torch.where(known, 1.0, estimates.sign)), known

    def weights(self, kernel: SignedLog, known: Tensor | None) -> Tensor:
        """Rows in their own scale: the largest entry is +-1 before it is normalised."""
        weights = kernel.sign * torch.exp(kernel.log_abs - kernel.log_abs.amax(-1, keepdim=True))
        floor = None if self.pairs is None else self.pairs.exact.denominator_floor
        if floor is None or known is None:
            return weights
        alone = weights * known
        exact = alone.sum(dim=-1, keepdim=True)
        low = (weights * ~known).sum(dim=-1, keepdim=True) < floor * exact
        return torch.where(low & known.any(dim=-1, keepdim=True), alone, weights)


def _one_map(draw: _Draw, v: Tensor | None, peak: Tensor, blocks: Iterable[_Block]) -> _Totals:
    """Sums of one draw over all blocks."""
    total = _Totals(tuple(draw.q.shape[:-2]))
    for block in blocks:
        kernel, known = draw.kernel(block)
        total.add(
            "kernel", (kernel.sign * torch.exp(kernel.log_abs - peak) - block.kernel).square()
        )
        weights = draw.weights(kernel, known)
        denominator = weights.sum(dim=-1, keepdim=True)
        if not draw.phi.positive:
            total.add("negative_entries", weights < 0)
            total.add("nonpositive_denominators", denominator <= 0)
        _compare(total, weights / denominator, block, v)
    return total


def _compare(total: _Totals, weights: Tensor, block: _Block, v: Tensor | None) -> None:
    """Add the total variation of attention rows, and the squared output error."""
    total.add("variation", 0.5 * (weights - block.attention).abs())
    if v is not None and block.output is not None:
        total.add("output", (weights @ v - block.output).square())
