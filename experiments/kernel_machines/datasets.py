"""The real sets of the kernel-machine experiments: numbers in, labels or a target out.

Columns are standardised on the rows that a model may see (pixels are only divided by 255), constant ones
are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bochner.data import (
    Regression,
    Tabular,
    diamonds,
    fashion_mnist,
    keel_dataset,
    mlbench_dataset,
    nyc_flights,
    sklearn_dataset,
)


class Examples(NamedTuple):
    """x [n, d] as published and y [n]: labels 0..classes-1, or a target if classes is 0.

    `test`: the number of rows at the end that were published to test with; 0 if there are none.
    """

    x: np.ndarray
    y: np.ndarray
    classes: int
    test: int = 0
    scaled: bool = False


def classified(data: Tabular) -> Examples:
    return Examples(data.features.numpy(), data.labels.numpy(), len(data.class_names))


def regressed(data: Regression) -> Examples:
    return Examples(data.features.numpy(), data.targets.numpy(), 0)


def log_prices() -> Examples:
    data = diamonds()
    return Examples(data.features.numpy(), np.log(data.targets.numpy()), 0)


def pictures() -> Examples:
    """Both parts of Fashion-MNIST, as float32 in [0, 1]."""
    train, test = fashion_mnist()
    pixels = np.concatenate([part.pixels.reshape(len(part.labels), -1) for part in (train, test)])
    labels = np.concatenate([train.labels, test.labels])
    return Examples(
        pixels.astype(np.float32) / 255, labels, len(train.class_names), len(test.labels), True
    )


LOADERS: dict[str, Callable[[], Examples]] = {
    "wine": lambda: classified(sklearn_dataset("wine")),
    "digits": lambda: classified(sklearn_dataset("digits")),
    "spambase": lambda: classified(keel_dataset("spambase")),
    "magic": lambda: classified(keel_dataset("magic")),
    "letter": lambda: classified(mlbench_dataset("LetterRecognition")),
    "satellite": lambda: classified(mlbench_dataset("Satellite")),
    "dna": lambda: classified(mlbench_dataset("DNA")),
    "shuttle": lambda: classified(mlbench_dataset("Shuttle")),
    "fashion": pictures,
    "diamonds": log_prices,
    "flights": lambda: regressed(nyc_flights()),
}


@lru_cache(maxsize=1)
def examples(name: str) -> Examples:
    """One of LOADERS; the last one is kept, because cells come set by set."""
    return LOADERS[name]()


def scaled(x: np.ndarray, seen: np.ndarray, *, known: bool = False) -> np.ndarray:
    """Columns with mean 0 and variance 1 on the rows `seen`, float64; only centred if the scale is known."""
    mean, deviation = x[seen].mean(0, dtype=np.float64), x[seen].std(0, dtype=np.float64)
    varying = deviation > 0
    x = x[:, varying] - mean[varying]
    return x if known else x / deviation[varying]
