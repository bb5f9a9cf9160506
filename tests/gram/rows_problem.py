"""One regression problem, cut in every way: what all ways must agree on, bit for bit."""

import numpy as np
import torch

import bochner
from bochner.gram import BlockFeatures, accumulate
from bochner.gram.statistics import GramStatistics

ROWS = 30_000  # four blocks of the grid, the last one short
DIM, FEATURES, TARGETS = 5, 48, 2


def problem(rows=ROWS, dtype=np.float32):
    """(X, Y, sample_weight), the same in every process."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, DIM)) + 3
    Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1) + 0.1 * rng.normal(size=(rows, 2))
    return X.astype(dtype), Y, rng.random(rows)


def features(seed=0):
    """Features of X, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    phi = bochner.make(
        "trigonometric", dim=DIM, num_features=FEATURES, kernel="gaussian", generator=generator
    )
    return BlockFeatures(phi, inverse_lengthscales=0.7, offset=np.full(DIM, 3.0))


def single_process(weighted=False):
    """What everybody else must get."""
    X, Y, weight = problem()
    return accumulate(features(), X, Y, sample_weight=weight if weighted else None, num_threads=1)


def same_bits(ours: GramStatistics, theirs: GramStatistics) -> bool:
    """Whether all sums are equal to the last bit."""
    names = ("gram", "cross", "feature_sum", "target_sum", "target_products")
    equal = [np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in names]
    return all(equal) and (ours.weight, ours.num_rows, ours.precision) == (
        theirs.weight,
        theirs.num_rows,
        theirs.precision,
    )
