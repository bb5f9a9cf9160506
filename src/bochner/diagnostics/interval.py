"""A random result with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.stats
import torch
from torch import Tensor


def median(values: Tensor) -> Tensor:
    """Median over the last dimension; of an even number the mean of the middle two.

    (torch.median takes the lower one: of two heads, the better.)

    Example:
        >>> float(median(torch.tensor([1.0, 4.0, 2.0, 9.0])))
        3.0
    """
    ordered, count = values.sort(dim=-1).values, values.shape[-1]
    middle = 0.5 * (ordered[..., (count - 1) // 2] + ordered[..., count // 2])
    return torch.where(values.isnan().any(dim=-1), torch.nan, middle)


@dataclass(frozen=True)
class Interval:
    """Mean over independent redraws, with a Student-t confidence interval for it.

    One redraw gives no interval: low = high = value and redraws = 1 says so. redraws = 0: nothing is
    drawn, and the value is the same every time (on these data: an interval never speaks of others).
    An infinite redraw makes value and high infinite; low is then the smallest redraw.

    Example:
        >>> import torch
        >>> print(Interval.over(torch.tensor([1.0, 1.2, 0.8, 1.0])))
        1.000 [0.740, 1.260]
    """

    value: float
    low: float
    high: float
    redraws: int
    level: float = 0.95

    @classmethod
    def over(cls, samples: Tensor, level: float = 0.95) -> Interval:
        """From one number per redraw, [redraws]."""
        count = samples.numel()
        mean = float(samples.double().mean())
        if count < 2:
            return cls(mean, mean, mean, count, level)
        if not math.isfinite(mean):
            return cls(mean, float(samples.min()), mean, count, level)
        stderr = float(samples.double().std()) / count**0.5
        half = float(scipy.stats.t.ppf(0.5 + level / 2, count - 1)) * stderr
        return cls(mean, mean - half, mean + half, count, level)

    @classmethod
    def fixed(cls, value: float) -> Interval:
        """Of a map that draws nothing: a point.

        Example:
            >>> print(Interval.fixed(0.19))
            0.190 (nothing is drawn)
        """
        return cls(value, value, value, 0)

    def __str__(self) -> str:
        if self.redraws < 1:
            return f"{self.value:.3f} (nothing is drawn)"
        if self.redraws < 2:
            return f"{self.value:.3f} (one redraw: no interval)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
