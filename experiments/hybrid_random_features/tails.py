"""Fourth moments of relative errors: how many replicates it takes to see a variance.

The standard error of a sample RMSE, relatively, is sqrt((kurtosis - 1) / N) / 2. For exponential features the
kurtosis grows like exp(4 |x+y|^2) / m and more, so that no feasible sample shows the variance of a large
|x + y|; a sample kurtosis would not tell. These are the moments of independent projections. Where they are
coupled, the excess E e^4 - 3 (E e^2)^2 is taken to be the same, and the variance to be its own.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import binom

from bochner.feature_maps.gerf import optimal_a
from experiments.hybrid_random_features.sphere_maps import DIM, Base, SphereMap, Weight


def powers_of_cosh(growth: float) -> tuple[float, float, float, float]:
    """E cosh^k(u) for k = 1..4 and u ~ N(0, growth); cosines for a negative growth."""
    e = [math.exp(j * j * growth / 2) for j in range(5)]
    return e[1], (1 + e[2]) / 2, (3 * e[1] + e[3]) / 4, (3 + 4 * e[2] + e[4]) / 8


def raw_moments(base: Base, radius: float, angle: float) -> list[float]:
    """E[(Z/K)^k] for k = 1..4 of one projection (or one pair) in d = 64."""
    oscillating = base.nonlinearity.oscillating
    squared = 2 * radius**2 * (1 + (-1 if oscillating else 1) * math.cos(angle))
    phi = -squared if oscillating else squared
    wide = float(optimal_a(torch.tensor(2 * radius**2, dtype=torch.float64), DIM))
    variance = 1 - 4 * wide if base.fitted else 1.0
    moments = []
    for k in range(1, 5):
        q = k - (k - 1) / variance
        if base.nonlinearity.even or base.paired:
            exponential = powers_of_cosh(phi / q)[k - 1]
        else:
            exponential = math.exp(k * k * phi / (2 * q))
        log_factor = DIM / 2 * ((k - 1) * math.log(variance) - math.log(q)) - k * phi / 2
        moments.append(math.exp(log_factor) * exponential)
    return moments


def error_moments(base: Base, m: int, radius: float, angle: float) -> tuple[float, float]:
    """E e^2 and E e^4 of the relative error e of m independent projections."""
    _, second, third, fourth = raw_moments(base, radius, angle)
    c2, c4 = second - 1, fourth - 4 * third + 6 * second - 3
    return c2 / m, (c4 + 3 * (m - 1) * c2 * c2) / m**3


def weight_moments(weight: Weight, radius: float, angle: float) -> dict[tuple[int, int], float]:
    """E[a^i (1-a)^j] of the random weight a, for i + j in {2, 4}."""
    wanted, n = ((2, 0), (0, 2), (4, 0), (2, 2), (0, 4)), weight.n
    if weight.kind == "gaussian":
        c1, c2, c3, c4 = powers_of_cosh(-2 * radius**2 * (1 - math.cos(angle)))
        raw = [
            1.0,
            c1,
            (c2 + (n - 1) * c1**2) / n,
            (c3 + 3 * (n - 1) * c2 * c1 + (n - 1) * (n - 2) * c1**3) / n**2,
            (
                c4
                + (n - 1) * (4 * c3 * c1 + 3 * c2**2)
                + (n - 1) * (n - 2) * (6 * c2 * c1**2 + (n - 3) * c1**4)
            )
            / n**3,
        ]
        return {
            (i, j): sum((-1) ** k * math.comb(j, k) * raw[i + k] for k in range(j + 1))
            for i, j in wanted
        }
    share = angle / math.pi
    if weight.kind == "majority":
        share = 3 * share**2 * (1 - share) + share**3
    chance = [float(binom.pmf(k, n, share)) for k in range(n + 1)]
    return {
        (i, j): sum(p * (k / n) ** i * (1 - k / n) ** j for k, p in enumerate(chance))
        for i, j in wanted
    }


def excess(made: SphereMap, m: int, radius: float, angle: float) -> float:
    """E e^4 - 3 (E e^2)^2 of a map's relative error, for independent projections; `angle` in radians."""
    first = error_moments(made.first, m, radius, angle)
    if made.second is None or made.weight is None:
        return first[1] - 3 * first[0] ** 2
    second = error_moments(made.second, m, radius, angle)
    a = weight_moments(made.weight, radius, angle)
    variance = a[2, 0] * first[0] + a[0, 2] * second[0]
    fourth = a[4, 0] * first[1] + 6 * a[2, 2] * first[0] * second[0] + a[0, 4] * second[1]
    return fourth - 3 * variance**2
