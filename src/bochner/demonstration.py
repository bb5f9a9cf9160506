"""The main job in functions: a pretrained model made linear, how far it moved, how long it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bochner.algebra import Constant
from bochner.attention import linear_attention
from bochner.catalog import make
from bochner.data import QKV
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap


@dataclass(frozen=True)
class Swap:
    """How far a model's outputs moved when its attention was replaced.

    cosines:    between the sentence embeddings of the exact and the changed model, one a window,
                over all seeds.
    """

    label: str
    num_features: int
    cosines: Tensor

    @property
    def mean(self) -> float:
        """Mean cosine."""
        return float(self.cosines.mean())

    @property
    def worst(self) -> float:
        """Smallest cosine."""
        return float(self.cosines.min())


def layer_maps(
    name: str, num_features: int, calibration: Sequence[QKV], generator: torch.Generator
) -> list[FeatureMap]:
    """One map per layer, with one set of directions per head, fitted to that layer if it wants data.

    Shapes:     calibration: per layer q, k [b, heads, n, d].
    """
    maps = []
    for layer in calibration:
        heads, dim = layer.q.shape[1], layer.q.shape[-1]
        phi = make(
            name, dim=dim, num_features=num_features, batch_shape=(heads,), generator=generator
        )
        maps.append(phi.fit(layer.q, layer.k) if isinstance(phi, UnfittedMap) else phi)
    return maps


def averaging_maps(calibration: Sequence[QKV]) -> list[FeatureMap]:
    """The trivial baseline as feature maps: one constant feature, so every value weighs the same."""
    return [Constant(layer.q.shape[-1]) for layer in calibration]


def swap_cosines(model: Any, windows: Tensor, exact: Tensor, maps: Sequence[FeatureMap]) -> Tensor:
    """Cosine between exact embeddings [windows, d] and those with linear attention, [windows]."""
    from bochner.transformers import linear_attention_swapped, sentence_embeddings

    mask = torch.ones_like(windows)
    with torch.no_grad(), linear_attention_swapped(model, maps):
        moved = torch.cat(
            [
                sentence_embeddings(model, rows, rows_mask)
                for rows, rows_mask in zip(windows.split(4), mask.split(4), strict=True)
            ]
        )
    return torch.nn.functional.cosine_similarity(exact, moved, dim=-1)


def median_seconds(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of each, run in turn A B C A B C ... after one warm-up round."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def time_attention(
    layer: QKV, maps: dict[str, FeatureMap], lengths: Sequence[int], repeats: int
) -> dict[str, list[float]]:
    """Seconds of exact and linear attention of one layer, its tokens repeated to each length.

    Shapes:     layer q, k, v [b, heads, n, d]; the first b is taken.
    """
    times: dict[str, list[float]] = {"exact (torch SDPA)": [], **{name: [] for name in maps}}
    for length in lengths:
        copies = -(-length // layer.q.shape[-2])
        q, k, v = (x[:1].repeat(1, 1, copies, 1)[..., :length, :].contiguous() for x in layer)
        contestants: dict[str, Callable[[], object]] = {
            "exact (torch SDPA)": lambda q=q, k=k, v=v: (  # type: ignore[misc]
                torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
            )
        }
        for name, phi in maps.items():
            contestants[name] = lambda phi=phi, q=q, k=k, v=v: linear_attention(phi, q, k, v)  # type: ignore[misc]
        with torch.no_grad():
            found = median_seconds(contestants, repeats)
        for name, seconds in found.items():
            times[name].append(seconds)
    return times
