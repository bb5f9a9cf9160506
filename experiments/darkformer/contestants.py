"""The feature maps that are compared, under the names of their papers; and models with them inside.

`averaging` estimates every kernel value by 1: it draws nothing, its output is the mean of the values, and
a map that does worse has lost more than it found.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bochner.algebra import Constant
from bochner.attention import DenominatorWarning
from bochner.catalog import spec

MINILM_LAYERS, SMOLLM2_LAYERS = 6, 30
AVERAGING = "averaging"
CALIBRATED = "calibrated"
EXACT, TRUNCATED = "exact", "window alone"
"""No conversion at all; exact attention to a window and sinks, and to nothing else."""


@dataclass(frozen=True)
class Contestant:
    """A map of the catalogue, what tables call it, and whether training can reach its parameters."""

    label: str
    paper: str
    trainable: bool = False


CONTESTANTS = {
    AVERAGING: Contestant("averaging the values", "no features"),
    "positive": Contestant("Performer", "Choromanski et al. 2021"),
    "gerf": Contestant("FAVOR++", "Likhosherstov et al. 2022"),
    "aderf": Contestant("FAVOR#", "Likhosherstov et al. 2023"),
    "cluster": Contestant("HRF, clusters", "Choromanski et al. 2022"),
    "data-aware-absolute": Contestant("DARK, Theorem 3.2", "Farzam et al. 2026"),
    "dark": Contestant("DARK, trained kernel", "Farzam et al. 2026", trainable=True),
    "data-aware": Contestant("data-aware", "bochner"),
    CALIBRATED: Contestant(CALIBRATED, "bochner", trainable=True),
}
"""Catalogue name -> contestant, in the order of tables."""


def label(name: str) -> str:
    """What tables call a map."""
    others = {EXACT: "exact attention", TRUNCATED: "window and sinks alone"}
    return CONTESTANTS[name].label if name in CONTESTANTS else others[name]


def needs_data(name: str) -> bool:
    """Whether a map has to be calibrated before it can be used."""
    return name != AVERAGING and spec(name).needs_data


@dataclass(frozen=True)
class Conversion:
    """How a model is converted: the map, its columns, the exact pairs, and the seed of its draws.

    `exact_heads` is the share of heads that stay exact, those with the largest error; `layers` how many
    layers are converted, from the first on; None: all.
    """

    name: str
    columns: int
    window: int = 0
    sinks: int = 0
    seed: int = 0
    exact_heads: float = 0.0
    layers: int | None = None

    def apply(self, model: Any, batches: Sequence[Tensor]) -> None:
        """Convert all layers of `model` in place, and fit maps that need data to `batches` [b, n] of
        token numbers."""
        from bochner.transformers import calibrate, linearize

        generator = torch.Generator().manual_seed(self.seed)
        layers = range(model.config.num_hidden_layers if self.layers is None else self.layers)
        how = {"window": self.window, "sinks": self.sinks, "layers": list(layers)}
        if self.name == AVERAGING:
            linearize(model, [Constant(head_dim(model.config)) for _ in layers], **how)
        else:
            linearize(model, self.name, self.columns, **how, generator=generator)
        if needs_data(self.name) or self.exact_heads:
            calibrate(
                model, batches, exact_heads=self.exact_heads, theory=False, generator=generator
            )


def head_dim(config: Any) -> int:
    """The dimension of queries and keys of a head."""
    given = getattr(config, "head_dim", None)
    return config.hidden_size // config.num_attention_heads if given is None else given


@contextmanager
def without_denominator_warnings() -> Iterator[None]:
    """Signed maps warn at every call; the experiments count what the warning says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DenominatorWarning)
        yield
