"""From rows of data to a posterior: exactly, through landmarks, or on the features alone.

The last two are one pass over the rows, wherever they are, with the block grid of `bochner.gram`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bochner.gp.evidence import Array, WeightPosterior
from bochner.gp.exact import ExactPosterior
from bochner.gp.landmarks import JointFeatures, Landmarks
from bochner.gp.nystrom import NystromPosterior
from bochner.gp.weights import FeaturePosterior
from bochner.gram import BlockFeatures, GramStatistics, Precision, accumulate

SINGLE_FLOOR = 1e-6
"""Noise / outputscale over n from which sums may be taken in float32.

Rounding shifts eigenvalues of G by some 3e-9 of the largest, which is at most n where |phi| = 1. Each of the
m directions that the data leave open then adds (shift / ratio)^2 to log det A and to tr A^-1: with the 1e-8
that ridge regression bears, the degrees of freedom are off by tens for m = 1,024; from 1e-6 on by less
than 0.1.
"""

Columns = BlockFeatures | JointFeatures
P = TypeVar("P")


def scaled(features: BlockFeatures, rows: Any) -> Tensor:
    """Rows in units of the lengthscales, float64 [n, d]."""
    return torch.from_numpy(np.ascontiguousarray(features.with_dtype(np.float64).scaled(rows)))


def exact(
    features: BlockFeatures, rows: Any, targets: Array, *, outputscale: float, noise: float
) -> ExactPosterior:
    """From all rows in memory: O(n^2) memory, O(n^3) time.

    Example:
        >>> import bochner
        >>> phi = BlockFeatures(bochner.make("trigonometric", dim=1, num_features=4, kernel="gaussian"))
        >>> posterior = exact(phi, np.zeros((3, 1)), np.ones((3, 1)), outputscale=1.0, noise=1.0)
        >>> round(posterior.mean(torch.zeros(1, 1)).item(), 4)     # of 3 observations and the prior
        0.75
    """
    z = scaled(features, rows)
    return ExactPosterior(features.feature_map, z, targets, outputscale=outputscale, noise=noise)


def on_features(
    features: BlockFeatures, rows: Any, targets: Array, *, outputscale: float, noise: float
) -> FeaturePosterior:
    """From the sums of the features: one pass, O(n m^2).

    Example:
        >>> import bochner
        >>> phi = BlockFeatures(bochner.make("trigonometric", dim=1, num_features=4, kernel="gaussian"))
        >>> posterior = on_features(phi, np.zeros((3, 1)), np.ones((3, 1)), outputscale=1.0, noise=1.0)
        >>> round(posterior.mean(torch.zeros(1, 1)).item(), 4)
        0.75
    """

    def conditioned(sums: GramStatistics) -> FeaturePosterior:
        weights = WeightPosterior(sums, outputscale=outputscale, noise=noise)
        return FeaturePosterior(features.feature_map, weights)

    return _from_sums(features, rows, targets, noise / outputscale, conditioned)


def on_landmarks(
    features: BlockFeatures,
    centres: Tensor,
    rows: Any,
    targets: Array,
    *,
    outputscale: float,
    noise: float,
) -> NystromPosterior:
    """From the sums of landmarks (scaled points [p, d]) and features: one pass, O(n p (p + m) + n m^2).

    Example:
        >>> import bochner
        >>> phi = BlockFeatures(bochner.make("trigonometric", dim=1, num_features=4, kernel="gaussian"))
        >>> posterior = on_landmarks(phi, torch.zeros(1, 1), np.zeros((3, 1)), np.ones((3, 1)),
        ...                          outputscale=1.0, noise=1.0)
        >>> round(posterior.mean(torch.zeros(1, 1)).item(), 4)
        0.75
    """
    landmarks = Landmarks(features.kernel, centres)

    def conditioned(sums: GramStatistics) -> NystromPosterior:
        return NystromPosterior(
            landmarks, features.feature_map, sums, outputscale=outputscale, noise=noise
        )

    columns = JointFeatures(landmarks, features)
    return _from_sums(columns, rows, targets, noise / outputscale, conditioned)


def _from_sums(
    columns: Columns,
    rows: Any,
    targets: Array,
    ratio: float,
    conditioned: Callable[[GramStatistics], P],
) -> P:
    """The posterior from sums in the precision that noise / outputscale bears: mostly double."""
    if ratio >= SINGLE_FLOOR * rows.shape[0]:
        return conditioned(accumulate(columns, rows, targets, precision=Precision.SINGLE))
    columns = columns.with_dtype(np.float64)
    return conditioned(accumulate(columns, rows, targets, precision=Precision.DOUBLE))
