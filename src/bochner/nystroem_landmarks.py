"""Which points become landmarks of Nystroem features: any, those of most leverage, or centres of clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bochner.kernels import ExponentialKernel, Kernel
from bochner.landmark_points import k_means

_CLUSTERED = 12288  # points that k-means looks at
SMALLEST_RIDGE = 1e-12
"""Of leverage scores, as a part of the largest eigenvalue: data of low rank leave no tail to set it by."""


def log_cross(kernel: Kernel, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """log |K(x_i, y_j)| and signs (None if all are 1), [*b, n, n'].

    An exponential kernel is one matrix product, in float64: the logarithm cancels three large terms.
    """
    if not isinstance(kernel, ExponentialKernel):
        return kernel.signed_log(x, y)
    x, y = x.double(), y.double()
    logs = x @ y.transpose(-1, -2)
    left, right = kernel.log_point_factor(x), kernel.log_point_factor(y)
    if left is not None and right is not None:
        logs = logs.add(left).add(right.transpose(-1, -2))
    return logs, None


def half_log_diagonal(kernel: Kernel, x: Tensor) -> Tensor:
    """log K(x_i, x_i) / 2, [*b, n].

    Raises:     ValueError where K(x, x) is not positive and finite.
    """
    alone = x.unsqueeze(-2)
    logs, sign = log_cross(kernel, alone, alone)
    half = 0.5 * logs[..., 0, 0]
    if not bool(torch.isfinite(half).all()) or (sign is not None and bool((sign <= 0).any())):
        raise ValueError(
            f"{kernel!r} is not positive and finite at (x, x) for every landmark, so that none of its"
            " features has a length; leave out the points where it is 0."
        )
    return half


def correlation(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    """K(x, y) / sqrt(K(x, x) K(y, y)) for all pairs, [*b, n, n'], float64."""
    x, y = x.double(), y.double()
    logs, sign = log_cross(kernel, x, y)
    logs = logs - half_log_diagonal(kernel, x).unsqueeze(-1)
    values = torch.exp(logs - half_log_diagonal(kernel, y).unsqueeze(-2))
    return values if sign is None else values * sign


class LandmarkRule(Protocol):
    """A choice of landmarks."""

    def choose(
        self, kernel: Kernel, points: Tensor, count: int, *, generator: torch.Generator
    ) -> Tensor:
        """`count` landmarks [count, d] for points [n, d], n >= count, float64."""


@dataclass(frozen=True)
class UniformLandmarks:
    """Points drawn without replacement."""

    def choose(
        self, kernel: Kernel, points: Tensor, count: int, *, generator: torch.Generator
    ) -> Tensor:
        """A random subset, in O(n)."""
        return points[_shuffled(points, generator)[:count]]


@dataclass(frozen=True)
class KMeansLandmarks:
    """Centres of k-means, of at most 12,288 points drawn at random.

    Fewer distinct points than centres give equal landmarks, which the cutoff drops.
    """

    def choose(
        self, kernel: Kernel, points: Tensor, count: int, *, generator: torch.Generator
    ) -> Tensor:
        """Seeds drawn by squared distance, then 12 steps of Lloyd's; O(n count d) each."""
        some = points[_shuffled(points, generator)[: max(_CLUSTERED, count)]]
        return k_means(some.unsqueeze(0), count, generator=generator)[0]


@dataclass(frozen=True)
class LeverageLandmarks:
    """Points drawn without replacement by approximate ridge leverage scores.

        l_i = [K (K + lambda I)^{-1}]_ii ~ (K_ii - K_iS (K_SS + lambda W)^{-1} K_Si) / lambda

    with S drawn in the same way from half of the points, recursively, W its probabilities, and lambda the
    mean of the eigenvalues that count / (4 log count) leading ones leave. K is scaled to K(x, x) = 1.

    Cost:       O(n count^2) time, O(n count) memory, for all levels together.
    Reference:  Musco and Musco, Recursive Sampling for the Nystroem Method, 2017, Algorithm 3 (a fixed
                number of landmarks).
    """

    def choose(
        self, kernel: Kernel, points: Tensor, count: int, *, generator: torch.Generator
    ) -> Tensor:
        """Random halves, the smallest first."""
        order = _shuffled(points, generator)
        sizes = [len(points)]
        while sizes[-1] > 2 * count:
            sizes.append(-(-sizes[-1] // 2))
        chosen = points[order[: min(count, sizes[-1])]]
        weights = torch.ones_like(chosen[:, 0])
        for size in reversed(sizes):
            some = points[order[:size]]
            scores = _leverage(kernel, some, chosen, weights)
            clocks = torch.rand(size, dtype=torch.float64, generator=generator).to(scores.device)
            first = (-torch.log1p(-clocks) / scores).topk(count, largest=False).indices
            chosen = some[first]
            weights = (count * scores[first] / scores.sum()).clamp_max(1.0)
        return chosen


def _leverage(kernel: Kernel, points: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Scores of points [n, d] from chosen ones [s, d] that were kept with probabilities `weights`."""
    root = weights.sqrt()
    inner = correlation(kernel, chosen, chosen) / (root.unsqueeze(-1) * root)
    eigenvalues, vectors = torch.linalg.eigh(inner)
    count = len(chosen)
    leading = min(math.ceil(count / (4.0 * math.log(count + 1.0))), count)
    tail = eigenvalues[: count - leading].clamp_min(0.0).sum() / leading
    ridge = torch.maximum(tail, SMALLEST_RIDGE * eigenvalues[-1])
    cross = correlation(kernel, points, chosen) / root
    shares = (cross @ vectors).square() / (eigenvalues.clamp_min(0.0) + ridge)
    return ((1.0 - shares.sum(-1)) / ridge).clamp_min(0.0)  # below 0 by rounding alone


def _shuffled(points: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(points), generator=generator, device=generator.device).to(
        points.device
    )
