"""The main job in functions: a pretrained model made linear, how far it moved, how long it takes."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bochner.algebra import Constant
from bochner.attention import DenominatorWarning, ExactWindow, linear_attention
from bochner.catalog import make
from bochner.data import QKV
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap

NEAR = ExactWindow(window=32, sinks=8, denominator_floor=0.0)
"""The exact pairs of a converted model here, with the guard that `linearize` sets."""


@dataclass(frozen=True)
class Conversion:
    """Attention to put into every layer: one map per layer, and the pairs that stay exact."""

    label: str
    num_features: int
    maps: Sequence[FeatureMap]
    exact: ExactWindow | None = None

    @property
    def title(self) -> str:
        """The label with its exact pairs."""
        near = self.exact
        return self.label + ("" if near is None else f", window {near.window}, {near.sinks} sinks")


@dataclass(frozen=True)
class Swap:
    """How far a model's outputs moved when its attention was replaced.

    cosines:    between the sentence embeddings of the exact and the changed model, one a window,
                over all seeds.
    worse_heads: how many of `heads` have an output no closer to the exact one than the average of
                the values, on the exact model's activations of the same windows; None if not counted.
    guarded:    what the first DenominatorWarning said; None if there was none.
    """

    label: str
    num_features: int
    cosines: Tensor
    worse_heads: int | None = None
    heads: int = 0
    guarded: str | None = None

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


def calibrated_maps(
    model: Any,
    name: str,
    num_features: int,
    batches: Sequence[Tensor],
    generator: torch.Generator,
) -> list[FeatureMap]:
    """The maps of `linearize(model, name, num_features, ...)` with `NEAR` and `calibrate(model,
    batches)`, one per layer; the model is exact again afterwards."""
    from bochner.transformers import calibrate, converted_layers, linearize, restore

    exact = NEAR
    linearize(
        model, name, num_features, window=exact.window, sinks=exact.sinks, generator=generator
    )
    try:
        with denominator_warnings():  # what the swap itself warns of is shown
            calibrate(model, batches, generator=generator)
        return [layer.feature_map for layer in converted_layers(model).values()]
    finally:
        restore(model)


@contextmanager
def converted(model: Any, conversion: Conversion) -> Iterator[None]:
    """Inside the with-block the model attends linearly; its own attention is back at the end."""
    from bochner.transformers import linearize, restore

    near = conversion.exact
    if near is None:
        linearize(model, conversion.maps)
    else:
        linearize(
            model,
            conversion.maps,
            window=near.window,
            sinks=near.sinks,
            denominator_floor=near.denominator_floor,
        )
    try:
        yield
    finally:
        restore(model)


def swap_cosines(model: Any, windows: Tensor, exact: Tensor, conversion: Conversion) -> Tensor:
    """Cosine between exact embeddings [windows, d] and those with linear attention, [windows]."""
    from bochner.transformers import sentence_embeddings

    mask = torch.ones_like(windows)
    with torch.no_grad(), converted(model, conversion):
        moved = torch.cat(
            [
                sentence_embeddings(model, rows, rows_mask)
                for rows, rows_mask in zip(windows.split(4), mask.split(4), strict=True)
            ]
        )
    return torch.nn.functional.cosine_similarity(exact, moved, dim=-1)


def swap(
    model: Any, windows: Tensor, exact: Tensor, draws: Sequence[Callable[[], Conversion]]
) -> Swap:
    """One row of the table: every draw's cosines, and the first draw's heads worse than averaging."""
    from bochner.transformers import report

    first = draws[0]()
    with denominator_warnings() as said:
        cosines = [swap_cosines(model, windows, exact, first)]
        cosines += [swap_cosines(model, windows, exact, draw()) for draw in draws[1:]]
    with denominator_warnings(), converted(model, first):  # also of the features without the window
        found = report(model, windows.split(4))
    return Swap(
        first.title,
        first.num_features,
        torch.cat(cosines),
        len(found.worse_than_averaging),
        sum(len(errors.converted) for errors in found.layers.values()),
        said[0] if said else None,
    )


@contextmanager
def denominator_warnings() -> Iterator[list[str]]:
    """Collects what DenominatorWarnings say in place of one line each; other warnings go on."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DenominatorWarning)
        yield said
    for warning in caught:
        if issubclass(warning.category, DenominatorWarning):
            said.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


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
    layer: QKV,
    maps: dict[str, tuple[FeatureMap, ExactWindow | None]],
    lengths: Sequence[int],
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of exact and linear attention of one layer, its tokens repeated to each length.

    Shapes:     layer q, k, v [b, heads, n, d]; the first b is taken.
    """
    times: dict[str, list[float]] = {"exact (torch SDPA)": [], **{name: [] for name in maps}}
    for length in lengths:
        copies = -(-length // layer.q.shape[-2])
        q, k, v = (x[:1].repeat(1, 1, copies, 1)[..., :length, :].contiguous() for x in layer)
        contestants: dict[str, Callable[[], object]] = {
            "exact (torch SDPA)": partial(
                torch.nn.functional.scaled_dot_product_attention, q, k, v, scale=1.0
            )
        }
        for name, (phi, near) in maps.items():
            contestants[name] = partial(linear_attention, phi, q, k, v, exact=near)
        with torch.no_grad(), denominator_warnings():  # of time only: errors are measured elsewhere
            found = median_seconds(contestants, repeats)
        for name, seconds in found.items():
            times[name].append(seconds)
    return times
