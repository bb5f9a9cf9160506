"""Which keys a query sees: padding and causality, kept apart, so that no [n, n] mask is ever formed.

transformers asks a function, by name, for the mask of all layers of a model. Ours gives

    [b, 1, s]      bool, causal: query i of the last n positions sees the keys up to its own
    [b, 1, 1, s]   bool, all queries see the same keys
    None           no padding; the attention module knows whether it is causal
    [b, 1, n, s]   bool, anything else (sliding windows, packed sequences, static caches): exact layers
                   take it, converted ones refuse it

so a mask says itself whether it is causal, as the masks of `sdpa` do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)


class Visible(NamedTuple):
    """Which keys queries see.

    Shapes:     key_mask [b, s] bool, True = attend; None: all. causal: the n queries are the last n of
                the s positions, and each sees the keys up to its own.
    """

    causal: bool
    key_mask: Tensor | None


def padding_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **rest: Any,
) -> Tensor | None:
    """The mask in the forms above: in time and memory linear in the length, where it is plain."""
    plain = mask_function in (causal_mask_function, bidirectional_mask_function)
    causal = mask_function is causal_mask_function
    # a static cache has room for later tokens: its queries are not the last of its positions
    at_end = not isinstance(q_offset, Tensor) and q_offset + q_length == kv_offset + kv_length
    if not plain or (causal and not at_end):
        return sdpa_mask(
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **rest,
        )
    if attention_mask is None:
        return None
    keys = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
    return keys.unsqueeze(1) if causal else keys[:, None, None, :]


def module_is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether positions see only the past: the call's word, else the module's, as SDPA reads it."""
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def visible(
    module: nn.Module, mask: Tensor | None, size: tuple[int, int], kwargs: dict[str, Any]
) -> Visible:
    """What a converted layer may see.

    Shapes:     size = (b, s), those of the keys so far; mask as above or [b, s].
    Raises:     ValueError for any other mask.
    """
    causal = module_is_causal(module, kwargs)
    if mask is None:
        return Visible(causal, None)
    plain = mask.ndim in (2, 3, 4) and mask.shape in (
        size,
        (size[0], *(1,) * (mask.ndim - 2), size[1]),
    )
    if not plain or mask.is_floating_point():
        raise ValueError(
            f"attention_mask reached the attention with shape {list(mask.shape)} and {mask.dtype};"
            f" expected padding, [batch, keys] = {list(size)}. Sliding windows, packed sequences,"
            " prefixes, static caches and masks of your own with a row per query cannot be linear:"
            " pass a 2-D mask to the model (compiled decoders take tokens for packed sequences unless"
            " they get one), or leave such layers exact (layers=)."
        )
    if mask.ndim != 2:
        causal = mask.ndim == 3
    return Visible(causal, mask.reshape(size).bool())


def mask_for_exact(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """What `sdpa` would have been given, for a layer that stays exact in a converted model."""
    n, s = query.shape[2], key.shape[2]
    if mask is None:
        if n == 1 or n == s or not module_is_causal(module, kwargs):
            return None
        return past_only(n, s, query.device)
    if mask.ndim == 3:
        return mask.unsqueeze(1) & past_only(n, s, query.device)
    if mask.ndim == 2:
        return mask[:, None, None, :]
    return mask


def past_only(n: int, s: int, device: torch.device) -> Tensor:
    """[1, 1, n, s] bool: the n queries are the last of s positions."""
    return torch.ones(n, s, dtype=torch.bool, device=device).tril(s - n)[None, None]
