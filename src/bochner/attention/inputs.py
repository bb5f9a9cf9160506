"""Checks of queries, keys, values and mask, in one place for every form of attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.validation import (
    check_batch,
    check_finite,
    check_points,
    check_same_points,
    last_dimension,
)


class AttentionInputs(NamedTuple):
    """Checked inputs; hidden keys and values are zeroed, so that what pads them cannot matter.

    q and k are float64 if v is: what they are computed in is what v is computed in.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_mask: Tensor | None


def attention_inputs(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    *,
    causal: bool,
) -> AttentionInputs:
    """Check shapes, dtypes, devices, mask and finiteness of the values.

    Shapes:     q [*b, n, d], k [*b, s, d], v [*b, s, dv], key_mask broadcasting to [*b, s].
    Raises:     ValueError or TypeError naming the argument, what came and what was expected.
    """
    if not isinstance(feature_map, FeatureMap):
        raise TypeError(
            f"feature_map must be a bochner.FeatureMap, got {type(feature_map).__name__};"
            " for example bochner.make('positive', dim=64, num_features=128)."
        )
    check_points("q", q, feature_map.dim)
    check_points("k", k, feature_map.dim)
    check_points("v", v, last_dimension(v))
    check_same_points(q, k)
    if v.device != k.device:
        raise ValueError(f"v is on {v.device}, k on {k.device}; move one.")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"v has length {v.shape[-2]}, k has length {k.shape[-2]}; they must agree."
        )
    lead = _common_lead(q, k, v)
    check_batch("q", q, feature_map.batch_shape)
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"causal=True needs one query per key; q has length {q.shape[-2]}, k {k.shape[-2]}."
            " To attend to a cache, keep an AttentionState and call step."
        )
    if key_mask is not None:
        key_mask = _checked_mask(key_mask, lead, k.shape[-2], v.device)
        k = k.masked_fill(~key_mask.unsqueeze(-1), 0.0)
        v = v.masked_fill(~key_mask.unsqueeze(-1), 0.0)
    check_finite("v", v)
    if v.dtype == torch.float64:
        q, k = q.double(), k.double()
    return AttentionInputs(q, k, v, key_mask)


def _common_lead(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2]))
    except RuntimeError:
        raise ValueError(
            f"q, k, v have leading dimensions {list(q.shape[:-2])}, {list(k.shape[:-2])},"
            f" {list(v.shape[:-2])}; they must broadcast (grouped-query attention: repeat k and v"
            " to the query heads first)."
        ) from None


def _checked_mask(
    key_mask: Tensor, lead: tuple[int, ...], length: int, device: torch.device
) -> Tensor:
    if not isinstance(key_mask, Tensor):
        raise TypeError(f"key_mask must be a torch.Tensor, got {type(key_mask).__name__}.")
    if key_mask.dtype != torch.bool:
        raise TypeError(
            f"key_mask has dtype {key_mask.dtype}; expected torch.bool, True where a key takes part"
            " (an additive mask: key_mask = mask == 0)."
        )
    if key_mask.device != device:
        raise ValueError(f"key_mask is on {key_mask.device}, v on {device}; move one.")
    try:
        key_mask = key_mask.expand(*lead, length)
    except RuntimeError:
        raise ValueError(
            f"key_mask has shape {list(key_mask.shape)}; expected one that broadcasts to"
            f" {[*lead, length]} (for [batch, heads, length, d] inputs: [batch, 1, length])."
        ) from None
    return key_mask


def check_some_key_visible(key_mask: Tensor | None) -> None:
    """Raise ValueError if a sequence of key_mask [*b, s] has no visible key (not while compiling)."""
    if key_mask is None or torch.compiler.is_compiling():
        return
    hidden = int((~key_mask.any(dim=-1)).sum())
    if hidden:
        raise ValueError(
            f"key_mask hides every key of {hidden} sequence(s); attention is undefined."
        )
