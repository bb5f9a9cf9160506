"""How far features are from the kernel on given rows, with an interval, and how many would be enough.

    rmse^2 = E (phi(x).phi(y) - K(x, y))^2,     relative error = rmse / sqrt(E K(x, y)^2),

x and y two rows drawn independently from where the data come from: K(x, x), which many maps have exactly,
does not flatter the result, and the number of rows does not change what is estimated.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bochner.diagnostics import Interval
from bochner.feature_map import FeatureMap
from bochner.gram import BlockFeatures

GROUPS = 10
"""Disjoint groups of rows whose errors are independent: nine degrees of freedom for the interval."""
GROUP_ROWS = 200
REDRAWS = 8
PAIR_ROWS = 500
"""Rows whose pairs stand for all pairs when numbers of features are compared."""


@dataclass(frozen=True)
class KernelError:
    """The error of one fitted map, this draw of it, on the law that rows come from.

    rmse:           root mean square error of a kernel value.
    relative:       rmse over the root mean square of the kernel: the relative Frobenius error of a large
                    kernel matrix.
    expected_rmse:  what theory says for the mean square over draws of such a map; None where it has no
                    closed form.
    num_rows:       rows looked at. Intervals are over disjoint groups of them: they speak of other rows
                    from the same source, for the same draw of the features.
    """

    rmse: Interval
    relative: Interval
    expected_rmse: float | None
    num_rows: int

    def __str__(self) -> str:
        expected = "" if self.expected_rmse is None else f"; over draws {self.expected_rmse:.3g}"
        return (
            f"kernel RMSE {_shown(self.rmse)}{expected}; relative {_shown(self.relative)}"
            f" (95% intervals, {self.num_rows} rows)"
        )


@dataclass(frozen=True)
class NumFeatures:
    """How many features reach an error.

    num_features:   m, for n_components.
    rmse:           measured at m over fresh draws of the map, on the pairs that m was chosen with.
    closed_form:    whether m was chosen by theory (else by these measurements).
    tol:            what was asked for.
    """

    num_features: int
    rmse: Interval
    closed_form: bool
    tol: float

    def __str__(self) -> str:
        source = "closed form" if self.closed_form else "measured"
        return (
            f"{self.num_features} features for a kernel RMSE of {self.tol:g} ({source}); at that number"
            f" {_shown(self.rmse)} over {self.rmse.redraws or 'no'} draws"
        )


class MakesFeatures(Protocol):
    """What makes features with another number of columns: a copy of an estimator, its n_components set."""

    def __call__(self, num_features: int) -> BlockFeatures:
        """Features with at least that many columns."""
        ...


def kernel_error(features: BlockFeatures, rows: Any, rng: np.random.Generator) -> KernelError:
    """Errors over pairs of two rows, in groups of rows drawn without replacement.

    Shapes:     rows [n, d], dense or CSR, n >= 4.
    Error:      intervals by Student's t over at most 10 groups of at most 200 rows.
    Cost:       O(2,000 m (d + 200)).
    Raises:     ValueError for fewer than 4 rows.
    """
    count = rows.shape[0]
    groups = min(GROUPS, count // 2)
    if groups < 2:
        raise ValueError(f"X has {count} rows; an error with an interval wants 4 or more.")
    size = min(GROUP_ROWS, count // groups)
    picked = rng.permutation(count)[: groups * size].reshape(groups, size)
    exact = features.with_dtype(np.float64)
    figures = torch.stack([_group_figures(exact, rows[np.sort(index)]) for index in picked])
    squares, kernel, expected = figures.unbind(dim=1)
    ratio = squares.mean() / kernel.mean()
    # a ratio of means, to first order, is the mean of these
    residuals = ratio + (squares - ratio * kernel) / kernel.mean()
    return KernelError(
        _root(Interval.over(squares)),
        _root(Interval.over(residuals)),
        None if expected.isnan().any() else float(expected.mean().sqrt()),
        groups * size,
    )


def suggest_num_features(
    make: MakesFeatures, rows: Any, tol: float, *, most: int, generator: torch.Generator
) -> NumFeatures:
    """The smallest number of features, within 5 %, whose root mean square error is at most tol.

    The error is that of theory where the map has a closed form, else the mean over fresh draws; what is
    fitted to data is fitted again for every number.

    Raises:     ValueError if tol is not positive, if `most` features do not reach it, or for one row.
    Cost:       some 10 maps; each O(500^2 d), or 8 draws of O(500 m (d + 500)) without a closed form.
    """
    if not (tol > 0 and math.isfinite(tol)):
        raise ValueError(f"tol={tol} must be a positive number, the root mean square error wanted.")
    if rows.shape[0] < 2:
        raise ValueError(f"X has {rows.shape[0]} row; pairs want two or more.")
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    rows = rows[np.sort(random.permutation(rows.shape[0])[:PAIR_ROWS])]
    tried: dict[int, tuple[float, BlockFeatures]] = {}

    def error(asked: int) -> tuple[int, float]:
        features = make(asked)
        points = _points(features, rows)
        expected = _expected_square(features.feature_map, points)
        if expected is None:
            expected = _squares(_redraws(features.feature_map, generator), points).mean()
        tried[features.num_features] = (math.sqrt(float(expected)), features)
        return features.num_features, tried[features.num_features][0]

    good, bad = _bracket(error, tol, most)
    while good > 1.05 * bad + 1:
        middle, found = error(round(math.sqrt(good * max(bad, 1))))
        if middle in (good, bad):
            break
        good, bad = (middle, bad) if found <= tol else (good, middle)
    features = tried[good][1]
    points = _points(features, rows)
    closed = _expected_square(features.feature_map, points) is not None
    squares = _squares(_redraws(features.feature_map, generator), points)
    fixed = not _draws(features.feature_map)
    rmse = Interval.fixed(float(squares.sqrt())) if fixed else _root(Interval.over(squares))
    return NumFeatures(good, rmse, closed, tol)


def _bracket(error: Any, tol: float, most: int) -> tuple[int, int]:
    """(m that is good enough, a smaller one that is not, or 0), by the law error ~ m^(-1/2)."""
    good, bad, asked = 0, 0, min(256, most)
    while True:
        count, found = error(asked)
        if found <= tol:
            good = count
            if bad:
                return good, bad
            # what the law says, and a little less, so that the next is likely not good enough
            asked = math.floor(0.97 * count * (found / tol) ** 2)
            if asked >= count or asked < 1:
                return good, 0
        else:
            if good:
                return good, count
            bad = count
            if asked >= most:
                raise ValueError(
                    f"tol={tol:g} is not reached by {count} features (kernel RMSE {found:.3g}); raise"
                    " max_features, or take a larger tol, a wider kernel or another map."
                )
            factor = min(max(1.01 * (found / tol) ** 2, 1.05), 8.0)
            asked = min(math.ceil(count * factor), most)


def _group_figures(features: BlockFeatures, rows: Any) -> Tensor:
    """Mean squares over pairs of two rows: [error, kernel, expected error (nan if unknown)]."""
    points = _points(features, rows)
    kernel, others = _pairs(features.feature_map, points)
    phi = torch.from_numpy(np.ascontiguousarray(features(rows)))
    expected = _expected_square(features.feature_map, points)
    return torch.stack(
        [
            (phi @ phi.T - kernel)[others].square().mean(),
            kernel[others].square().mean(),
            kernel.new_tensor(math.nan) if expected is None else expected,
        ]
    )


def _points(features: BlockFeatures, rows: Any) -> Tensor:
    """Rows as the kernel takes them, float64."""
    scaled = features.with_dtype(np.float64).scaled(rows)
    return torch.from_numpy(np.ascontiguousarray(scaled))


def _pairs(feature_map: FeatureMap, points: Tensor) -> tuple[Tensor, Tensor]:
    """Exact kernel values [n, n], and where two different rows meet."""
    return feature_map.kernel(points, points), ~torch.eye(len(points), dtype=torch.bool)


def _expected_square(feature_map: FeatureMap, points: Tensor) -> Tensor | None:
    """The mean squared error over draws, by theory."""
    variance = feature_map.relative_variance(points, points) if feature_map.unbiased else None
    if variance is None:
        return None
    kernel, others = _pairs(feature_map, points)
    return (variance * kernel.square())[others].mean()


def _draws(feature_map: FeatureMap) -> bool:
    """Whether anything is random in the map."""
    return bool(feature_map.draws() or feature_map.num_projections)


def _redraws(feature_map: FeatureMap, generator: torch.Generator) -> list[FeatureMap]:
    """Fresh draws of a map; the map itself if it draws nothing."""
    if not _draws(feature_map):
        return [feature_map]
    return [copy.deepcopy(feature_map).resample_(generator) for _ in range(REDRAWS)]


def _squares(maps: list[FeatureMap], points: Tensor) -> Tensor:
    """Mean squared error over pairs of two rows, one for each map."""
    kernel, others = _pairs(maps[0], points)
    with torch.no_grad():
        estimates = (phi.estimate(points, points) for phi in maps)
        return torch.stack([(e - kernel)[others].square().mean() for e in estimates])


def _root(square: Interval) -> Interval:
    """The interval of a root mean square; its lower end is 0 where that of the mean square is below."""
    low = math.sqrt(max(square.low, 0.0))
    return Interval(math.sqrt(square.value), low, math.sqrt(square.high), square.redraws)


def _shown(interval: Interval) -> str:
    if interval.redraws < 1:
        return f"{interval.value:.3g}"
    return f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
