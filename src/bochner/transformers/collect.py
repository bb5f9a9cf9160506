"""The queries, keys and values of a model, while it runs with its exact attention."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bochner.data.qkv import QKV
from bochner.transformers.interface import (
    RECORDING,
    attention_replaced,
    not_on_the_interface,
    scaled,
)


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
    with attention_replaced(model, RECORDING, recorder):
        if model.training:
            raise ValueError(
                "model is in training mode, so dropout would change its queries and keys; call"
                " model.eval() first."
            )
        with torch.no_grad():
            model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
    if not recorder.layers:
        raise not_on_the_interface(model)
    return recorder.layers


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
        q, k = scaled(query, key, kwargs)
        self.layers.append(QKV(q, k, value.detach().clone()))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
