"""What every deterministic check uses: a requirement, points, and two maps compared."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.testing.plan import points as contract_points
from bochner.testing.report import ContractError

NUM_FEATURES = 8
"""m of the deterministic checks, rounded up to what a map allows."""


def require(condition: bool, failing: str, message: str) -> None:
    """Raise ContractError naming `failing` unless the condition holds."""
    if not condition:
        raise ContractError(failing, message)


def points(dim: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Random, all-ones and equal points x, y [count, dim], |x+y| and |x-y| at most 1.1."""
    pairs = contract_points(dim, seed=dim)
    return pairs.x[:count], pairs.y[:count]


def same(a: FeatureMap, b: FeatureMap, dim: int) -> bool:
    """Whether two maps give the same estimates, bit for bit."""
    x, y = points(dim)
    return torch.equal(a.estimate(x, y), b.estimate(x, y))
