"""Where a model attends: its attention modules, and what each of them is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
DIMS = ("head_dim", "attention_head_size", "qk_head_dim", "key_value_proj_dim", "head_size")
CROSS = ("cross", "encoder_attn", "encdec")
"""What the names of cross-attention modules and of their classes contain."""


@dataclass(frozen=True)
class AttentionPlace:
    """One attention module of a model.

    Attributes: index: its number, in the order of `model.modules()`; layers that share a module share
                the number. name: its path in the model. heads, kv_heads, head_dim: None where the
                module does not say. cross: keys come from another sequence.
    """

    index: int
    name: str
    module: nn.Module
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    cross: bool

    @property
    def causal(self) -> bool:
        """Whether positions see only the past (what transformers takes a module to be by default)."""
        return not self.cross and bool(getattr(self.module, "is_causal", True))

    @property
    def cache_index(self) -> int | None:
        """The layer of a cache that the module writes to; None if it keeps no state there."""
        return getattr(self.module, "layer_idx", None) if self.causal else None


def attention_places(model: PreTrainedModel) -> list[AttentionPlace]:
    """The modules of `model` whose forward calls the attention interface of transformers.

    Example:
        >>> from bochner.data import load_minilm
        >>> places = attention_places(load_minilm()[0])
        >>> places[5].index, places[5].name, places[5].heads, places[5].head_dim
        (5, 'encoder.layer.5.attention.self', 12, 32)
    """
    found = [(name, m) for name, m in model.named_modules() if _calls_interface(type(m).forward)]
    return [_place(index, name, module) for index, (name, module) in enumerate(found)]


def _calls_interface(forward: Callable[..., Any]) -> bool:
    """Whether the code of a forward function names the registry of attention functions."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _place(index: int, name: str, module: nn.Module) -> AttentionPlace:
    head_dim = next(_integers(module, DIMS), None)
    heads = next(_integers(module, HEADS), None)
    config = getattr(module, "config", None)
    if heads is None and head_dim is not None:
        width = getattr(getattr(module, "q_proj", None), "out_features", None)
        heads = None if width is None else width // head_dim
    if heads is None:
        heads = next(_integers(config, HEADS), None)
    if head_dim is None and heads is not None:
        width = next(_integers(module, ("inner_dim", "embed_dim", "hidden_size", "dim")), None)
        head_dim = None if width is None else width // heads
    own = f"{type(module).__name__} {' '.join(name.split('.')[-2:])}".lower()
    return AttentionPlace(
        index,
        name,
        module,
        heads,
        _kv_heads(module, heads),
        head_dim,
        getattr(module, "is_cross_attention", False) is True or any(word in own for word in CROSS),
    )


def _kv_heads(module: nn.Module, heads: int | None) -> int | None:
    groups = next(_integers(module, ("num_key_value_groups",)), None)
    if groups is not None and heads is not None:
        return heads // groups
    return next(_integers(module, ("num_key_value_heads",)), heads)


def _integers(source: object, names: tuple[str, ...]) -> Iterator[int]:
    """The attributes of these names that are whole numbers."""
    for name in names:
        value = getattr(source, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
