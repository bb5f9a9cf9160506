"""Generation with states of constant size in place of growing keys and values."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    EncoderDecoderCache,
)

from bochner.attention import AttentionState
from bochner.transformers.handover import hand_over
from bochner.transformers.layer import PART, LinearLayer
from bochner.transformers.places import attention_places


class LinearCacheLayer(CacheLayerMixin):
    """The state of one converted layer; heads that stay exact keep their keys and values.

    Attributes: length: tokens so far, padding included; state: None before the first.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False
    keys: Tensor | None
    values: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.state: AttentionState | None = None
        self.heads: tuple[int, ...] = ()
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values as they came; the attention that follows takes them in."""
        hand_over(self, key_states)
        return key_states, value_states

    def with_past(self, k: Tensor, v: Tensor, heads: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Keys and values of exact heads, the past ones first; the new ones are kept.

        Raises:     ValueError for other `heads` than those of the tokens so far, or other sequences.
        """
        if self.length and heads != self.heads:
            raise ValueError(
                f"key/value heads {list(heads)} stay exact now; the cache has {self.length} tokens with the"
                f" keys of heads {list(self.heads)}. Start another LinearCache after changing exact heads."
            )
        if self.keys is not None and self.values is not None:
            if len(k) != len(self.keys):
                raise ValueError(
                    f"{len(k)} sequences came to a LinearCache that holds {len(self.keys)}; start another"
                    " LinearCache, or reset() this one, for other sequences."
                )
            k, v = torch.cat([self.keys, k], dim=-2), torch.cat([self.values, v], dim=-2)
        self.keys, self.values, self.heads = k, v, heads
        return k, v

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens after this call, 0): masks are of all tokens, as for any other cache."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens so far, padding included."""
        return self.length

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.length, self.state, self.heads = 0, None, ()
        self.keys = self.values = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The sequences `beam_idx`, in this order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """The sequences `indices`, in this order."""
        if self.state is not None:
            self.state = self.state.index_select(indices)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (
                x.index_select(0, indices.to(x.device)) for x in (self.keys, self.values)
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times."""
        numerator = None if self.state is None else self.state.numerator
        known = self.keys if numerator is None else numerator
        if known is not None:
            self.batch_select_indices(torch.arange(known.shape[0]).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Raises NotImplementedError: a sum cannot forget."""
        raise NotImplementedError(
            f"crop({tokens_to_remove}): a linear attention state cannot forget tokens, as assisted and"
            " contrastive generation ask; generate greedily, by sampling or with beams."
        )

    def offload(self) -> None:
        """Nothing to offload: the state is small."""

    def prefetch(self) -> None:
        """Nothing was offloaded."""


class LinearCache(Cache):
    """A cache for a converted model: constant size per converted layer, whatever the length.

        model.generate(**tokens, past_key_values=LinearCache(model))

    `model.generate(**tokens)` makes one itself; give one to keep it, to continue from it, or to write
    your own loop. Layers that stay exact have the layer that they always had.

    Equals:     the model without a cache (`use_cache=False`), up to rounding.
    Cost:       per token and converted layer O(m dv) time and memory (with a window, plus its tokens);
                heads that stay exact keep their keys and values.
    Raises:     ValueError if no causal self-attention of `model` is converted. NotImplementedError from
                `crop`: states cannot forget. Encoder-decoders: pass EncoderDecoderCache(LinearCache(
                model), DynamicCache(config=model.config)).
    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from bochner.transformers import linearize
        >>> config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0)
        >>> model = linearize(GPT2LMHeadModel(config).eval(), "positive", 16)
        >>> cache = LinearCache(model)
        >>> with torch.no_grad():
        ...     _ = model(torch.arange(40)[None], past_key_values=cache)
        ...     _ = model(torch.tensor([[7]]), past_key_values=cache)
        >>> cache.get_seq_length(), tuple(cache.layers[0].state.numerator.shape)
        (41, (1, 2, 16, 8))
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = list(DynamicCache(config=model.config.get_text_config(decoder=True)).layers)
        super().__init__(layers=layers)
        if not _fill(self, model):
            raise ValueError(
                f"model is a {type(model).__name__} without a converted causal layer; expected a decoder"
                " after linearize(model)."
            )


def _fill(cache: Cache, model: nn.Module) -> bool:
    """Give `cache` a linear layer for each converted decoder layer of `model`; whether there is one."""
    found: dict[int, LinearLayer] = {}
    for place in attention_places(model):
        index, layer = place.cache_index, place.module._modules.get(PART)
        if index is None or not isinstance(layer, LinearLayer):
            continue
        if index in found:
            return False  # two decoders in one model: whose cache this is cannot be known
        found[index] = layer
    while len(cache.layers) <= max(found, default=-1):
        cache.layers.append(DynamicLayer())
    for index, layer in found.items():
        cache.layers[index] = LinearCacheLayer()
        layer.may_be_cached = True
    return bool(found)


def _linear_cache_for_an_empty_one(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Before a converted model runs: an empty dynamic cache gets linear layers, in place."""
    cache = kwargs.get("past_key_values")
    if cache is not None:
        _make_linear(cache, module)


@torch.compiler.disable
def _make_linear(cache: Any, module: nn.Module) -> None:
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if type(cache) is not DynamicCache:
        return
    if all(isinstance(x, DummyLayer) or not x.is_initialized for x in cache.layers):
        _fill(cache, module)


def add_cache_hooks(model: PreTrainedModel) -> None:
    """Let every model inside `model` that takes a cache make an empty one linear."""
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        if "past_key_values" in inspect.signature(module.forward).parameters:
            module.register_forward_pre_hook(_linear_cache_for_an_empty_one, with_kwargs=True)


def remove_cache_hooks(model: PreTrainedModel) -> None:
    """Undo `add_cache_hooks`."""
    for module in model.modules():
        hooks = module._forward_pre_hooks
        for number in [n for n, hook in hooks.items() if hook is _linear_cache_for_an_empty_one]:
            del hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)
