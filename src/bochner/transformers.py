"""Hugging Face models: collect the queries and keys of their attention, or make it linear.

    logit(i, j) = scaling · q_i·k_j = (sqrt(scaling) q_i) · (sqrt(scaling) k_j)

Both go through the attention interface of transformers, under names of our own, and put back what
the model used before. The mask needs a function under the same name: without one transformers
drops the padding silently (transformers issue 46132). Causality comes from each attention module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bochner.attention import linear_attention
from bochner.data.qkv import QKV
from bochner.feature_map import FeatureMap

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import (
        bidirectional_mask_function,
        causal_mask_function,
        sdpa_mask,
    )
except ImportError as error:
    raise ImportError(
        f"bochner.transformers needs the package transformers, version 5 or later ({error}):"
        ' pip install "bochner[transformers]"'
    ) from error

# Names with "sdpa", "flash" or "flex" in them would meet the checks meant for those.
RECORDING = "bochner_recording"
LINEAR = "bochner_linear"

Attention = Callable[..., tuple[Tensor, None]]
_attention_of: WeakKeyDictionary[nn.Module, Attention] = WeakKeyDictionary()


def collect_qkv(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "b n"],
    attention_mask: Int[Tensor, "b n"] | Bool[Tensor, "b n"] | None = None,
    **inputs: Tensor,
) -> list[QKV]:
    """The queries, keys and values of every layer, while the model runs with its exact attention.

    Shapes:     one QKV per layer, q, k [b, heads, n, dim], v [b, heads, n, value_dim], in the order
                in which the layers ran; q and k each times sqrt(scaling), so that the logit is q·k,
                with rotary positions applied. Grouped-query models: k, v have their fewer heads.
                Padded positions are included; drop them by `attention_mask`.
    Arguments:  inputs: what else the model takes, e.g. token_type_ids.
    Cost:       one forward pass without gradients; memory for q, k, v of all layers.
    Raises:     TypeError or ValueError if the model does not use the attention interface, is in
                training mode (dropout), or has logits that are not q·k alone.
    Example:
        >>> from bochner.data import load_minilm
        >>> model, tokenizer = load_minilm()
        >>> layers = collect_qkv(model, **tokenizer("A cat.", return_tensors="pt"))
        >>> len(layers), layers[0].q.shape
        (6, torch.Size([1, 12, 5, 32]))
    """
    recorder = _Recorder()
    with _attention_replaced(model, RECORDING, recorder):
        if model.training:
            raise ValueError(
                "model is in training mode, so dropout would change its queries and keys; call"
                " model.eval() first."
            )
        with torch.no_grad():
            model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
    if not recorder.layers:
        raise _not_on_the_interface(model)
    return recorder.layers


@contextmanager
def linear_attention_swapped(
    model: PreTrainedModel, feature_maps: Sequence[FeatureMap]
) -> Iterator[None]:
    """Inside the with-block `model(...)` attends linearly, through one feature map per layer.

    Arguments:  feature_maps: one per layer, each for the head dimension and with
                batch_shape=(heads,) (or () to share it between heads). Weights stay as they are.
    Masks:      padding reaches every layer as a mask over keys; decoders stay causal. Other masks
                (sliding windows, packed sequences, 4-D masks) are refused, not dropped.
    Raises:     on entry TypeError or ValueError if the model does not use the attention interface;
                in `model(...)` ValueError for another number of maps than layers, grouped-query
                attention, logits with a bias or a cap, attention dropout, cached decoding.
    Differs:    from `model.set_attn_implementation`: the model's own attention is back at the end
                of the block, also after an error.
    Example:
        >>> import bochner
        >>> from bochner.data import load_minilm
        >>> model, tokenizer = load_minilm()
        >>> tokens = tokenizer("A kitten is in the garden.", return_tensors="pt")
        >>> g = torch.Generator().manual_seed(0)
        >>> size = {"dim": 32, "num_features": 1024, "batch_shape": (12,), "generator": g}
        >>> maps = [bochner.make("positive", **size) for _ in range(6)]
        >>> with torch.no_grad():
        ...     exact = sentence_embeddings(model, **tokens)
        ...     with linear_attention_swapped(model, maps):
        ...         linear = sentence_embeddings(model, **tokens)
        >>> 0.5 < float(linear @ exact.T) < 0.9  # plain random features, fitted to nothing
        True
    """
    attention = _LinearAttention(feature_maps)
    called = attention.modules

    def every_layer_took_part(module: nn.Module, args: Any, output: Any) -> None:
        if _attention_of.get(module) is not attention:
            return  # collect_qkv runs the model with its exact attention
        if not called:
            raise _not_on_the_interface(model)
        if len(called) != len(feature_maps):
            raise ValueError(
                f"feature_maps has {len(feature_maps)} maps, model has {len(called)}"
                " attention modules; give one map per module (layers that share weights share one)."
            )

    with _attention_replaced(model, LINEAR, attention):
        check = model.register_forward_hook(every_layer_took_part)
        try:
            yield
        finally:
            check.remove()


def sentence_embeddings(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "b n"],
    attention_mask: Int[Tensor, "b n"] | Bool[Tensor, "b n"],
    **inputs: Tensor,
) -> Float[Tensor, "b d"]:
    """The mean of the last hidden states over the attended tokens, scaled to length 1.

    This is the recipe of MiniLM and most sentence encoders; inner products are cosine similarities.

    Shapes:     input_ids, attention_mask [b, n] -> [b, d]; `inputs` go to the model as they are.
    Raises:     ValueError for a row of `attention_mask` that attends to nothing.
    Example:
        >>> from bochner.data import load_minilm
        >>> model, tokenizer = load_minilm()
        >>> texts = ["A cat sits outside.", "A kitten is in the garden.", "Stocks fell sharply."]
        >>> with torch.no_grad():
        ...     tokens = tokenizer(texts, padding=True, return_tensors="pt")
        ...     e = sentence_embeddings(model, **tokens)
        >>> [round(float(e[0] @ other), 2) for other in e]
        [1.0, 0.56, 0.15]
    """
    counts = attention_mask.sum(dim=1)
    if bool((counts == 0).any()):
        rows = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"attention_mask attends to nothing in rows {rows}; expected at least one token in"
            " each. Leave these rows out."
        )
    output = model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
    hidden = output.last_hidden_state
    # No eps: the count is at least 1, and dividing by it would only be undone by the next line.
    pooled = (hidden * attention_mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1)
    return pooled / pooled.norm(dim=-1, keepdim=True)


class _Recorder:
    """The exact attention, keeping what it saw."""

    def __init__(self) -> None:
        self.layers: list[QKV] = []

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        root = _root_of_scaling(query, kwargs)
        self.layers.append(QKV(query * root, key * root, value.detach().clone()))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


class _LinearAttention:
    """Linear attention, with the feature map of the calling module's layer."""

    def __init__(self, feature_maps: Sequence[FeatureMap]) -> None:
        self.feature_maps = feature_maps
        self.modules: dict[int, nn.Module] = {}  # layer -> its attention module, once it was called

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        layer = self._layer(module)
        root = _root_of_scaling(query, kwargs)
        causal = _is_causal(module, kwargs)
        _check_supported(query, key, attention_mask, causal=causal, dropout=kwargs.get("dropout"))
        try:
            out = linear_attention(
                self.feature_maps[layer],
                query * root,
                key * root,
                value,
                causal=causal,
                key_mask=None if attention_mask is None else attention_mask.bool().unsqueeze(1),
            )
        except (ValueError, TypeError) as error:
            error.add_note(f"in attention layer {layer} ({type(module).__name__})")
            raise
        return out.transpose(1, 2).contiguous(), None

    def _layer(self, module: nn.Module) -> int:
        """The module's own number, or its place in the order of first calls."""
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            known = [n for n, other in self.modules.items() if other is module]
            layer = known[0] if known else len(self.modules)
        if layer >= len(self.feature_maps):
            raise ValueError(
                f"feature_maps has {len(self.feature_maps)} maps, model has more attention layers;"
                " give one per layer, in the order of collect_qkv."
            )
        if self.modules.setdefault(layer, module) is not module:
            raise ValueError(
                f"model has two attention modules in layer {layer}"
                f" ({type(self.modules[layer]).__name__}, {type(module).__name__}); expected one."
                " Encoder-decoders and cross-attention cannot be swapped yet."
            )
        return layer


