"""Newton's method for logistic regression with two classes, on streamed sums.

    objective(w, b) = sum_i v_i l(phi_i' w + b, t_i) + alpha/2 |w|^2
    w <- w - t (H + alpha I)^-1 g,      t = 1, halved until the objective falls

One pass over the rows gives the loss, the gradient g and the Hessian H, a weighted Gram matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from bochner.gram.logistic import LogisticSums
from bochner.gram.solve import PrecisionError

Float64 = NDArray[np.float64]
_HALVINGS = 30


@dataclass(frozen=True)
class Penalty:
    """alpha/2 |w|^2; the intercept, the last row, is free, or held at 0 if it is not wanted."""

    alpha: float
    fit_intercept: bool = True

    def value(self, coefficients: Float64) -> float:
        """alpha/2 |w|^2."""
        return 0.5 * self.alpha * float(np.square(coefficients[:-1]).sum())

    def gradient(self, coefficients: Float64) -> Float64:
        """alpha w, and 0 for the intercept."""
        slope = self.alpha * coefficients
        slope[-1] = 0.0
        return slope


@dataclass(frozen=True)
class LogisticFit:
    """Coefficients [m + 1, k] (the intercept last), the objective there and how it was reached.

    `converged` is False where `max_iter` ended it; `num_passes` counts passes over the rows.
    """

    coefficients: Float64
    objective: float
    num_iterations: int
    num_passes: int
    converged: bool


def newton(
    sums: Callable[[Float64, bool], LogisticSums],
    start: Float64,
    penalty: Penalty,
    *,
    tol: float,
    max_iter: int,
) -> LogisticFit:
    """Minimise by Newton's method; `sums(coefficients, curvature)` is one pass.

    Stops when half the Newton decrement, the fall that the quadratic model promises, is at most `tol`
    times the objective; that last step is still taken, and leaves an error of order tol^2.

    Raises:     PrecisionError if H + alpha I is not positive definite, or so wrong that no step descends.
    Cost:       a pass per step, 5 to 10 in all, and (m + 1)^3/3 for each.
    """
    size = len(start) if penalty.fit_intercept else len(start) - 1
    point, here = start, sums(start, True)
    objective, passes = here.loss + penalty.value(point), 1
    for iteration in range(1, max_iter + 1):
        gradient = here.gradient + penalty.gradient(point)
        step = np.zeros_like(point)
        step[:size] = _solve(here, penalty, gradient[:size])
        decrement = float((gradient[:size] * step[:size]).sum())
        last = 0.5 * decrement <= tol * objective
        length = 1.0
        for _ in range(_HALVINGS):
            candidate = point - length * step
            there = sums(candidate, not last)  # after the last step nobody asks for the Hessian
            passes += 1
            value = there.loss + penalty.value(candidate)
            if last or value <= objective - 1e-4 * length * decrement:
                break
            length *= 0.5
        else:
            raise indefinite(penalty.alpha)
        if value <= objective:  # after the last step rounding may be all that is left
            point, here, objective = candidate, there, value
        if last:
            return LogisticFit(point, objective, iteration, passes, True)
    return LogisticFit(point, objective, max_iter, passes, False)


def _solve(here: LogisticSums, penalty: Penalty, gradient: Float64) -> Float64:
    assert here.hessian is not None
    size = len(gradient)
    hessian = here.hessian[:size, :size].copy()
    count = len(here.hessian) - 1
    hessian[np.arange(count), np.arange(count)] += penalty.alpha
    try:
        factor = scipy.linalg.cho_factor(hessian, lower=True, overwrite_a=True)
    except scipy.linalg.LinAlgError as error:
        raise indefinite(penalty.alpha) from error
    return scipy.linalg.cho_solve(factor, gradient)


def indefinite(alpha: float) -> PrecisionError:
    """The error for a penalty that the precision of the Hessian cannot bear."""
    return PrecisionError(
        f"the Hessian + alpha I is not positive definite at alpha={alpha:g} in the precision in which it"
        " was summed; use a larger alpha, or take the sums in float64 (precision='double')."
    )
