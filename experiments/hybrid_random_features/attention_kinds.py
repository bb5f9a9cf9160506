"""The kinds of attention that a policy is trained with: exact, uniform, and linear ones.

All linear kinds have COLUMNS feature columns; how many random projections these cost differs. A map is
drawn once, from a generator of its own, and kept: it is part of the policy, never redrawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner import FeatureMap, linear_attention, make
from experiments.hybrid_random_features.attention_policy import HEAD_DIM

COLUMNS = 40  # the least that mirrored pairs, angular (8) and Gaussian (10 columns) hybrids share
LABELS = {
    "exact": "softmax (exact)",
    "uniform": "uniform weights (control)",
    "positive": "FAVOR+ (positive)",
    "trigonometric": "trigonometric",
    "angular": "HRF, angular",
    "gaussian-hybrid": "HRF, Gaussian",
}
LINEAR = ("positive", "trigonometric", "angular", "gaussian-hybrid")
HYBRIDS = ("angular", "gaussian-hybrid")


@dataclass(frozen=True)
class Exact:
    """softmax(q k') v."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, dim=-1) @ v


@dataclass(frozen=True)
class Uniform:
    """The mean of all values, for every query."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.mean(dim=-2, keepdim=True).expand_as(v)


@dataclass(frozen=True)
class Linear:
    """Linear attention with a fixed feature map."""

    feature_map: FeatureMap

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(self.feature_map, q, k, v)

    def not_positive(self, q: Tensor, k: Tensor) -> float:
        """Share of the rows whose denominator, sum_j K^(q_i, k_j), is not positive."""
        return float((self.feature_map.estimate(q, k).sum(-1) <= 0).double().mean())


Attention = Exact | Uniform | Linear


def attention(kind: str, seed: int) -> Attention:
    """Of one of LABELS; a linear kind draws its map from `seed`."""
    if kind == "exact":
        return Exact()
    if kind == "uniform":
        return Uniform()
    generator = torch.Generator().manual_seed(seed)
    feature_map = make(
        kind, dim=HEAD_DIM, num_features=COLUMNS, projection="orthogonal", generator=generator
    )
    return Linear(feature_map)