def _root_of_scaling(query: Tensor, kwargs: dict[str, Any]) -> float:
    """sqrt(scaling), after a check that the logits are scaling · q·k and nothing else."""
    for name in ("position_bias", "softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"the model's attention has {name}, so its logits are not q·k alone; expected plain"
                " dot-product attention (as in BERT, ViT or Llama). Use such a model."
            )
    scaling = kwargs.get("scaling")
    return math.sqrt(query.shape[-1] ** -0.5 if scaling is None else scaling)


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether positions see only the past: the call's word, else the module's, as SDPA reads it."""
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _check_supported(
    query: Tensor, key: Tensor, mask: Tensor | None, *, causal: bool, dropout: float | None
) -> None:
    """Raise for what linear attention would have to drop silently."""
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f"model has {query.shape[1]} query heads and {key.shape[1]} key/value heads; expected"
            " as many of both. Grouped-query attention cannot be swapped yet."
        )
    if causal and query.shape[2] != key.shape[2]:
        raise ValueError(
            f"causal attention got {query.shape[2]} queries and {key.shape[2]} keys; expected equal"
            " lengths. Decoding with a cache cannot be swapped yet: pass use_cache=False."
        )
    if mask is not None and mask.shape != (query.shape[0], key.shape[2]):
        raise ValueError(
            f"attention_mask reached the attention with shape {list(mask.shape)}; expected padding,"
            f" [batch, keys] = [{query.shape[0]}, {key.shape[2]}]. Pass a 2-D mask to the model."
        )
    if dropout:
        raise ValueError(
            f"attention dropout is {dropout}; linear attention has no weights to drop. Call"
            " model.eval(), or set the configuration's attention dropout to 0."
        )


def _padding_mask(
    *,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """The padding of the keys [batch, keys], after a check that the rest of the mask is plain."""
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise ValueError(
            f"model asks for the mask {getattr(mask_function, '__qualname__', mask_function)!r};"
            " linear attention can be causal or bidirectional, with padding. Sliding windows,"
            " packed sequences and prefixes cannot be swapped."
        )
    if attention_mask is None:
        return None
    return attention_mask[:, kv_offset : kv_offset + kv_length]


def _dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """What transformers calls: the attention that is in force for this module's model."""
    return _attention_of[module](module, *args, **kwargs)


