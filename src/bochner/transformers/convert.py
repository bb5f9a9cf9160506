"""Make the attention of a model linear, in place, and take it back.

A converted model is its old self with a `LinearLayer` inside each converted attention module, a name of
ours as its attention implementation, a hook that gives an empty cache its linear layers, and one that
sees whether the implementation is still ours. There is no other trace: copies, pickles, devices and
optimisers see ordinary modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bochner.attention import ExactWindow
from bochner.catalog import make
from bochner.feature_map import FeatureMap
from bochner.request import fresh_generator
from bochner.transformers.cache import add_cache_hooks, remove_cache_hooks
from bochner.transformers.interface import (
    LINEAR_FOR,
    RECORDING,
    check_model,
    configurations,
    not_on_the_interface,
)
from bochner.transformers.layer import PART, LinearLayer
from bochner.transformers.places import AttentionPlace, attention_places
from bochner.validation import check_count


def linearize(
    model: PreTrainedModel,
    feature_map: str | Sequence[FeatureMap] = "calibrated",
    num_features: int = 64,
    *,
    window: int = 0,
    sinks: int = 0,
    denominator_floor: float | None = 0.0,
    layers: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> PreTrainedModel:
    """Convert the attention of `model` to linear attention, in place; `restore` takes it back.

    Arguments:  feature_map: a name of the catalogue, or one FeatureMap per converted layer, in order.
                num_features: of maps by name, per head. window, sinks: pairs of self-attention that
                stay exact (`bochner.attention.ExactWindow`); cross-attention has none.
                denominator_floor: of that window: a row whose features of a signed map sum to less than
                this many times its exact part uses the exact part alone, and a DenominatorWarning gives
                the share of such rows; None: no guard.
                layers: the numbers of the attention modules to convert, in the order of
                `attention_places(model)`; the others stay exact; None: all. generator: for the directions of
                maps by name.
    Models:     whose attention modules use the attention interface of transformers: encoders, decoders
                with rotary positions and grouped queries, encoder-decoders with cross-attention, vision
                and speech. Weights stay as they are.
    Masks:      padding and causality as before. Converted layers refuse any other mask, sliding
                windows, logits with a bias or a cap, and attention dropout (see `LinearLayer`).
    Caches:     `model.generate` runs on states of constant size (`LinearCache`). Cross-attention keeps
                the encoder's keys, as before, and computes their features again for each new token.
    Compiling:  `torch.compile` works; give a compiled decoder its attention_mask, without which
                transformers takes tokens for packed sequences.
    Raises:     TypeError if `model` is not a model of transformers; ValueError if none of its modules
                attends through the interface, if it is converted already, for layers that it does not
                have, and for maps that do not fit. Running the model with a map that still wants data
                raises NotFittedError: `calibrate` fits it.
    Example:
        >>> from bochner.data import load_minilm
        >>> model, tokenizer = load_minilm()
        >>> tokens = tokenizer("A kitten is in the garden.", return_tensors="pt")
        >>> g = torch.Generator().manual_seed(0)
        >>> with torch.no_grad():
        ...     exact = model(**tokens).last_hidden_state
        ...     linear = linearize(model, "positive", 1024, generator=g)(**tokens).last_hidden_state
        ...     again = restore(model)(**tokens).last_hidden_state
        >>> round(float((linear - exact).norm() / exact.norm()), 1), bool((again == exact).all())
        (0.6, True)
    """
    check_model(model)
    places = _chosen(model, layers)
    for place in places:
        _check_plain(place)
    exact = ExactWindow(window, sinks, denominator_floor) if window or sinks else None
    maps = _maps(places, feature_map, num_features, generator)
    named = _configurations_of(model, places)
    heads = [_heads(place, phi) for place, phi in zip(places, maps, strict=True)]
    for place, phi, number in zip(places, maps, heads, strict=True):
        window_here = None if place.cross else exact
        layer = LinearLayer(phi, number, exact=window_here, place=place.name)
        parameter = next(place.module.parameters(), None)
        if parameter is not None:
            layer.to(parameter.device)
        place.module.add_module(PART, layer.train(place.module.training))
        place.module.register_forward_pre_hook(_still_linear)
    for config in named:
        config._attn_implementation_internal = LINEAR_FOR[config._attn_implementation]
    add_cache_hooks(model)
    return model


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it was before `linearize`: same attention, no part or hook of ours left.

    Raises:     TypeError if `model` is not a model of transformers. Without effect on a model that is
                not converted.
    Example:
        >>> from bochner.data import load_minilm
        >>> model, _ = load_minilm()
        >>> names = list(model.state_dict())
        >>> list(restore(linearize(model, "positive")).state_dict()) == names
        True
    """
    check_model(model)
    for place in attention_places(model):
        if PART in place.module._modules:
            del place.module._modules[PART]
        hooks = place.module._forward_pre_hooks
        for number in [n for n, hook in hooks.items() if hook is _still_linear]:
            del hooks[number]
    before = {ours: name for name, ours in LINEAR_FOR.items()}
    for config in configurations(model):
        if config._attn_implementation in before:
            config._attn_implementation_internal = before[config._attn_implementation]
    remove_cache_hooks(model)
    return model


