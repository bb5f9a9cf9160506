"""The sums of features alone: O(n m) where the Gram matrix costs O(n m^2).

    s = Phi' W 1,   h = Phi' W Y,   q = sum_i w_i^2 |phi(x_i)|^2,   w = 1' W 1,   u = 1' W W 1

Mean embeddings, two-sample statistics and kernel regression by local averages want no more than these.
They add, as those of `bochner.gram.statistics` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bochner.gram.accumulate import RowFeatures
from bochner.gram.features import Reused
from bochner.gram.grid import BLOCK_ROWS
from bochner.gram.rows import sum_over_groups

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """Sums over n weighted rows with m features and k targets.

    Shapes:     feature_sum [m], cross [m, k]; weight w, square_weight u, square_norms q are numbers.
    Example:
        >>> one = FeatureSums.of(np.array([[3.0, 4.0]]), np.array([[2.0]]))
        >>> (one + one).feature_sum.tolist(), (one + one).cross[:, 0].tolist(), (one + one).square_norms
        ([6.0, 8.0], [12.0, 16.0], 50.0)
    """

    feature_sum: Matrix
    cross: Matrix
    weight: float
    square_weight: float
    square_norms: float
    num_rows: int

    @classmethod
    def of(
        cls,
        features: NDArray[np.floating[Any]],
        targets: NDArray[np.floating[Any]] | None = None,
        sample_weight: NDArray[np.floating[Any]] | None = None,
    ) -> FeatureSums:
        """The sums over one block of rows: features [n, m], targets [n, k], sample_weight [n]."""
        count = len(features)
        weights = np.ones(count) if sample_weight is None else sample_weight.astype(np.float64)
        targets = np.zeros((count, 0)) if targets is None else targets
        # [1, Y] in one product: the features are read once, and turn float64 a block at a time
        columns = np.column_stack([weights, weights[:, None] * targets])
        sums = np.zeros((features.shape[1], columns.shape[1]))
        norms = 0.0
        for start in range(0, count, 512):
            part = features[start : start + 512].astype(np.float64, copy=False)
            block_weights = weights[start : start + 512]
            sums += part.T @ columns[start : start + 512]
            norms += float(np.einsum("i,ij,ij->", block_weights**2, part, part))
        return cls(
            sums[:, 0],
            sums[:, 1:],
            float(weights.sum()),
            float(np.square(weights).sum()),
            norms,
            count,
        )

    def __add__(self, other: FeatureSums) -> FeatureSums:
        """The sums over the rows of both.

        Raises:     ValueError if they have another number of features or targets.
        """
        if self.cross.shape != other.cross.shape:
            raise ValueError(
                f"sums of (features, targets)={self.cross.shape} and {other.cross.shape} cannot be"
                " merged."
            )
        return FeatureSums(
            self.feature_sum + other.feature_sum,
            self.cross + other.cross,
            self.weight + other.weight,
            self.square_weight + other.square_weight,
            self.square_norms + other.square_norms,
            self.num_rows + other.num_rows,
        )

    @property
    def mean(self) -> Matrix:
        """The mean embedding s / w, [m]."""
        return self.feature_sum / self.weight

    def mean_product(self) -> float:
        """The unbiased estimate of E k(x, x'), x and x' independent: the mean over pairs of two rows.

        Raises:     ValueError if there are no two rows with a weight.
        """
        pairs = self.weight**2 - self.square_weight
        if not pairs > 0:
            raise ValueError(f"{self.num_rows} row(s) with a weight: pairs want two rows or more.")
        return float((self.feature_sum @ self.feature_sum - self.square_norms) / pairs)


def accumulate_sums(
    features: RowFeatures,
    rows: Any,
    targets: Any = None,
    *,
    sample_weight: Any = None,
    num_threads: int | None = None,
) -> FeatureSums:
    """The sums over all rows, streamed over the groups of `BlockGrid(n)`.

    Shapes:     rows [n, d] dense or CSR, a Dask array, `DistantRows`; targets [n, k], sample_weight [n].
    Numerics:   float64 sums of the features as they come; the same bits for any num_threads and workers.
    Cost:       O(n m (d + k)) time; memory of num_threads blocks of features.
    Example:
        >>> from bochner import make
        >>> from bochner.gram.features import BlockFeatures
        >>> phi = BlockFeatures(make("trigonometric", dim=2, num_features=4, kernel="gaussian"))
        >>> sums = accumulate_sums(phi, np.zeros((10, 2)))
        >>> sums.num_rows, round(sums.square_norms, 3)   # |phi(x)| = 1
        (10, 10.0)
    """
    sums: FeatureSums = sum_over_groups(
        SumsOfGroup(Reused(features)), rows, targets, sample_weight, num_threads=num_threads
    )
    return sums


@dataclass(frozen=True)
class SumsOfGroup:
    """The sums of some features over the rows of a group: what is sent to whoever has them."""

    features: RowFeatures

    def __call__(self, rows: Any, targets: Any, sample_weight: Any) -> FeatureSums:
        """The sums over one group, block after block."""
        total: FeatureSums | None = None
        for start in range(0, rows.shape[0], BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            block = FeatureSums.of(
                self.features(rows[part]),
                None if targets is None else targets[part],
                None if sample_weight is None else sample_weight[part],
            )
            total = block if total is None else total + block
        if total is None:
            raise ValueError("rows is empty; sums want at least one row.")
        return total
