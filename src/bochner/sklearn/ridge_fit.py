"""Ridge regression on streamed features: the precision rule and the choice of the penalty, once for all.

    float32 blocks, unless alpha < 1e-8 lambda_max(G): then the sums are taken again in float64

Up to one block of rows float64 costs nothing that anybody would notice, and is used at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bochner.gram import (
    BlockFeatures,
    GramStatistics,
    Precision,
    PrecisionError,
    RidgeSolution,
    Spectrum,
    accumulate,
    ridge,
)
from bochner.gram.grid import BLOCK_ROWS
from bochner.gram.rows import Progress

Matrix = NDArray[np.float64]
DTYPES: dict[Precision, type[np.floating[Any]]] = {
    Precision.SINGLE: np.float32,
    Precision.DOUBLE: np.float64,
}
CRITERIA = ("gcv", "loo")
_PATH = 25  # penalties of a path by default
_LOWEST = 1e-7  # of the trace of G: what float32 sums bear, and a rounding of 1e-9 in float64
_RESIDUAL = {
    Precision.SINGLE: 1e-5,
    Precision.DOUBLE: 1e-11,
}  # of the targets' squares: above rounding
CONSTANT = 1e-26  # squares about the mean over squares: no more than rounding of the mean


@dataclass(frozen=True)
class Rows:
    """What is fitted to.

    Shapes:     X [n, d] dense or CSR, targets [n, k] float64, weight [n] float64 or None; or of Dask.
    """

    X: Any
    targets: Any
    weight: Any = None

    def statistics(
        self, features: BlockFeatures, precision: Precision, progress: Progress | None = None
    ) -> GramStatistics:
        """The sums over all rows."""
        return accumulate(
            features,
            self.X,
            self.targets,
            sample_weight=self.weight,
            precision=precision,
            progress=progress,
        )


@dataclass(frozen=True)
class Chosen:
    """A solution with its penalty; of a path also all its penalties [a] and what they scored [a]."""

    solution: RidgeSolution
    alpha: float
    alphas: Matrix | None = None
    criterion: Matrix | None = None


@dataclass(frozen=True)
class RidgeFit:
    """Features, sums over the rows, and the solution."""

    features: BlockFeatures
    statistics: GramStatistics
    chosen: Chosen


def attempts(precision: str, num_rows: int) -> tuple[Precision, ...]:
    """The precisions to try, in order, for the parameter "auto", "single" or "double".

    Example:
        >>> [p.name for p in attempts("auto", 1_000_000)], [p.name for p in attempts("auto", 100)]
        (['SINGLE', 'DOUBLE'], ['DOUBLE'])
    """
    if precision == "auto":
        one_block = num_rows <= BLOCK_ROWS
        return (Precision.DOUBLE,) if one_block else (Precision.SINGLE, Precision.DOUBLE)
    if precision in ("single", "double"):
        return (Precision.SINGLE if precision == "single" else Precision.DOUBLE,)
    raise ValueError(f"precision={precision!r} must be 'auto', 'single' or 'double'.")


def default_alphas(statistics: GramStatistics, count: int = _PATH) -> Matrix:
    """Penalties from 1e-7 to 1 times the trace of G, evenly in their logarithms.

    (The largest eigenvalue is at most the trace.)
    """
    trace = float(np.trace(statistics.gram)) or 1.0
    return np.geomspace(_LOWEST * trace, trace, count)


def fit_ridge(
    rows: Rows,
    features: BlockFeatures,
    choose: Callable[[BlockFeatures, GramStatistics], Chosen],
    *,
    precisions: tuple[Precision, ...],
    progress: Progress | None = None,
) -> RidgeFit:
    """Take the sums in the first precision that can bear the penalties.

    Raises:     PrecisionError if none can.
    """
    for precision in precisions:
        features = features.with_dtype(DTYPES[precision])
        statistics = rows.statistics(features, precision, progress)
        try:
            return RidgeFit(features, statistics, choose(features, statistics))
        except PrecisionError:
            if precision is precisions[-1]:
                raise
    raise AssertionError("precisions is empty")


def choose_alpha(
    alpha: float | str,
    alphas: Any,
    rows: Rows | None,
    features: BlockFeatures,
    statistics: GramStatistics,
    *,
    fit_intercept: bool,
) -> Chosen:
    """The solution for a number, or for the best of a path by "gcv" or "loo".

    Arguments:  rows: what "loo" passes over once more; None where they are gone (`partial_fit`).
    Ties:       the largest of the best penalties; of all if no residual is more than rounding.
    """
    if not isinstance(alpha, str):
        return Chosen(ridge(statistics, float(alpha), fit_intercept=fit_intercept), float(alpha))
    path = default_alphas(statistics) if alphas is None else np.asarray(alphas, dtype=np.float64)
    spectrum = Spectrum.of(statistics, fit_intercept=fit_intercept)
    if alpha == "gcv":
        scores = _trusted_gcv(spectrum, path)
    elif rows is None:
        raise ValueError(
            "alpha='loo' passes over the rows twice, and partial_fit sees them once; use alpha='gcv' or"
            " a number, or fit."
        )
    else:
        scores = spectrum.leave_one_out(path, features, rows.X, rows.targets, rows.weight)
    criterion = scores.mean(axis=1)
    best = float(path[criterion == criterion.min()].max())
    solution = RidgeSolution(spectrum.coef([best])[0], spectrum.intercept([best])[0])
    return Chosen(solution, best, path, criterion)


def _trusted_gcv(spectrum: Spectrum, path: Matrix) -> Matrix:
    """Generalised cross-validation [a, k]; inf where the residual is no more than rounding of the sums, 0 for
    a constant target, which any penalty fits.

    Raises:     PrecisionError where float64 sums would know the residual and float32 sums do not.
    """
    statistics, scores = spectrum.statistics, spectrum.gcv(path)
    centred = statistics.centred() if spectrum.fit_intercept else statistics
    total = np.diag(centred.target_products)
    varies = total > CONSTANT * np.diag(statistics.target_products)
    known = spectrum.residual_squares(path) > _RESIDUAL[statistics.precision] * total
    known |= ~varies
    if statistics.precision is Precision.SINGLE and not known.all():
        raise PrecisionError(
            "residuals of some penalties are below 1e-5 of the targets' squares, which float32 sums cannot"
            " tell from 0; give larger alphas, or take the sums in float64 (precision='double')."
        )
    return np.where(varies, np.where(known, scores, np.inf), 0.0)


def check_alpha_parameter(alpha: Any) -> None:
    """Raise unless alpha is a number >= 0, "gcv" or "loo"."""
    if isinstance(alpha, str):
        if alpha not in CRITERIA:
            raise ValueError(f"alpha={alpha!r} must be a number, 'gcv' or 'loo'.")
    elif isinstance(alpha, bool) or not isinstance(alpha, Real) or not float(alpha) >= 0:
        raise ValueError(f"alpha={alpha!r} must be a number >= 0, 'gcv' or 'loo'.")
