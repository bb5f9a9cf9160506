"""What transformers calls: attention functions and mask functions under names of our own.

A model whose configuration holds such a name calls `_linear` or `_replaced` from every attention
module. The mask needs a function under the same name: without one transformers drops the padding
silently (transformers issue 46132).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bochner.feature_map import compute_dtype
from bochner.transformers.handover import taken
from bochner.transformers.layer import PART, LinearLayer
from bochner.transformers.masks import mask_for_exact, module_is_causal, padding_mask, visible

# Names with "sdpa", "flash" or "flex" in them would meet the checks meant for those.
RECORDING = "bochner_recording"
LINEAR = "bochner_linear"
LINEAR_EAGER = "bochner_linear_eager"
"""LINEAR where layers that stay exact run the model's own `eager` attention and not `sdpa`."""

LINEAR_FOR = {"sdpa": LINEAR, "eager": LINEAR_EAGER}
"""The implementation that a model had -> the one it has while it is converted."""

Attention = Callable[..., tuple[Tensor, None]]
attention_of: WeakKeyDictionary[nn.Module, Attention] = WeakKeyDictionary()


@contextmanager
def attention_replaced(model: PreTrainedModel, name: str, attention: Attention) -> Iterator[None]:
    """Let all attention modules of `model` call `attention`; put everything back at the end.

    Arguments:  name: RECORDING: `attention` gets the mask that `sdpa` gets; LINEAR: only converted
                layers call it, with the mask [b, s] of the visible keys and `is_causal`.
    """
    check_model(model)
    before = [(config, config._attn_implementation) for config in configurations(model)]
    modules = list(model.modules())
    outer = {module: attention_of[module] for module in modules if module in attention_of}
    try:
        attention_of.update(dict.fromkeys(modules, attention))
        if name == RECORDING:
            model.set_attn_implementation(name)
            if any(config._attn_implementation != name for config, _ in before):
                raise not_on_the_interface(model)
        yield
    finally:
        for config, implementation in before:  # a parent first: setting it sets its parts too
            config._attn_implementation = implementation
        for module in modules:
            attention_of.pop(module, None)
        attention_of.update(outer)


def check_model(model: PreTrainedModel) -> None:
    """Raise TypeError unless `model` is a model of transformers."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__module__}.{type(model).__name__}; expected a"
            " transformers.PreTrainedModel, whose attention can be replaced. Pass the model inside."
        )


def root_of_scaling(query: Tensor, kwargs: dict[str, Any]) -> float:
    """sqrt(scaling), after a check that the logits are scaling · q·k and nothing else."""
    for name in ("position_bias", "softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"the model's attention has {name}, so its logits are not q·k alone; expected plain"
                " dot-product attention (as in BERT, ViT or Llama). Use such a model, or leave these"
                " layers exact (layers=)."
            )
    scaling = kwargs.get("scaling")
    return math.sqrt(query.shape[-1] ** -0.5 if scaling is None else scaling)


def scaled(query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """q and k times sqrt(scaling), in the dtype that features are computed in.

    Half precision would round the products, and the exact attention rounds no such product.
    """
    root = root_of_scaling(query, kwargs)
    dtype = compute_dtype(query)
    return query.to(dtype) * root, key.to(dtype) * root


def _linear(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention of a converted model."""
    layer = getattr(module, PART, None)
    if not isinstance(layer, LinearLayer):
        return _exact(module, query, key, value, attention_mask, **kwargs)
    try:
        looks = layer.may_be_cached or not torch.compiler.is_compiling()
        cache = taken(key) if looks else None
        size = (query.shape[0], key.shape[2] + (0 if cache is None else cache.length))
        causal, key_mask = visible(module, attention_mask, size, kwargs)
        if not torch.compiler.is_compiling() and module in attention_of:
            kwargs["is_causal"] = causal
            return attention_of[module](module, query, key, value, key_mask, **kwargs)
        q, k = scaled(query, key, kwargs)
        dropout = kwargs.get("dropout") or 0.0
        layer.check_call(query, key, causal=causal, dropout=dropout, cached=cache is not None)
        out = layer(q, k, value, causal=causal, key_mask=key_mask, cache=cache)
    except (ValueError, TypeError) as error:
        error.add_note(f"in attention layer {layer.place} ({type(module).__name__})")
        raise
    return out.to(value.dtype).transpose(1, 2).contiguous(), None


def _exact(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """A layer that stays exact in a converted model: the implementation that the model had."""
    mask = mask_for_exact(module, query, key, attention_mask, kwargs)
    config: Any = module.config
    if config._attn_implementation != LINEAR_EAGER:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    n, s = query.shape[2], key.shape[2]
    if mask is None and n > 1 and module_is_causal(module, kwargs):
        mask = torch.ones(1, 1, n, s, dtype=torch.bool, device=query.device).tril()
    if mask is not None and not mask.is_floating_point():
        zero, least = query.new_zeros(()), torch.finfo(query.dtype).min
        mask = torch.where(mask, zero, least)
    eager = type(module).forward.__globals__["eager_attention_forward"]
    return eager(module, query, key, value, mask, **kwargs)


def _replaced(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The attention that is in force for this module, inside `attention_replaced`."""
    return attention_of[module](module, *args, **kwargs)


for _name, _attention, _mask in (
    (RECORDING, _replaced, sdpa_mask),
    (LINEAR, _linear, padding_mask),
    (LINEAR_EAGER, _linear, padding_mask),
):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _mask)


def configurations(model: PreTrainedModel) -> list[Any]:
    """The configurations of a model and of the models inside it, parents before parts."""
    found: dict[int, Any] = {}
    waiting = [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]
    while waiting:
        config = waiting.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            parts = (getattr(config, name, None) for name in config.sub_configs)
            waiting += [part for part in parts if part is not None]
    return list(found.values())


def not_on_the_interface(model: PreTrainedModel) -> ValueError:
    """The error for a model whose attention cannot be replaced."""
    return ValueError(
        f"model is a {type(model).__name__}, whose attention does not go through the attention"
        " interface of transformers; expected one that does, such as BERT, ViT, Llama or GPT-2"
        " (Bloom and DeBERTa do not). Use such a model."
    )
