"""How sure a statistical test is: one critical value for the whole suite, and what it could see.

    z = (estimate - truth) / max(standard error, rounding),   rejected if |z| > z_crit
    z_crit = Phi^-1(1 - alpha / (2 N)),   alpha = 1e-6 over all N comparisons (Bonferroni)

Sample sizes are fixed beforehand; nothing is repeated and nothing stops early. A comparison also says
the smallest deviation that it would have rejected with probability 99 %, and one whose standard error
is above 2 % of the truth is refused as underpowered: it would pass whatever came.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

FAMILY_ALPHA = 1e-6
"""Probability that a correct library fails any statistical test of its suite."""
COMPARISONS = 16_000
"""Comparisons that share FAMILY_ALPHA. The suite makes about 3,900 (tests/testing/test_contract.py bounds
their number); the surplus pays for the skewness of means of heavy-tailed features."""
POWER = 0.99
LARGEST_STDERR = 0.02
"""Relative standard error above which a comparison is refused as underpowered."""
ROUNDING = 1e-12
"""Floor of relative standard errors: estimates without variance still round (float64)."""


def critical_z(comparisons: int = COMPARISONS) -> float:
    """z beyond which a comparison is rejected.

    Example:
        >>> round(critical_z(), 2), round(critical_z(1), 2)
        (6.54, 4.89)
    """
    return -NormalDist().inv_cdf(FAMILY_ALPHA / (2 * comparisons))


def smallest_seen(stderr: float) -> float:
    """The smallest deviation rejected with probability POWER, for a standard error."""
    return (critical_z() + NormalDist().inv_cdf(POWER)) * stderr


@dataclass(frozen=True)
class Deviation:
    """A sample against its truth, relative to it: the deviation, its standard error, z."""

    value: float
    stderr: float

    @property
    def z(self) -> float:
        """Deviation in standard errors."""
        return self.value / self.stderr

    @property
    def smallest(self) -> float:
        """The smallest deviation that this sample would have shown."""
        return smallest_seen(self.stderr)

    @property
    def rejected(self) -> bool:
        """Whether |z| exceeds the critical value of the suite (or is NaN)."""
        return not abs(self.z) <= critical_z()

    @property
    def underpowered(self) -> bool:
        """Whether the standard error is too large (or NaN) for a pass to mean anything."""
        return not self.stderr <= LARGEST_STDERR


def mean_deviation(samples: Tensor, truth: float = 1.0) -> Deviation:
    """Mean of independent samples [R] against its truth, relative to |truth|.

    Example:
        >>> d = mean_deviation(torch.tensor([0.9, 1.1, 1.0, 1.0], dtype=torch.float64))
        >>> abs(d.value) < 1e-12, round(d.stderr, 4)
        (True, 0.0408)
    """
    ratio = samples.double() / truth
    stderr = float(ratio.std()) / ratio.numel() ** 0.5
    return Deviation(float(ratio.mean()) - 1.0, max(stderr, ROUNDING))


def variance_deviation(samples: Tensor, truth: float) -> Deviation:
    """Log of the sample variance of [R] against the log of its truth.

    The logarithm takes most of the skewness out of a variance; the standard error comes from the
    sample's fourth moment (delta method), so that heavy tails widen it.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> d = variance_deviation(torch.randn(20_000, generator=g), 1.0)
        >>> d.rejected, round(d.stderr, 3)                       # sqrt(2 / R) for a normal sample
        (False, 0.01)
    """
    centred = samples.double() - samples.double().mean()
    squares = centred.square()
    variance = squares.mean()
    stderr = float(squares.std() / variance) / squares.numel() ** 0.5
    return Deviation(float(torch.log(variance / truth)), max(stderr, ROUNDING))


def covariance_deviation(first: Tensor, second: Tensor, truth: float) -> Deviation:
    """Sample covariance of two [R] minus its truth, in units of both standard deviations.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> a, b = torch.randn(2, 20_000, generator=g)
        >>> d = covariance_deviation(a, a + b, 1.0)
        >>> d.rejected, round(d.stderr, 3)
        (False, 0.009)
    """
    a, b = first.double(), second.double()
    scale = float(a.std() * b.std())
    products = (a - a.mean()) * (b - b.mean()) / scale
    stderr = float(products.std()) / products.numel() ** 0.5
    return Deviation(float(products.mean()) - truth / scale, max(stderr, ROUNDING))