@contextmanager
def _attention_replaced(model: PreTrainedModel, name: str, attention: Attention) -> Iterator[None]:
    """Let all attention modules of `model` call `attention`; put everything back at the end."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__module__}.{type(model).__name__}; expected a"
            " transformers.PreTrainedModel, whose attention can be replaced. Pass the model inside."
        )
    for registered, mask in ((RECORDING, sdpa_mask), (LINEAR, _padding_mask)):
        AttentionInterface.register(registered, _dispatch)
        AttentionMaskInterface.register(registered, mask)
    before = [(config, config._attn_implementation) for config in _configs(model)]
    modules = list(model.modules())
    outer = {module: _attention_of[module] for module in modules if module in _attention_of}
    try:
        _attention_of.update(dict.fromkeys(modules, attention))
        model.set_attn_implementation(name)
        if any(config._attn_implementation != name for config, _ in before):
            raise _not_on_the_interface(model)
        yield
    finally:
        for config, implementation in before:  # a parent first: setting it sets its parts too
            config._attn_implementation = implementation
        for module in modules:
            _attention_of.pop(module, None)
        _attention_of.update(outer)


def _configs(model: PreTrainedModel) -> list[Any]:
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


def _not_on_the_interface(model: PreTrainedModel) -> ValueError:
    return ValueError(
        f"model is a {type(model).__name__}, whose attention does not go through the attention"
        " interface of transformers; expected one that does, such as BERT, ViT, Llama or GPT-2"
        " (Bloom and DeBERTa do not). Use such a model."
    )