def _still_linear(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Before a converted module runs: its configuration still names an attention of ours.

    Under another name the layer would be exact without a word, and blind to all but the newest tokens of
    a LinearCache.
    """
    name = module.config._attn_implementation  # type: ignore[union-attr]
    if name not in (*LINEAR_FOR.values(), RECORDING):
        raise ValueError(
            f"the attention implementation of a converted model was set to {name!r}; call restore(model)"
            " for exact attention, and set_attn_implementation before linearize(model), not after."
        )


def converted_layers(model: PreTrainedModel) -> dict[int, LinearLayer]:
    """The converted layers by their number in `attention_places(model)`.

    Example:
        >>> from bochner.data import load_minilm
        >>> model, _ = load_minilm()
        >>> list(converted_layers(linearize(model, "positive", layers=[0, 4])))
        [0, 4]
        >>> list(converted_layers(restore(model)))
        []
    """
    parts = {p.index: p.module._modules.get(PART) for p in attention_places(model)}
    return {index: part for index, part in parts.items() if isinstance(part, LinearLayer)}


def _chosen(model: PreTrainedModel, layers: Sequence[int] | None) -> list[AttentionPlace]:
    """The attention modules to convert."""
    places = attention_places(model)
    if not places:
        raise not_on_the_interface(model)
    converted = [place.name for place in places if PART in place.module._modules]
    if converted:
        raise ValueError(
            f"model is converted already ({len(converted)} layers, first {converted[0]!r}); call"
            " restore(model) first."
        )
    if layers is None:
        return places
    if not isinstance(layers, Iterable):
        raise TypeError(
            f"layers={layers!r} must be a list of numbers, such as [{layers!r}], or None."
        )
    chosen = list(layers)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(len(places))):
        raise ValueError(
            f"layers={chosen} must be different numbers from 0 to {len(places) - 1}, the attention"
            " modules of the model as bochner.transformers.attention_places lists them."
        )
    return [places[index] for index in chosen]


def _check_plain(place: AttentionPlace) -> None:
    """Raise for a module that says at once that its attention is not plain."""
    for name, what in (
        ("has_relative_attention_bias", "a relative position bias in its logits"),
        ("attn_logit_softcapping", "a soft cap on its logits"),
        ("sliding_window", "a sliding window"),
        ("sinks", "a learned sink in its normaliser"),
    ):
        value = getattr(place.module, name, None)
        if value is not None and (name == "has_relative_attention_bias" or value is not False):
            raise ValueError(
                f"attention module {place.index} ({place.name}, {type(place.module).__name__}) has"
                f" {what} ({name}={value!r}); linear attention cannot keep it. Leave it exact: choose"
                " other layers=."
            )


def _maps(
    places: list[AttentionPlace],
    feature_map: str | Sequence[FeatureMap],
    num_features: int,
    generator: torch.Generator | None,
) -> list[FeatureMap]:
    """One map per place."""
    if isinstance(feature_map, str):
        check_count("num_features", num_features)
        source = fresh_generator() if generator is None else generator
        return [_made(place, feature_map, num_features, source) for place in places]
    if isinstance(feature_map, FeatureMap) or not isinstance(feature_map, Iterable):
        what = type(feature_map).__name__ if feature_map is not None else "None"
        raise TypeError(
            f"feature_map={what} must be a name of the catalogue, or a list of one FeatureMap per converted"
            f" module, here {len(places)}."
        )
    maps = list(feature_map)
    if len(maps) != len(places):
        raise ValueError(
            f"feature_map has {len(maps)} maps, but {len(places)} attention modules are converted; give"
            " one map per module (layers that share weights share one)."
        )
    for position, (place, phi) in enumerate(zip(places, maps, strict=True)):
        if not isinstance(phi, FeatureMap):
            raise TypeError(
                f"feature_map[{position}] is a {type(phi).__name__}; expected a bochner.FeatureMap."
            )
        _check_fits(place, phi)
    return maps


def _made(place: AttentionPlace, name: str, m: int, generator: torch.Generator) -> FeatureMap:
    if place.head_dim is None or place.kv_heads is None:
        raise ValueError(
            f"attention module {place.index} ({place.name}, {type(place.module).__name__}) does not say"
            " how many heads it has, or of which dimension; give the maps themselves: feature_map=[one"
            " FeatureMap per layer]."
        )
    return make(
        name,
        dim=place.head_dim,
        num_features=m,
        batch_shape=(place.kv_heads,),
        generator=generator,
    )


def _check_fits(place: AttentionPlace, phi: FeatureMap) -> None:
    sizes = {(), *((n,) for n in (place.heads, place.kv_heads) if n is not None)}
    heads_fit = place.heads is None or phi.batch_shape in sizes
    if not heads_fit or place.head_dim not in (None, phi.dim):
        raise ValueError(
            f"the map of attention module {place.index} ({place.name}) has dim={phi.dim} and"
            f" batch_shape={phi.batch_shape}; the module has head dimension {place.head_dim},"
            f" {place.heads} query heads and {place.kv_heads} key/value heads."
        )


def _heads(place: AttentionPlace, phi: FeatureMap) -> int:
    if place.heads is not None:
        return place.heads
    if phi.batch_shape:
        return phi.batch_shape[-1]
    raise ValueError(
        f"attention module {place.index} ({place.name}, {type(place.module).__name__}) does not say how"
        " many heads it has; give its map a batch_shape=(heads,)."
    )


def _configurations_of(model: PreTrainedModel, places: list[AttentionPlace]) -> list[Any]:
    """The configurations that decide how these modules attend and which mask they get."""
    owners = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
    }
    found: dict[int, Any] = {}
    for place in places:
        parts = place.name.split(".")
        paths = [".".join(parts[:end]) for end in range(len(parts), -1, -1)]
        owner = next(owners[path] for path in paths if path in owners)
        for config in (place.module.config, owner.config):
            found[id(config)] = config
    for config in found.values():
        if config._attn_implementation not in LINEAR_FOR:
            raise ValueError(
                f"model attends by {config._attn_implementation!r}; expected one of {list(LINEAR_FOR)}."
                ' Call model.set_attn_implementation("sdpa") first.'
            )
    return list(found.values())
