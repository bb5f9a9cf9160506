"""Oracles: naive float64 loops straight from the formulas, and the suite's statistical verdicts.

`mean_is`, `variance_is` and `covariance_is` share the critical value of the contract
(bochner.testing.significance): two-sided, family-wise alpha 1e-6 over COMPARISONS = 10,000, so
|z| <= 6.47. RESERVED of these belong to the tests outside the contract (about 150), and are counted here.
They take `see`, the deviation that the comparison must be able to reject with probability 99 %; a sample
that could not see it fails.
"""

import math
from collections.abc import Sequence

import mpmath
import torch
from torch import Tensor

from bochner.testing.significance import (
    Deviation,
    covariance_deviation,
    mean_deviation,
    variance_deviation,
)

RESERVED = 1_000
made = 0


def mean_is(samples: Tensor, truth: float, *, see: float) -> None:
    """Independent samples [R] have this mean; a relative bias of `see` would have been rejected."""
    _judge("mean", mean_deviation(samples, truth), see)


def variance_is(samples: Tensor, truth: float, *, see: float) -> None:
    """Independent samples [R] have this variance; a log-ratio of `see` would have been rejected."""
    _judge("variance", variance_deviation(samples, truth), see)


def covariance_is(first: Tensor, second: Tensor, truth: float, *, see: float) -> None:
    """Independent pairs [R] have this covariance; a correlation off by `see` would be rejected."""
    _judge("covariance", covariance_deviation(first, second, truth), see)


def _judge(what: str, deviation: Deviation, see: float) -> None:
    global made
    made += 1
    assert made <= RESERVED, "more comparisons than the Bonferroni correction was made for"
    assert deviation.smallest <= see, (
        f"underpowered: a {what} off by {deviation.smallest:.3g} would pass; {see} was asked for"
    )
    assert not deviation.rejected, (
        f"{what} off by {deviation.value:.3g} ± {deviation.stderr:.2g}, z={deviation.z:.1f}"
    )


def dot(x: Sequence[float], y: Sequence[float]) -> float:
    """x . y."""
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def feature(kind: str, omega: Sequence[float], x: Sequence[float], r: int) -> list[float]:
    """Columns of one projection for exp(x.y): docs/theory.md 1."""
    u, half = dot(omega, x), 0.5 * dot(x, x)
    if kind == "positive":
        return [math.exp(u - half) / math.sqrt(r)]
    if kind == "hyperbolic":
        return [math.exp(s * u - half) / math.sqrt(2 * r) for s in (1, -1)]
    return [f(u) * math.exp(half) / math.sqrt(r) for f in (math.cos, math.sin)]


def estimate(kind: str, omega: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_j phi_j(x_a) phi_j(y_b), a loop over everything; [n, n']."""
    rows = omega.double().tolist()

    def phi(point: list[float]) -> list[float]:
        return [v for w in rows for v in feature(kind, w, point, len(rows))]

    left, right = [phi(p) for p in x.tolist()], [phi(p) for p in y.tolist()]
    return torch.tensor([[dot(a, b) for b in right] for a in left], dtype=torch.float64)


def hyp1f1(a: float, b: float, z: float) -> float:
    """Kummer's function, 30 digits."""
    with mpmath.workdps(30):
        return float(mpmath.hyp1f1(a, b, z))


def hyp0f1(b: float, z: float) -> float:
    """0F1(; b; z), 30 digits."""
    with mpmath.workdps(30):
        return float(mpmath.hyp0f1(b, z))


def hermite(nodes: int, *, dim: int) -> tuple[Tensor, Tensor]:
    """Points [nodes^dim, dim] and weights of N(0, I): exact for polynomials of degree 2 nodes - 1."""
    import numpy as np

    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.cartesian_prod(*[torch.from_numpy(points)] * dim).reshape(-1, dim)
    each = torch.from_numpy(weights / weights.sum())
    total = torch.cartesian_prod(*[each] * dim).reshape(-1, dim).prod(-1)
    return grid, total
