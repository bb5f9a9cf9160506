"""Blocks whose intermediate results are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bochner.feature_map import FeatureMap

Result = TypeVar("Result")


def records(feature_map: FeatureMap, tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd records what is computed from these tensors and the map's parameters."""
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in (*tensors, *feature_map.parameters()))


def recomputes(feature_map: FeatureMap, tensors: Sequence[Tensor | None], blocks: int) -> bool:
    """Whether autograd records this call and it is long enough, from four blocks on, to save memory.

    Not while compiling: the compiler decides for itself what to keep.
    """
    if blocks < 4 or torch.compiler.is_compiling():
        return False
    return records(feature_map, tensors)


def run(function: Callable[..., Result], *arguments: object, again: bool) -> Result:
    """function(*arguments); with `again` only its arguments and results are kept for the backward pass."""
    if not again:
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
