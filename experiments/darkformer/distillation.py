"""Attention distillation, layer by layer: a layer's linear attention is to give what exact attention gave.

    loss = mean over layers of  sum |O^ - O|^2 / sum |O|^2,    O^ = linear attention of (W_q h, W_k h, v)

h, v and O are the original model's, so layers train side by side and errors of one do not reach the next.
What is trained: the maps' parameters, or with them the projections W_q and W_k of queries and keys. The
product `bochner.transformers.finetune` trains the maps alone; the projections are this experiment's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bochner.data import load_minilm
from bochner.landmarks import LandmarkFeatures
from bochner.transformers import collect_qkv, converted_layers
from experiments.darkformer.texts import minilm_windows

MAPS, ALL = "maps", "maps and projections"
COVARIANCE_RATE, PROJECTION_RATE = 1e-2, 1e-3
LANDMARK_RATE = 1e-3
"""Adam's step sizes: of entries of M (I at first), of projections (entries of about 0.05), and of landmarks
relative to the root mean square of each tensor, since their matrices are a thousand times smaller than
their points: one step of 1e-4 would replace them."""


@dataclass(frozen=True)
class Target:
    """One layer of the original model: hidden states [w, n, D], values and outputs [w, heads, n, dv]."""

    hidden: Tensor
    values: Tensor
    outputs: Tensor

    def part(self, chosen: Tensor) -> Target:
        return Target(self.hidden[chosen], self.values[chosen], self.outputs[chosen])


@torch.no_grad()
def targets(original: Any, windows: Tensor) -> list[Target]:
    """What every layer of BERT is to give for windows [w, n] of token numbers."""
    seen: list[Tensor] = []
    modules = [layer.attention.self for layer in original.encoder.layer]
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for module in modules
    ]
    try:
        layers = collect_qkv(original, windows)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [torch.softmax(x.q @ x.k.transpose(-1, -2), -1) @ x.v for x in layers]
    return [Target(h, x.v, o) for h, x, o in zip(seen, layers, outputs, strict=True)]


@functools.cache
def minilm_targets(
    part: str, documents: int, each: int, length: int, stride: int = 1
) -> list[Target]:
    """The layers of MiniLM on every `stride`-th of the windows of `minilm_windows`."""
    windows = minilm_windows(part, documents, each, length)[::stride]
    return targets(load_minilm()[0], windows)


def layer_outputs(model: Any, layers: list[Target]) -> Iterator[Tensor]:
    """Linear attention of each converted layer of BERT on the original's hidden states and values."""
    converted = converted_layers(model)
    for number, layer in enumerate(layers):
        module = model.encoder.layer[number].attention.self
        heads = layer.values.shape[1]
        root = math.sqrt(module.scaling)
        q, k = (
            root * projection(layer.hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection in (module.query, module.key)
        )
        yield converted[number](q, k, layer.values, causal=False)


def trained_parameters(model: Any, what: str) -> list[dict[str, Any]]:
    """Groups of parameters with their step sizes: of the maps, and of the projections if wanted."""
    groups: list[dict[str, Any]] = []
    for layer in converted_layers(model).values():
        landmarks = isinstance(phi := layer.feature_map, LandmarkFeatures)
        for parameter in (phi.trainable_() if landmarks else phi).parameters():
            size = float(parameter.detach().square().mean().sqrt())
            rate = LANDMARK_RATE * size if landmarks else COVARIANCE_RATE
            groups.append({"params": [parameter], "lr": rate})
    if what == ALL:
        modules = [x for module in model.modules() for x in projections(module)]
        found = [parameter for module in modules for parameter in module.parameters()]
        groups.append({"params": found, "lr": PROJECTION_RATE})
    return groups


def numbers(groups: list[dict[str, Any]]) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def projections(module: nn.Module) -> list[nn.Module]:
    """W_q and W_k of an attention module of BERT or Llama; nothing of other modules."""
    for pair in (("query", "key"), ("q_proj", "k_proj")):
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in pair):
            return [getattr(module, name) for name in pair]
    return []


class Optimiser:
    """Adam on groups of parameters, and on nothing else of the model; rates fall to a tenth along a cosine.

    Gradients are clipped to norm 1. Without anything to train a step does nothing.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], steps: int) -> None:
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.adam = torch.optim.Adam(groups) if self.parameters else None
        self.rates = [float(group["lr"]) for group in groups]
        self.taken, self.steps = 0, steps

    def step(self) -> None:
        """One step along the gradients, which are then forgotten."""
        if self.adam is None:
            return
        share = 0.55 + 0.45 * math.cos(math.pi * self.taken / self.steps)
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = share * rate
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        self.adam.zero_grad()
        self.taken += 1


def distil(
    model: Any, pool: list[Target], what: str, steps: int, batch: int, generator: torch.Generator
) -> Iterator[int]:
    """Train a converted model in place; gives the number of steps taken so far, 0 first.

    Every step takes `batch` random windows of the pool. Without anything to train the model stays.
    """
    optimiser = Optimiser(model, trained_parameters(model, what), steps)
    windows = len(pool[0].hidden)
    yield 0
    for step in range(1, steps + 1):
        chosen = torch.randperm(windows, generator=generator)[:batch]
        if optimiser.parameters:
            part = [layer.part(chosen) for layer in pool]
            for layer, out in zip(part, layer_outputs(model, part), strict=True):
                loss = (out - layer.outputs).square().sum() / layer.outputs.square().sum()
                (loss / len(part)).backward()
            optimiser.step()
        yield step
