"""Whether two feature maps were drawn together: what products refuse and closed forms have to know."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap


def share_draws(a: FeatureMap, b: FeatureMap) -> bool:
    """Whether two maps hold the same random numbers: one tensor, equal ones, or the same directions.

    One seed gives maps of different sizes, nonlinearities or spreads the same first directions; other
    dependence (two couplings of one seed) is not seen.
    """
    return any(_same_draw(s, t) for s in a.draws() for t in b.draws())


def count_distinct(draws: list[Tensor]) -> int:
    """Random directions in a list of draws, those that several maps share counted once."""
    distinct = {draw.data_ptr(): draw.shape[-2] for draw in draws}
    return sum(distinct.values())


def _same_draw(s: Tensor, t: Tensor) -> bool:
    if s.data_ptr() == t.data_ptr() or (s.shape == t.shape and torch.equal(s, t) and bool(s.any())):
        return True  # short rows of Hadamard directions can be 0: that says nothing
    if min(s.ndim, t.ndim) < 2 or s.shape[-1] != t.shape[-1]:
        return False
    count, dim = min(s.shape[-2], t.shape[-2], 8), s.shape[-1]
    first, other = (u.detach().reshape(-1, *u.shape[-2:])[0, :count].double() for u in (s, t))
    if count * (dim - 1) < 3:  # too few angles: parallel by chance
        return torch.equal(first, other) and bool(first.any())
    if bool((first[0].abs().sort().values.diff() == 0).any()):  # so are rows of random signs
        return False
    return bool((torch.cosine_similarity(first, other.to(first.device), dim=-1) > 1 - 1e-6).all())
