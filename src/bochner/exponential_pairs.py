"""Two exponential estimators on the same directions: their covariance, whatever their kinds."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.directions import Directions
from bochner.exponents import shared_covariance
from bochner.feature_map import FeatureMap
from bochner.projections import IID


def exponential_covariance(
    a: FeatureMap, b: FeatureMap, x: Tensor, y: Tensor, *, grid: bool
) -> Tensor | None:
    """Cov[a, b] / (K K) for two maps with `exponents` and `directions` that hold one draw.

    Shapes:     [*b, n, n'], with grid [*b, n, n', n'] for pairs (i, j) of a and (i, k) of b; float64.
    Returns:    None unless the directions are the same, all of them, independent and standard normal.
    Reference:  docs/theory.md 8.
    """
    first, second = (getattr(m, "directions", None) for m in (a, b))
    if not (isinstance(first, Directions) and isinstance(second, Directions)):
        return None
    if not (hasattr(a, "exponents") and hasattr(b, "exponents")):
        return None  # a sign switch on the directions of features
    same = first is second or torch.equal(first.omega, second.omega)
    base = first.projection.antithetic_base or first.projection
    if not (same and isinstance(base, IID)):
        return None
    exponents = [m.exponents(x, y) for m in (a, b)]  # type: ignore[operator]
    if None in exponents:
        return None
    (a_query, a_key, a_even), (b_query, b_key, b_even) = exponents
    count, _ = first.independent
    return shared_covariance(
        a_query, a_key, b_query, b_key, count=count, even=a_even or b_even, grid=grid
    )
