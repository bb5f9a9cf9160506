"""What the converted layers of a model are asked, with the exact answer and the linear one.

The model runs as always, but each converted layer hands its queries, keys and values to an observer,
which gives the output. So one pass can record, compare, or train, on the activations of the model with
exact attention, of the converted model, or of one that is converted up to some layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from bochner.attention.linear import linear_attention
from bochner.attention.window import ExactWindow
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.transformers.convert import converted_layers
from bochner.transformers.interface import LINEAR, attention_replaced, scaled
from bochner.transformers.layer import PART, LinearLayer
from bochner.transformers.places import attention_places
from bochner.validation import NotFittedError


@dataclass(frozen=True)
class Call:
    """One call of one converted layer.

    Shapes:     q [b, heads, n, d], k [b, kv heads, s, d], v [b, kv heads, s, dv]; the logit is q·k;
                key_mask [b, s] bool, True = attend, or None. cross: keys are of another sequence.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    key_mask: Tensor | None
    cross: bool = False

    @property
    def tokens(self) -> Tensor:
        """Which queries are tokens and not padding, [b, n] bool; all, where the keys do not tell."""
        if self.key_mask is None or self.cross or self.q.shape[-2] != self.k.shape[-2]:
            return torch.ones(
                self.q.shape[0], self.q.shape[-2], dtype=torch.bool, device=self.q.device
            )
        return self.key_mask

    def without_padding(self) -> Call:
        """The same call without padded tokens, detached; for a batch of one sequence."""
        q, k, v = (x.detach() for x in (self.q, self.k, self.v))
        if self.key_mask is not None:
            seen = self.key_mask[0]
            q, k, v = q[:, :, self.tokens[0]], k[:, :, seen], v[:, :, seen]
        return replace(self, q=q, k=k, v=v, key_mask=None)

    def exact(self) -> Tensor:
        """Softmax attention, [b, heads, n, dv]."""
        mask = None if self.key_mask is None else self.key_mask[:, None, None, :]
        causal = self.causal
        if mask is not None and causal:
            n, s = self.q.shape[-2], self.k.shape[-2]
            mask = mask & torch.ones(n, s, dtype=torch.bool, device=mask.device).tril()
            causal = False
        grouped, v = self.q.shape[1] != self.k.shape[1], self.v.to(self.q.dtype)
        return scaled_dot_product_attention(
            self.q, self.k, v, attn_mask=mask, is_causal=causal, scale=1.0, enable_gqa=grouped
        )

    def linear(self, feature_map: FeatureMap, exact: ExactWindow | None) -> Tensor:
        """Linear attention, [b, heads, n, dv]; every head linear."""
        mask = None if self.key_mask is None else self.key_mask.unsqueeze(1)
        return linear_attention(
            feature_map, self.q, self.k, self.v, causal=self.causal, key_mask=mask, exact=exact
        )

    def converted(self, layer: LinearLayer) -> Tensor:
        """What the converted layer answers: linear, but for the heads that stay exact."""
        return layer(self.q, self.k, self.v, causal=self.causal, key_mask=self.key_mask)


Observer = Callable[[Call], Tensor]
"""Gets a call, returns the layer's output [b, heads, n, dv]."""


@contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[dict[int, LinearLayer]]:
    """Inside the with-block converted layers answer by `observer`; gives the layers by number.

    Raises:     ValueError if no layer of `model` is converted.
    """
    layers = converted_layers(model)
    if not layers:
        raise ValueError(
            f"model is a {type(model).__name__} without converted layers; expected a converted one."
            " Call bochner.transformers.linearize(model) first."
        )
    cross = {place.index for place in attention_places(model) if place.cross}
    numbers = {id(layer): number for number, layer in layers.items()}

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        q, k = scaled(query, key, kwargs)
        number = numbers[id(getattr(module, PART))]
        call = Call(number, q, k, value, kwargs["is_causal"], attention_mask, number in cross)
        out = observer(call)
        return out.to(value.dtype).transpose(1, 2).contiguous(), None

    with attention_replaced(model, LINEAR, attend):
        yield layers


def check_fitted(layers: dict[int, LinearLayer]) -> None:
    """Raise NotFittedError for a layer whose map still wants data, with the remedy."""
    for layer in layers.values():
        if isinstance(layer.feature_map, UnfittedMap):
            raise NotFittedError(
                f"feature map {layer.feature_map.name!r} of layer {layer.place!r} is data-aware and has"
                " seen no data; call bochner.transformers.calibrate(model, batches) first."
            )
