"""Logistic regression with K classes by L-BFGS on streamed gradients, preconditioned once.

    H(w) <= 1/2 (I - 11'/K) x G   for all w (Böhning), equal to 1/K (I - 11'/K) x G at w = 0
    u = L' w,   L L' = G_c / K + alpha I,   G_c the centred Gram matrix

In the coordinates u the Hessian is the identity at the start. G is summed once, at n m^2; every pass
after it costs n m (d + K), a small part of that.

Reference:  Böhning, Multinomial logistic regression algorithm, Annals of the Institute of Statistical
            Mathematics, 1992; Liu and Nocedal, On the limited memory BFGS method, 1989.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

from bochner.gram.logistic import LogisticSums
from bochner.gram.newton import LogisticFit, Penalty, indefinite
from bochner.gram.statistics import GramStatistics

Float64 = NDArray[np.float64]
_MEMORY = 20  # pairs of vectors that L-BFGS keeps: 40 (m + 1) K numbers


def majorised(
    sums: Callable[[Float64], LogisticSums],
    statistics: GramStatistics,
    penalty: Penalty,
    *,
    num_classes: int,
    tol: float,
    max_iter: int,
) -> LogisticFit:
    """Minimise sum_i v_i l_i + alpha/2 |w|^2 over [m + 1, K] coefficients; they sum to 0 over classes.

    Arguments:  sums: one pass over the rows at given coefficients, without curvature; statistics: the
                Gram matrix of the same rows and weights.
    Stops:      when |dJ/du|^2 / 2, what the quadratic model of the start would gain, is at most
                tol * J.
    Raises:     PrecisionError if G_c / K + alpha I is not positive definite.
    Cost:       m^3/3 once and K m^2 per pass, beside the passes themselves, some tens of them.
    """
    coordinates = _Coordinates.of(statistics, penalty, num_classes)
    passes = 0
    latest: dict[str, float] = {}

    def objective(u: Float64) -> tuple[float, Float64]:
        nonlocal passes
        passes += 1
        point = coordinates.coefficients(u)
        here = sums(point)
        value = here.loss + penalty.value(point)
        slope = coordinates.slope(here.gradient + penalty.gradient(point))
        latest["value"], latest["gain"] = value, 0.5 * float(slope @ slope)
        return value, slope

    def done(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        if latest["gain"] <= tol * abs(latest["value"]):
            raise StopIteration

    start = np.zeros(coordinates.size)
    value, slope = objective(start)
    if 0.5 * float(slope @ slope) <= tol * abs(value):
        return LogisticFit(coordinates.coefficients(start), value, 1, passes, True)
    found = scipy.optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=done,
        options={"maxcor": _MEMORY, "maxiter": max_iter, "ftol": 0.0, "gtol": 0.0, "maxfun": 10**9},
    )
    # a line search that finds nothing lower has reached the rounding of the objective
    ended = found.status == 99 or (found.status == 2 and latest["gain"] <= 1e-10 * abs(found.fun))
    return LogisticFit(
        coordinates.coefficients(found.x), float(found.fun), max(1, found.nit), passes, bool(ended)
    )


class _Coordinates:
    """u [K (m + 1)] <-> (w, b) [m + 1, K]: f = (phi - mean)' w + c, w = L^-T U, c = U_c / sqrt(v/K)."""

    def __init__(self, factor: Float64, mean: Float64, scale: float, num_classes: int) -> None:
        self.factor, self.mean, self.scale, self.num_classes = factor, mean, scale, num_classes
        self.rows = len(mean) + (1 if scale > 0 else 0)

    @classmethod
    def of(cls, statistics: GramStatistics, penalty: Penalty, num_classes: int) -> _Coordinates:
        gram, mean, scale = statistics.gram, np.zeros(statistics.num_features), 0.0
        if penalty.fit_intercept:
            gram = statistics.centred().gram
            mean = statistics.feature_sum / statistics.weight
            scale = (statistics.weight / num_classes) ** 0.5
        metric = gram / num_classes
        metric[np.diag_indices_from(metric)] += penalty.alpha
        try:
            factor = scipy.linalg.cholesky(metric, lower=True, overwrite_a=True)
        except scipy.linalg.LinAlgError as error:
            raise indefinite(penalty.alpha) from error
        return cls(factor, mean, scale, num_classes)

    @property
    def size(self) -> int:
        return self.rows * self.num_classes

    def coefficients(self, u: Float64) -> Float64:
        shaped = u.reshape(self.rows, self.num_classes)
        count = len(self.mean)
        out = np.zeros((count + 1, self.num_classes))
        out[:count] = scipy.linalg.solve_triangular(
            self.factor, shaped[:count], lower=True, trans="T"
        )
        if self.scale > 0:
            out[count] = shaped[count] / self.scale - self.mean @ out[:count]
        return out

    def slope(self, gradient: Float64) -> Float64:
        count = len(self.mean)
        out = np.zeros((self.rows, self.num_classes))
        inner = gradient[:count]
        if self.scale > 0:
            inner = inner - np.outer(self.mean, gradient[count])
            out[count] = gradient[count] / self.scale
        out[:count] = scipy.linalg.solve_triangular(self.factor, inner, lower=True)
        return out.ravel()
