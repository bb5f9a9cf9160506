"""Many feature maps on one set of data, at several budgets: the table behind every choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.catalog import make, maps_of, spec
from bochner.diagnostics.exact import check_inputs
from bochner.diagnostics.measure import ErrorReport, measure
from bochner.diagnostics.predict import Prediction, predict
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.kernels import Softmax
from bochner.projections import projection_from_name
from bochner.request import fresh_generator
from bochner.statistics import check_leading
from bochner.validation import check_count, check_finite, check_points, last_dimension


@dataclass(frozen=True)
class Candidate:
    """One row: a map at one budget, how it was measured, and what theory said.

    prediction:     None if it was not asked for, or if the map has no closed form.
    num_features:   the budget m that was asked for.
    """

    name: str
    feature_map: FeatureMap
    report: ErrorReport
    prediction: Prediction | None
    num_features: int

    @property
    def columns(self) -> int:
        """Columns in use: the largest number within the budget that the map can be made with."""
        return self.report.num_features

    @property
    def unbiased(self) -> bool:
        """Whether the map's error averages out over draws (`FeatureMap.unbiased`)."""
        return self.feature_map.unbiased

    @property
    def label(self) -> str:
        """The name as tables print it, biased maps marked."""
        return self.name if self.unbiased else f"{self.name} (biased)"

    @property
    def output_error(self) -> float:
        """Measured attention output error."""
        assert self.report.output_error is not None
        return self.report.output_error.value


@dataclass(frozen=True)
class Data:
    """Data to evaluate on, and to calibrate on.

    Shapes:     q, k, v [*b, *batch_shape, n, d]; calibration (queries, keys)
                [*b', *batch_shape, n', d]; one map per element of batch_shape.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    calibration: tuple[Tensor, Tensor]
    batch_shape: tuple[int, ...]

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, calibration: tuple[Tensor, Tensor] | None = None
    ) -> Data:
        """Every leading dimension is a head. Without calibration data, even positions calibrate and
        odd ones evaluate, so that no map is measured on what it was fitted to.

        Raises:     ValueError for shapes, NaN, or fewer than 4 positions to split.
        """
        check_points("v", v, last_dimension(v))
        check_inputs(q, k, v, last_dimension(q), causal=False)
        heads = tuple(q.shape[:-2])
        if calibration is not None:
            for name, x in zip(("queries", "keys"), calibration, strict=True):
                check_points(f"calibration {name}", x, q.shape[-1])
                check_finite(f"calibration {name}", x)
                check_leading(f"calibration {name}", x, heads)
            return cls(q, k, v, calibration, heads)
        if min(q.shape[-2], k.shape[-2]) < 4:
            raise ValueError(
                f"q has length {q.shape[-2]} and k {k.shape[-2]}; splitting into calibration and"
                " evaluation needs at least 4 positions. Pass calibration=(queries, keys)."
            )
        halves = q[..., 0::2, :], k[..., 0::2, :]
        return cls(q[..., 1::2, :], k[..., 1::2, :], v[..., 1::2, :], halves, heads)


def all_names() -> list[str]:
    """Every map of the softmax kernel (trained kernels, which need training first, left out)."""
    return maps_of(Softmax())


def split_name(label: str) -> tuple[str, str | None]:
    """Split "positive@iid" into ("positive", "iid"); without @, the map's own projection (None).

    Raises:     UnknownNameError for either part.
    Example:
        >>> split_name("positive@iid")
        ('positive', 'iid')
    """
    name, _, projection = label.partition("@")
    spec(name)
    if projection:
        projection_from_name(projection)
    return name, projection or None


@dataclass(frozen=True)
class Comparison:
    """Candidates in the order asked for; skipped: label -> why it could not be tried; predicted: whether
    closed forms were asked for, so that a missing one means that theory has none."""

    candidates: list[Candidate]
    skipped: dict[str, str]
    trivial_output_error: float
    predicted: bool = False

    def at(self, num_features: int) -> list[Candidate]:
        """The candidates of one budget, lowest output error first; outputs that are not finite last."""
        rows = [c for c in self.candidates if c.num_features == num_features]
        return sorted(rows, key=lambda c: (math.isnan(c.output_error), c.output_error))


def compare(
    data: Data,
    labels: Sequence[str],
    budgets: Sequence[int],
    *,
    num_redraws: int = 4,
    predict_queries: int = 0,
    unbiased_only: bool = False,
    generator: torch.Generator | None = None,
    progress: Callable[[Iterator[tuple[str, int]], int], Iterator[tuple[str, int]]] | None = None,
) -> Comparison:
    """Fit and measure every map at every budget.

    A map that spends several columns at a time (hybrids: 8, 10, 20, ...) uses the largest number of
    columns within the budget, never more; `Candidate.columns` says how many.

    Arguments:  labels: names, with "@projection" to override a map's own; budgets: num_features;
                predict_queries: queries for the closed-form prediction of each row, 0 for none;
                unbiased_only: skip maps whose error is, or contains, a bias;
                progress: wraps the iterator of (label, budget), given its length.
    Raises:     UnknownNameError before any work; ValueError if nothing could be tried.
    Cost:       len(labels) len(budgets) num_redraws attentions of n x n'; one attention, not
                num_redraws, of maps that draw nothing.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> q, k, v = (0.5 * torch.randn(2, 64, 8, generator=g) for _ in range(3))
        >>> table = compare(Data.of(q, k, v), ["positive@iid", "gerf"], [16, 32], generator=g)
        >>> [(c.name, c.num_features) for c in table.candidates]
        [('positive@iid', 16), ('positive@iid', 32), ('gerf', 16), ('gerf', 32)]
    """
    parts = {label: split_name(label) for label in labels}
    for budget in budgets:
        check_count("num_features", budget)
    generator = fresh_generator() if generator is None else generator
    work = [(label, budget) for label in labels for budget in budgets]
    steps = iter(work) if progress is None else progress(iter(work), len(work))
    tried: list[Candidate] = []
    skipped: dict[str, str] = {}
    for label, budget in steps:
        name, projection = parts[label]
        try:
            made = make(
                name,
                dim=data.q.shape[-1],
                num_features=_within(budget, name, projection),
                projection=projection,
                batch_shape=data.batch_shape,
                generator=generator,
            )
            if unbiased_only and not made.unbiased:
                skipped[f"{label}, num_features={budget}"] = "it is biased, and unbiased_only=True."
                continue
            fitted = made.fit(*data.calibration) if isinstance(made, UnfittedMap) else made
        except ValueError as error:
            skipped[f"{label}, num_features={budget}"] = str(error)
            continue
        report = measure(
            fitted, data.q, data.k, data.v, num_redraws=num_redraws, generator=generator
        )
        predicted = None
        if predict_queries:
            predicted = predict(fitted, data.q, data.k, data.v, num_queries=predict_queries)
        tried.append(Candidate(label, fitted, report, predicted, budget))
    if not tried:
        raise ValueError(f"no feature map could be tried: {skipped}")
    trivial = tried[0].report.trivial_output_error
    assert trivial is not None
    return Comparison(tried, skipped, trivial, predicted=predict_queries > 0)


def _within(budget: int, name: str, projection: str | None) -> int:
    """The largest num_features up to the budget that suits the map; the budget itself if none does."""
    coupling = None if projection is None else projection_from_name(projection)
    unit = spec(name).smallest_budget(coupling)
    return budget // unit * unit or budget
