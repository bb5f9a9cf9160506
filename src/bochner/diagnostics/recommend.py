"""Which feature map to take for given data, and why, in sentences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.diagnostics.compare import Candidate, Comparison, Data, all_names, compare
from bochner.diagnostics.describe import DataSummary, describe
from bochner.feature_map import FeatureMap


@dataclass(frozen=True)
class Recommendation:
    """The choice, its table (best first), and the reasons.

    choice:         name of the map with the lowest measured output error among those whose whole
                    interval lies below averaging the values; None if there is none (`candidates[0]`
                    is still the least bad one).
    feature_map:    that map, fitted and ready; None with choice None.
    skipped:        name -> why it could not be tried.
    """

    choice: str | None
    feature_map: FeatureMap | None
    candidates: list[Candidate]
    skipped: dict[str, str]
    summary: DataSummary
    trivial_output_error: float
    reasons: list[str]

    def __str__(self) -> str:
        width = max(len(c.label) for c in self.candidates)
        rows = [
            f"  {c.label:<{width}}  {c.report.output_error}"
            + (f" [{c.columns}]" if c.columns < c.num_features else "")
            for c in self.candidates
        ]
        rows.append(f"  {'(averaging the values)':<{width}}  {self.trivial_output_error:.3f}")
        return "\n".join([f"choice: {self.choice}", *rows, *self.reasons])


def recommend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_features: int,
    *,
    calibration: tuple[Tensor, Tensor] | None = None,
    candidates: list[str] | None = None,
    num_redraws: int = 4,
    unbiased_only: bool = False,
    generator: torch.Generator | None = None,
) -> Recommendation:
    """Fit and measure every map of the catalogue on this data; choose the best; say why.

    Shapes:     q [*heads, n, d], k [*heads, n, d], v [*heads, n, dv]: one map per head.
    Arguments:  num_features: the budget m; calibration: (queries, keys) to fit on, leading
                dimensions ending in *heads. Without it, even positions calibrate and odd ones
                evaluate, so that no map is measured on what it was fitted to. candidates: names,
                "name@projection" to override a projection; all maps that keep the kernel unless
                given. unbiased_only: leave biased maps out. A biased map (`calibrated`) is chosen by
                its measured error like any other, and the reasons say what kind of error it has.
    Returns:    Recommendation; `choice` is None if nothing beats averaging the values.
    Raises:     ValueError for shapes, NaN, fewer than 4 positions; UnknownNameError for names.
    Cost:       the maps tried times num_redraws exact attentions, and the fits.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> q, k, v = (0.5 * torch.randn(2, 64, 8, generator=g) for _ in range(3))
        >>> k = k + 1.0                                       # keys with a mean, as in real heads
        >>> rec = recommend(3 * q, k, v, 128, candidates=["positive", "data-aware"], generator=g)
        >>> rec.choice
        'data-aware'
    """
    data = Data.of(q, k, v, calibration)
    labels = all_names() if candidates is None else candidates
    table = compare(
        data,
        labels,
        [num_features],
        num_redraws=num_redraws,
        unbiased_only=unbiased_only,
        generator=generator,
    )
    return choose(table, data, num_features)


def choose(table: Comparison, data: Data, num_features: int) -> Recommendation:
    """The recommendation that a finished comparison supports at one of its budgets.

    Raises:     ValueError if the table has no row at that budget.
    """
    tried = table.at(num_features)
    if not tried:
        raise ValueError(f"the comparison has no row with num_features={num_features}.")
    chosen = next((c for c in tried if c.report.beats_trivial), None)
    summary = describe(data.q, data.k, batch_shape=data.batch_shape)
    return Recommendation(
        choice=None if chosen is None else chosen.name,
        feature_map=None if chosen is None else chosen.feature_map,
        candidates=tried,
        skipped=table.skipped,
        summary=summary,
        trivial_output_error=table.trivial_output_error,
        reasons=_reasons(tried, chosen, table.trivial_output_error, summary, num_features),
    )


def _reasons(
    tried: list[Candidate],
    chosen: Candidate | None,
    trivial: float,
    summary: DataSummary,
    num_features: int,
) -> list[str]:
    """Sentences that rest on measured numbers only."""
    best = tried[0]
    reasons = []
    if chosen is not None and chosen is not best:
        reasons.append(
            f"{chosen.name} is the best that is shown to beat averaging the values ({trivial:.3f}) at"
            f" {num_features} features: {chosen.report.output_error}. {best.name} measures"
            f" {best.report.output_error}, an interval that reaches above it."
        )
    elif chosen is not None:
        reasons.append(
            f"{best.name} has the lowest attention output error at {num_features} features:"
            f" {best.report.output_error}, against {trivial:.3f} for averaging the values."
        )
    elif best.output_error < trivial:
        reasons.append(
            f"Nothing is shown to beat averaging the values ({trivial:.3f}) at {num_features} features:"
            f" the best, {best.name}, measures {best.report.output_error}, an interval that reaches"
            " above it. More redraws may decide; more features would help."
        )
    else:
        reasons.append(
            f"Nothing beats averaging the values ({trivial:.3f}) at {num_features} features: the"
            f" best, {best.name}, measures {best.report.output_error}. Keep exact attention, or raise"
            " num_features."
        )
    if len(tried) > 1:
        second = tried[1]
        ours, theirs = best.report.output_error, second.report.output_error
        assert ours is not None
        assert theirs is not None
        if ours.high >= theirs.low:
            reasons.append(
                f"{second.name} ({second.output_error:.3f}) is within the intervals: the order of"
                " the two is not certain."
            )
    reasons += _bias(tried, chosen or best)
    losers = [c.name for c in tried if not c.output_error < trivial]  # NaN too
    if losers and chosen is not None:
        reasons.append("No better than averaging the values: " + ", ".join(losers) + ".")
    reasons += str(summary).splitlines()
    shares = {c.name: c.report.nonpositive_denominators.value for c in tried}
    reasons += [
        f"{name} gives denominators <= 0 on {share:.1%} of the rows."
        for name, share in shares.items()
        if share > 0
    ]
    return reasons


def _bias(tried: list[Candidate], named: Candidate) -> list[str]:
    """What kind of error a biased map has, and the best map without it."""
    if named.unbiased:
        return []
    if named.report.kernel_error.redraws == 0:
        kind = (
            "is biased: fitted to calibration data; its error does not average out, and is not"
            " bounded on other data"
        )
    else:
        kind = "is slightly biased: a small part of its error does not average out"
    unbiased = next((c for c in tried if c.unbiased), None)
    if unbiased is None:
        return [f"{named.name} {kind}."]
    return [
        f"{named.name} {kind}. The best unbiased map is {unbiased.name}:"
        f" {unbiased.report.output_error}."
    ]
