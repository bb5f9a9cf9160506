"""Ridge regression from the sums, and how small a penalty their precision can bear.

    w = (G + alpha I)^-1 h,     with means taken off first if there is an intercept

There is no jitter: alpha I is the only thing ever added to G. Rounding of *features* leaves G positive
semidefinite, rounding of *products* does not: float32 blocks shift eigenvalues by some 1e-9 of the largest,
and by 2.6e-8 where blocks are few (measured; docs/theory.md). A penalty that leaves G + alpha I with a
condition number above what its sums can bear is refused, not answered with a clipped or wildly amplified
solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, eigsh

from bochner.gram.statistics import GramStatistics, Matrix, Precision

_ROUNDING_BORNE = 0.25  # of the penalty
FLOORS = {Precision.SINGLE: 1e-8, Precision.DOUBLE: 1e-14}
"""Smallest eigenvalue of G + alpha I over the largest of G, by what G was multiplied in."""


class PrecisionError(ValueError):
    """The penalty is too small for the precision in which the sums were taken."""


@dataclass(frozen=True)
class RidgeSolution:
    """Weights of a linear model on features: y = phi(x) . coef + intercept.

    Shapes:     coef [m, k], intercept [k].
    """

    coef: Matrix
    intercept: Matrix


def largest_eigenvalue(gram: Matrix) -> float:
    """lambda_max of a symmetric positive semidefinite matrix, to 1 %."""
    if len(gram) <= 64:
        return max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)
    start = np.ones(len(gram))  # eigsh's own start is random
    return max(float(eigsh(gram, k=1, v0=start, tol=0.01, return_eigenvectors=False)[0]), 0.0)


def _smallest_eigenvalue(matrix: Matrix, factor: tuple[Matrix, bool]) -> float:
    """lambda_min of a positive definite matrix from its Cholesky factor, to some percent."""
    size = len(matrix)
    if size <= 64:
        return float(np.linalg.eigvalsh(matrix)[0])
    inverse = LinearOperator(
        (size, size), matvec=lambda v: linalg.cho_solve(factor, v, check_finite=False), dtype=float
    )
    start = np.random.default_rng(0).normal(size=size)
    largest = eigsh(inverse, k=1, ncv=10, v0=start, tol=0.02, return_eigenvectors=False)
    return float(1.0 / largest[0])


def lowest_alpha(statistics: GramStatistics) -> float:
    """The smallest penalty that the sums can bear whatever the smallest eigenvalue of G is.

        single   1e-8 lambda_max(G)          double   1e-14 lambda_max(G)

    Cost:       some products of G with a vector.
    """
    return FLOORS[statistics.precision] * largest_eigenvalue(statistics.gram)


def check_alpha(statistics: GramStatistics, alpha: float, smallest: float) -> None:
    """Check a penalty against the precision of the sums; `smallest` is the smallest eigenvalue of G.

    G + alpha I has none below alpha if G is exact: what is missing there is rounding, of which a quarter
    of the penalty is borne. (Float32 sums of one or two blocks have shown -2.6e-8 of the largest.)

    Raises:     PrecisionError for a penalty that is too small; ValueError for one that is no penalty.
    """
    if not (np.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha={alpha} must be a finite number, not negative.")
    lowest = lowest_alpha(statistics)
    rounding = max(-smallest, 0.0)
    if alpha + smallest < 0.98 * lowest or alpha < rounding / _ROUNDING_BORNE:
        raise precision_error(statistics, alpha, max(lowest, rounding / _ROUNDING_BORNE))


def precision_error(statistics: GramStatistics, alpha: float, lowest: float) -> PrecisionError:
    """What to do about a penalty below `lowest`."""
    single = statistics.precision is Precision.SINGLE
    remedy = "take the sums in float64 (precision='double')" if single else "use fewer features"
    return PrecisionError(
        f"alpha={alpha:.3g} is below {lowest:.3g}, the smallest penalty that sums taken in"
        f" {'float32' if single else 'float64'} can bear with this data"
        f" (at least {FLOORS[statistics.precision]:g} of their largest eigenvalue);"
        f" use a larger alpha, or {remedy}."
    )


def ridge(statistics: GramStatistics, alpha: float, *, fit_intercept: bool = True) -> RidgeSolution:
    """The minimiser of |W^1/2 (Y - Phi w - b)|^2 + alpha |w|^2.

    Numerics:   Cholesky in float64; relative error about eps cond(G + alpha I), eps = 6e-9 / sqrt(n) ..
                6e-8 for float32 products.
    Cost:       m^3 / 3 operations; one more matrix m x m.
    Raises:     PrecisionError if G + alpha I is not as well conditioned as `check_alpha` wants it.
    Example:
        >>> s = GramStatistics.of(np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [4.0], [6.0]]))
        >>> solution = ridge(s, 0.0)
        >>> round(float(solution.coef[0, 0]), 6), abs(round(float(solution.intercept[0]), 6))
        (2.0, 0.0)
    """
    if not (np.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha={alpha} must be a finite number, not negative.")
    centred = statistics.centred() if fit_intercept else statistics
    matrix = centred.gram.copy()
    matrix.flat[:: len(matrix) + 1] += alpha
    try:
        factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
    except linalg.LinAlgError as error:
        raise precision_error(statistics, alpha, lowest_alpha(statistics)) from error
    check_alpha(statistics, alpha, _smallest_eigenvalue(matrix, factor) - alpha)
    coef = linalg.cho_solve(factor, centred.cross, check_finite=False)
    return RidgeSolution(coef, intercept_of(statistics, coef, fit_intercept=fit_intercept))


def intercept_of(statistics: GramStatistics, coef: Matrix, *, fit_intercept: bool = True) -> Matrix:
    """The intercepts [*p, k] that go with weights [*p, m, k]: mean target less mean prediction."""
    if not fit_intercept:
        return np.zeros((*coef.shape[:-2], coef.shape[-1]))
    mean = statistics.feature_sum / statistics.weight
    intercept: Matrix = statistics.target_sum / statistics.weight - mean @ coef
    return intercept
