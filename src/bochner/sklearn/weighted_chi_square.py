"""Tail of a weighted sum of chi-squares: the law of a two-sample statistic when the samples agree.

    Q = sum_j w_j z_j^2,  z ~ N(0, I),     P(Q > x) = 1/(2 pi i) int M(t) exp(-t x) / t dt,
    M(t) = prod_j (1 - 2 w_j t)^(-1/2)

The integral runs along a parabola through the saddle point of the integrand that opens to the right,
around the branch cuts of M: the integrand falls off exponentially on it, so that the trapezoidal rule
converges geometrically, and the result keeps its *relative* accuracy however small it is.

Reference:  Rice, Distribution of quadratic forms in normal random variables, 1980 (the contour through
            the saddle point); Imhof, Computing the distribution of quadratic forms, 1961 (the integral).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

_NEGLIGIBLE = 45.0  # exp(-45) = 3e-20 of the largest term: below float64's rounding
_MOST_HALVINGS = 12


def upper_tail(weights: NDArray[np.floating[Any]], x: float) -> float:
    """P(sum_j w_j z_j^2 > x) for independent standard normal z.

    Arguments:  weights: [m], none negative, one at least positive; x: where the tail begins.
    Numerics:   relative error below 1e-10, also of tails as small as 1e-150.
    Cost:       O(100 m).
    Raises:     ValueError for a negative weight, or if all are 0.
    Example:
        >>> round(upper_tail(np.ones(1), 3.841458820694124), 6)   # the chi-square with one degree
        0.05
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not np.all(weights >= 0) or not np.any(weights > 0):
        raise ValueError(
            f"weights must be a vector of numbers >= 0, one at least > 0; got {weights!r}."
        )
    if x <= 0:
        return 1.0
    largest = float(weights.max())
    weights, x = weights[weights > 0] / largest, x / largest
    if x < weights.sum():  # left of the mean the contour passes left of the pole: 1 - P(Q <= x)
        return 1.0 - _contour_integral(weights, x, -1.0)
    return _contour_integral(weights, x, 1.0)


def upper_quantile(weights: NDArray[np.floating[Any]], level: float) -> float:
    """The x with P(sum_j w_j z_j^2 > x) = level.

    Raises:     ValueError for a level outside (0, 1), or weights as in `upper_tail`.
    Example:
        >>> round(upper_quantile(np.ones(1), 0.05), 4)
        3.8415
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, for example 0.05.")
    mean = float(np.sum(weights))
    low, high = mean, mean
    while upper_tail(weights, high) > level:
        high *= 2.0
    while upper_tail(weights, low) < level:
        low *= 0.5
    return float(brentq(lambda x: upper_tail(weights, x) - level, low, high, rtol=1e-12))


def _contour_integral(weights: NDArray[np.floating[Any]], x: float, side: float) -> float:
    """P(Q > x) along a parabola that crosses the real axis right of the pole at 0 (side 1), or
    P(Q <= x) left of it (side -1); the largest weight is 1."""
    saddle = _saddle_point(weights, x, side)
    tilted = weights / (1.0 - 2.0 * saddle * weights)
    second = 2.0 * np.sum(tilted**2) + 1.0 / saddle**2
    third = 8.0 * np.sum(tilted**3) - 2.0 / saddle**3
    width = 1.0 / math.sqrt(second)
    bend = max(third / (6.0 * second), 0.1 / width)  # the path of steepest descent, if to the right

    def exponent(t: NDArray[Any]) -> NDArray[np.complex128]:
        logs = np.log1p(-2.0 * np.multiply.outer(t, weights)).sum(axis=-1)
        return np.asarray(-0.5 * logs - t * x - np.log(side * t))

    peak = float(exponent(np.array([complex(saddle)]))[0].real)

    def half_sum(nodes: NDArray[Any]) -> float:
        """The integrand over exp(peak), summed at the nodes until it is negligible."""
        total = 0.0
        for part in np.array_split(nodes, math.ceil(nodes.size / 64)):
            v = part * width
            terms = exponent(saddle + 1j * v + bend * v**2) - peak
            total += float((np.exp(terms) * width * (1.0 - 2j * bend * v)).real.sum())
            if terms[-1].real < -_NEGLIGIBLE:
                return total
        raise ArithmeticError(f"the tail of {weights.size} weights at x={x} did not converge.")

    step, last = 0.5, math.inf
    for _ in range(_MOST_HALVINGS):
        value = step / math.pi * (0.5 * width + half_sum(step * np.arange(1, 1 << 14)))
        if abs(value - last) <= 1e-11 * abs(value):
            return value * math.exp(peak)
        step, last = 0.5 * step, value
    raise ArithmeticError(f"the tail of {weights.size} weights at x={x} did not converge.")


def _saddle_point(weights: NDArray[np.floating[Any]], x: float, side: float) -> float:
    """Where log M(t) - t x - log |t| is smallest, between 0 and the first branch point, or below 0."""

    def slope(t: float) -> float:
        return float(np.sum(weights / (1.0 - 2.0 * t * weights))) - x - 1.0 / t

    if side > 0:
        return float(brentq(slope, 0.5e-15, 0.5 * (1.0 - 1e-15), rtol=1e-14))
    return float(brentq(slope, -(weights.size + 2.0) / x, -1e-15 / x, rtol=1e-14))
