"""A random result with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import scipy.stats
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """Mean over independent redraws, with a Student-t confidence interval for it.

    One redraw gives no interval: low = high = value and redraws = 1 says so.

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
        stderr = float(samples.double().std()) / count**0.5
        half = float(scipy.stats.t.ppf(0.5 + level / 2, count - 1)) * stderr
        return cls(mean, mean - half, mean + half, count, level)

    def __str__(self) -> str:
        if self.redraws < 2:
            return f"{self.value:.3f} (one redraw: no interval)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
