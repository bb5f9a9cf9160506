"""Checks of queries, keys, values and masks, in one place for every form of attention."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.attention.heads import Heads
from bochner.feature_map import FeatureMap
from bochner.validation import (
    check_batch,
    check_finite,
    check_points,
    check_same_points,
    last_dimension,
)


class Mask(NamedTuple):
    """What is said about the keys; see `linear_attention` for the three."""

    key_mask: Tensor | None = None
    key_bias: Tensor | None = None
    lengths: Tensor | None = None

    def names(self) -> str:
        """Those that are given, for an error."""
        return " and ".join(n for n in self._fields if getattr(self, n) is not None)


class AttentionInputs(NamedTuple):
    """Checked inputs; hidden keys and values are zeroed, so that what pads them cannot matter.

    q and k are float64 if v is: what they are computed in is what v is computed in. key_mask holds all
    that hides a key (an infinite bias and lengths too), key_bias [*b, s] is finite: 0 at hidden keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_mask: Tensor | None = None
    key_bias: Tensor | None = None
    heads: Heads = Heads()


def attention_inputs(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Mask | None,
    *,
    causal: bool,
) -> AttentionInputs:
    """Check shapes, dtypes, devices, masks and finiteness of the values.

    Shapes:     q [*b, H, n, d], k [*b, Hkv, s, d], v [*b, Hkv, s, dv]; `mask` is a Mask or a key_mask.
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
    group = _group(q, k, v)
    lead = _common_lead(q, k, v, group)
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"causal=True needs one query per key; q has length {q.shape[-2]}, k {k.shape[-2]}."
            " To attend to a cache, keep an AttentionState and call step."
        )
    mask = mask if isinstance(mask, Mask) else Mask(mask)
    leads = [lead] if group == 1 else [(*lead[:-1], k.shape[-3]), lead]
    visible, bias = _hidden_and_bias(mask, leads, k)
    heads = _heads(feature_map, q, k, group, (visible, bias))
    if visible is not None:
        unseen = ~heads.any_of_group(visible).unsqueeze(-1)
        k, v = k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
    check_finite("v", v)
    if v.dtype == torch.float64:
        q, k = q.double(), k.double()
    return AttentionInputs(q, k, v, visible, bias, heads)


# -- heads ----------------------------------------------------------------------------------------------
def _group(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Query heads per key head: k has fewer heads, which divide those of q; else 1."""
    if q.ndim < 3 or k.ndim < 3 or v.ndim < 3 or k.shape[-3] == q.shape[-3]:
        return 1
    if v.shape[-3] not in (1, k.shape[-3]) or q.shape[-3] % k.shape[-3]:
        return 1
    return q.shape[-3] // k.shape[-3]


def _common_lead(q: Tensor, k: Tensor, v: Tensor, group: int) -> tuple[int, ...]:
    """Leading dimensions of the output, [*b, H]."""
    if q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return tuple(q.shape[:-2])
    keys, values = ((*x.shape[:-3], q.shape[-3]) if group > 1 else x.shape[:-2] for x in (k, v))
    try:
        return tuple(torch.broadcast_shapes(q.shape[:-2], keys, values))
    except RuntimeError:
        raise ValueError(
            f"q, k, v have leading dimensions {list(q.shape[:-2])}, {list(k.shape[:-2])},"
            f" {list(v.shape[:-2])}; they must broadcast (grouped queries: the heads of k and v, the"
            " last of these, must be as many and divide those of q)."
        ) from None


def _heads(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    group: int,
    per_key: tuple[Tensor | None, ...],
) -> Heads:
    """Folded wherever the map and what is said about the keys is the same for all heads of a group."""
    batch = feature_map.batch_shape
    if group == 1:
        check_batch("q", q, batch)
        return Heads()
    kv_heads = k.shape[-3]
    folded = not batch or batch[-1] in (1, kv_heads)
    check_batch("k" if folded else "q", k if folded else q, batch)
    if any(x is not None and x.ndim > 1 and x.shape[-2] not in (1, kv_heads) for x in per_key):
        if batch and batch[-1] not in (1, q.shape[-3]):
            raise ValueError(
                f"a mask or bias has {q.shape[-3]} heads, the feature map has batch_shape={list(batch)}"
                f" and k {kv_heads} heads; expected a mask with one head, or one per head of k."
            )
        folded = False
    return Heads(group, folded, kv_heads)


