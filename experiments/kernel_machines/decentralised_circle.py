"""Regression on the circle, where a rate can be known: a kernel with eigenvalues j^-2 and a target to match.

    k(x, y) = sum_j p_j cos 2 pi j (x - y),    p_j ~ j^-2, j = 1..512,    x uniform on [0, 1]
    f(x) = sum_j a_j cos 2 pi j x,             a_j ~ j^-1.55,             y = f(x) + noise

Eigenvalues p_j / 2 decay like j^(-1/gamma) with gamma = 1/2, and sum a_j^2 p_j^(-2r) is finite for r = 1/2
and no larger r to speak of: the attainable case. Random features are cosines and sines of integer
frequencies drawn from p. The risk of a fitted model is exact, by its Fourier coefficients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bochner.gram import GramStatistics

Float = NDArray[np.float64]

CAPACITY, SOURCE = 0.5, 0.5  # gamma, r
HIGHEST = 512
NOISE = 0.5
RATE = 2 * SOURCE / (2 * SOURCE + CAPACITY)  # of the excess risk, (rows of all agents)^-RATE


def steps_of_theory(rows: int) -> int:
    """t = N^(1 / (2r + gamma)), for a step size of 1 = 1 / |phi|^2.

    Example:
        >>> steps_of_theory(4096)
        256
    """
    return round(rows ** (1 / (2 * SOURCE + CAPACITY)))


def features_of_theory(rows: int) -> int:
    """m = N^((1 + gamma (2r - 1)) / (2r + gamma)), made even."""
    exponent = (1 + CAPACITY * (2 * SOURCE - 1)) / (2 * SOURCE + CAPACITY)
    return 2 * round(rows**exponent / 2)


class Circle:
    """One draw of the random frequencies, and the target.

    Arguments:  features: m, two columns for each frequency; rng: draws frequencies, rows and noise.
    """

    def __init__(self, features: int, rng: np.random.Generator) -> None:
        self.rng = rng
        frequency = np.arange(1, HIGHEST + 1)
        law = frequency**-2.0 / (frequency**-2.0).sum()
        self.frequencies = rng.choice(frequency, size=features // 2, p=law)
        amplitudes = frequency**-1.55
        self.target = amplitudes / np.sqrt((amplitudes**2).sum() / 2)  # f has variance 1

    def features(self, x: Float) -> Float:
        """Rows [n] -> features [n, m], of norm 1."""
        angles = 2 * np.pi * x[:, None] * self.frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * (
            len(self.frequencies) ** -0.5
        )

    def agent(self, rows: int) -> GramStatistics:
        """What one agent sums over its own rows."""
        x = self.rng.random(rows)
        waves = np.cos(2 * np.pi * x[:, None] * np.arange(1, HIGHEST + 1))
        y = waves @ self.target + NOISE * self.rng.standard_normal(rows)
        return GramStatistics.of(self.features(x), y[:, None])

    def excess_risk(self, coefficients: Float) -> Float:
        """Mean square of prediction less target over the circle, exact: coefficients [..., m] -> [...]."""
        scaled = coefficients * len(self.frequencies) ** -0.5
        cosines, sines = np.split(scaled, 2, axis=-1)
        total = np.zeros((2, *coefficients.shape[:-1], HIGHEST))
        for place, frequency in enumerate(self.frequencies):
            total[0, ..., frequency - 1] += cosines[..., place]
            total[1, ..., frequency - 1] += sines[..., place]
        total[0] -= self.target
        return (total**2).sum(axis=(0, -1)) / 2
