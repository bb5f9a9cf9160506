"""Which feature map to take for given data, and why, in sentences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.catalog import make, spec, specs
from bochner.diagnostics.describe import DataSummary, describe
from bochner.diagnostics.exact import check_inputs
from bochner.diagnostics.measure import ErrorReport, measure
from bochner.diagnostics.predict import Prediction, predict
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.projections import Projection
from bochner.request import fresh_generator
from bochner.validation import check_count


@dataclass(frozen=True)
class Candidate:
    """One row of the table: a map, how it was measured, what theory said."""

    name: str
    feature_map: FeatureMap
    report: ErrorReport
    prediction: Prediction | None

    @property
    def output_error(self) -> float:
        """Measured attention output error."""
        assert self.report.output_error is not None
        return self.report.output_error.value


@dataclass(frozen=True)
class Recommendation:
    """The choice, its table (best first), and the reasons.

    choice:         name of the map with the lowest measured output error; None if no map beats
                    averaging the values (`candidates[0]` is still the least bad one).
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
        width = max(len(c.name) for c in self.candidates)
        rows = [f"  {c.name:<{width}}  {c.report.output_error}" for c in self.candidates]
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
    projection: str | Projection | None = None,
    num_redraws: int = 4,
    generator: torch.Generator | None = None,
) -> Recommendation:
    """Fit and measure every map of the catalogue on this data; choose the best; say why.

    Shapes:     q [*heads, n, d], k [*heads, n, d], v [*heads, n, dv]: one map per head.
    Arguments:  num_features: the budget m; calibration: (queries, keys) to fit on, leading
                dimensions ending in *heads. Without it, even positions calibrate and odd ones
                evaluate, so that no map is measured on what it was fitted to. candidates: names,
                all maps that keep the kernel unless given; projection: each map's own unless given.
    Returns:    Recommendation; `choice` is None if nothing beats averaging the values.
    Raises:     ValueError for shapes, NaN, fewer than 4 positions; UnknownNameError for names.
    Cost:       the maps tried times num_redraws exact attentions.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> q, k, v = (0.5 * torch.randn(2, 64, 8, generator=g) for _ in range(3))
        >>> k = k + 2.0 * q.mean(-2, keepdim=True) + 1.0          # keys with a mean, as in real heads
        >>> rec = recommend(3 * q, k, v, 64, candidates=["positive", "data-aware"], generator=g)
        >>> rec.choice
        'data-aware'
    """
    check_count("num_features", num_features)
    check_inputs(q, k, v, q.shape[-1], causal=False)
    names = [n for n, s in specs().items() if not s.changes_kernel] if candidates is None else candidates
    chosen = {name: spec(name) for name in names}  # unknown names fail before any work
    if calibration is None:
        if min(q.shape[-2], k.shape[-2]) < 4:
            raise ValueError(
                f"q has length {q.shape[-2]}; splitting into calibration and evaluation needs at least"
                " 4 positions. Pass calibration=(queries, keys)."
            )
        calibration = q[..., 0::2, :], k[..., 0::2, :]
        q, k, v = q[..., 1::2, :], k[..., 1::2, :], v[..., 1::2, :]
    generator = fresh_generator() if generator is None else generator
    heads = tuple(q.shape[:-2])
    tried: list[Candidate] = []
    skipped: dict[str, str] = {}
    for name in chosen:
        try:
            made = make(
                name,
                dim=q.shape[-1],
                num_features=num_features,
                projection=projection,
                batch_shape=heads,
                generator=generator,
            )
            fitted = made.fit(*calibration) if isinstance(made, UnfittedMap) else made
        except ValueError as error:
            skipped[name] = str(error)
            continue
        report = measure(fitted, q, k, v, num_redraws=num_redraws, generator=generator)
        tried.append(Candidate(name, fitted, report, predict(fitted, q, k, v, num_queries=2)))
    if not tried:
        raise ValueError(f"no candidate works with num_features={num_features}: {skipped}")
    tried.sort(key=lambda c: c.output_error)
    trivial = tried[0].report.trivial_output_error
    assert trivial is not None
    beats = bool(tried[0].report.beats_trivial)
    summary = describe(q, k)
    return Recommendation(
        choice=tried[0].name if beats else None,
        feature_map=tried[0].feature_map if beats else None,
        candidates=tried,
        skipped=skipped,
        summary=summary,
        trivial_output_error=trivial,
        reasons=_reasons(tried, trivial, summary, num_features, beats=beats),
    )


def _reasons(
    tried: list[Candidate], trivial: float, summary: DataSummary, num_features: int, *, beats: bool
) -> list[str]:
    """Sentences that rest on measured numbers only."""
    best = tried[0]
    reasons = []
    if beats:
        reasons.append(
            f"{best.name} has the lowest attention output error at {num_features} features:"
            f" {best.report.output_error}, against {trivial:.3f} for averaging the values."
        )
    else:
        reasons.append(
            f"Nothing beats averaging the values ({trivial:.3f}) at {num_features} features: the best,"
            f" {best.name}, measures {best.report.output_error}. Keep exact attention, or raise"
            " num_features."
        )
    if len(tried) > 1:
        second = tried[1]
        ours, theirs = best.report.output_error, second.report.output_error
        assert ours is not None
        assert theirs is not None
        if ours.high >= theirs.low:
            reasons.append(
                f"{second.name} ({second.output_error:.3f}) is within the intervals: the order of the"
                " two is not certain."
            )
    losers = [c.name for c in tried if c.output_error >= trivial]
    if losers and beats:
        reasons.append("No better than averaging the values: " + ", ".join(losers) + ".")
    reasons.append(str(summary))
    signed = [c for c in tried if c.report.nonpositive_denominators.value > 0]
    reasons += [
        f"{c.name} gives denominators <= 0 on {c.report.nonpositive_denominators.value:.1%} of the rows."
        for c in signed
    ]
    return reasons