# -- masks ----------------------------------------------------------------------------------------------
def _hidden_and_bias(
    mask: Mask, leads: list[tuple[int, ...]], k: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(visible, bias): all that hides keys in one mask, and the finite rest of the bias."""
    key_mask, key_bias, lengths = mask
    if key_mask is not None:
        if isinstance(key_mask, Tensor) and key_mask.dtype != torch.bool:
            raise TypeError(
                f"key_mask has dtype {key_mask.dtype}; expected torch.bool, True where a key takes part"
                " (an additive mask: key_bias=mask)."
            )
        key_mask = _per_key("key_mask", key_mask, leads, k)
    if key_bias is not None:
        key_bias, shown = _checked_bias(key_bias, leads, k)
        if shown is not None:
            key_mask = shown if key_mask is None else key_mask & shown
    if lengths is not None:
        shown = _within(lengths, leads, k)
        key_mask = shown if key_mask is None else key_mask & shown
    return key_mask, key_bias


def _per_key(name: str, x: Tensor, leads: list[tuple[int, ...]], k: Tensor) -> Tensor:
    """x, a tensor on k's device, expanded to [*lead, s] for the first of `leads` that it fits: with
    grouped queries the heads of k, else those of q."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}.")
    if x.device != k.device:
        raise ValueError(f"{name} is on {x.device}, k on {k.device}; move one.")
    wanted = [[*lead, k.shape[-2]] for lead in leads]
    for shape in wanted:
        try:
            if x.shape[-1:] == k.shape[-2:-1]:
                return x.expand(*shape)
        except RuntimeError:
            continue
    raise ValueError(
        f"{name} has shape {list(x.shape)}; expected one that broadcasts to"
        f" {' or '.join(map(str, wanted))} (for [batch, heads, length, d] inputs:"
        " [batch, 1, length])."
    )


def _checked_bias(
    key_bias: Tensor, leads: list[tuple[int, ...]], k: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The bias, 0 where it is -inf, and where it is not (None if nowhere), expanded."""
    expanded = _per_key("key_bias", key_bias, leads, k)
    if not key_bias.is_floating_point():
        raise TypeError(
            f"key_bias has dtype {key_bias.dtype}; expected a floating one, added to the logits of a key"
            " (a boolean mask: key_mask=mask)."
        )
    hidden = key_bias.detach() == -math.inf
    if not torch.compiler.is_compiling() and not bool(hidden.any()):
        check_finite("key_bias", key_bias)
        return expanded, None
    key_bias = key_bias.masked_fill(hidden, 0.0)
    check_finite("key_bias, its -inf apart,", key_bias)
    return key_bias.expand_as(expanded), (~hidden).expand_as(expanded)


def _within(lengths: Tensor, leads: list[tuple[int, ...]], k: Tensor) -> Tensor:
    """True at keys before the end of their sequence, [*b, s]."""
    length = k.shape[-2]
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a torch.Tensor, got {type(lengths).__name__}.")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected integers.")
    positions = torch.arange(length, device=k.device)
    visible = positions < lengths.to(k.device).unsqueeze(-1)
    try:
        visible = _per_key("lengths", visible, leads, k)
    except ValueError:
        raise ValueError(
            f"lengths has shape {list(lengths.shape)}; expected one that broadcasts to {list(leads[-1])}"
            " (for [batch, heads, length, d] inputs: [batch, 1])."
        ) from None
    if not torch.compiler.is_compiling() and not bool(((lengths >= 0) & (lengths <= length)).all()):
        raise ValueError(
            f"lengths lie between {int(lengths.min())} and {int(lengths.max())}; expected 0 to"
            f" {length}, the length of k."
        )
    return visible


def check_some_key_visible(visible: Tensor | None, names: str = "key_mask") -> None:
    """Raise ValueError if a sequence of visible [*b, s] has no key (not while compiling)."""
    if visible is None or torch.compiler.is_compiling():
        return
    hidden = int((~visible.any(dim=-1)).sum())
    if hidden:
        verb = "hide" if " and " in names else "hides"
        raise ValueError(
            f"{names} {verb} every key of {hidden} sequence(s); attention is undefined."
        )
