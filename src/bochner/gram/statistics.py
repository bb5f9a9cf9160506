"""The sums that every linear model on features is made of: a commutative monoid.

    G = Phi' W Phi,   h = Phi' W Y,   s = Phi' W 1,   t = Y' W 1,   YY = Y' W Y,   w = 1' W 1

Ridge regression, Bayesian linear regression, principal components, mean embeddings and class means all
follow from them, and they add: over blocks of rows, over calls of `partial_fit`, over machines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Precision(IntEnum):
    """What blocks of rows were multiplied in; sums are always float64."""

    SINGLE = 1
    DOUBLE = 2


@dataclass(frozen=True, eq=False)
class GramStatistics:
    """Sums over n weighted rows with m features and k targets.

    Shapes:     gram [m, m], cross [m, k], feature_sum [m], target_sum [k], target_products [k, k].
    Numerics:   `precision` is the lowest of all that was added; `bochner.gram.lowest_alpha` says what
                penalty it can bear.
    Cost:       8 m (m + k + 1) bytes.
    Example:
        >>> one = GramStatistics.of(np.array([[1.0, 2.0]]), np.array([[3.0]]))
        >>> (one + one).gram.tolist(), (one + one).cross[:, 0].tolist(), (one + one).num_rows
        ([[2.0, 4.0], [4.0, 8.0]], [6.0, 12.0], 2)
    """

    gram: Matrix
    cross: Matrix
    feature_sum: Matrix
    target_sum: Matrix
    target_products: Matrix
    weight: float
    num_rows: int
    precision: Precision

    @classmethod
    def zeros(cls, num_features: int, num_targets: int) -> GramStatistics:
        """The sums over no rows."""
        m, k = num_features, num_targets
        return cls(
            np.zeros((m, m)),
            np.zeros((m, k)),
            np.zeros(m),
            np.zeros(k),
            np.zeros((k, k)),
            0.0,
            0,
            Precision.DOUBLE,
        )

    @classmethod
    def of(
        cls,
        features: NDArray[np.floating[Any]],
        targets: NDArray[np.floating[Any]] | None = None,
        sample_weight: NDArray[np.floating[Any]] | None = None,
        *,
        precision: Precision = Precision.DOUBLE,
    ) -> GramStatistics:
        """The sums over one block of rows.

        Shapes:     features [n, m], targets [n, k], sample_weight [n], not negative.
        Numerics:   SINGLE multiplies in float32 what is float32; DOUBLE in float64.
        Cost:       n m^2 floating-point operations: numpy multiplies P.T @ P by SYRK, half of a product.
        """
        count = len(features)
        targets = np.zeros((count, 0)) if targets is None else targets
        dtype = np.float64 if precision is Precision.DOUBLE else features.dtype
        precision = Precision.DOUBLE if dtype == np.float64 else Precision.SINGLE
        exact_targets = targets.astype(np.float64, copy=False)
        rows = features.astype(dtype, copy=False)
        if sample_weight is None:
            total = float(count)
            feature_sum = features.sum(axis=0, dtype=np.float64)
            weighted_targets = exact_targets
        else:
            roots = np.sqrt(sample_weight.astype(np.float64))
            total = float(sample_weight.sum(dtype=np.float64))
            rows = rows * roots[:, None].astype(dtype)
            feature_sum = roots @ rows if dtype == np.float64 else _weighted_sum(rows, roots)
            weighted_targets = exact_targets * roots[:, None]
        return cls(
            (rows.T @ rows).astype(np.float64, copy=False),
            (rows.T @ weighted_targets.astype(dtype, copy=False)).astype(np.float64, copy=False),
            feature_sum,
            weighted_targets.sum(axis=0) if sample_weight is None else roots @ weighted_targets,
            weighted_targets.T @ weighted_targets,
            total,
            count,
            precision,
        )

    @property
    def num_features(self) -> int:
        """m."""
        return self.gram.shape[0]

    @property
    def num_targets(self) -> int:
        """k."""
        return self.cross.shape[1]

    def __add__(self, other: GramStatistics) -> GramStatistics:
        """The sums over the rows of both.

        Raises:     ValueError if they have another number of features or targets.
        """
        ours, theirs = (
            (self.num_features, self.num_targets),
            (other.num_features, other.num_targets),
        )
        if ours != theirs:
            raise ValueError(
                f"statistics of (features, targets)={ours} and {theirs} cannot be merged."
            )
        return GramStatistics(
            self.gram + other.gram,
            self.cross + other.cross,
            self.feature_sum + other.feature_sum,
            self.target_sum + other.target_sum,
            self.target_products + other.target_products,
            self.weight + other.weight,
            self.num_rows + other.num_rows,
            min(self.precision, other.precision),
        )

    def add_(self, other: GramStatistics) -> GramStatistics:
        """`self + other`, written over the arrays of self: for sums that nobody else holds."""
        self.gram.__iadd__(other.gram)
        self.cross.__iadd__(other.cross)
        self.feature_sum.__iadd__(other.feature_sum)
        self.target_sum.__iadd__(other.target_sum)
        self.target_products.__iadd__(other.target_products)
        return replace(
            self,
            weight=self.weight + other.weight,
            num_rows=self.num_rows + other.num_rows,
            precision=min(self.precision, other.precision),
        )

    def centred(self) -> GramStatistics:
        """The same sums with the weighted means of features and targets taken off; sums become zero."""
        mean, target_mean = self.feature_sum / self.weight, self.target_sum / self.weight
        return replace(
            self,
            gram=self.gram - np.outer(self.feature_sum, mean),
            cross=self.cross - np.outer(self.feature_sum, target_mean),
            feature_sum=np.zeros_like(self.feature_sum),
            target_sum=np.zeros_like(self.target_sum),
            target_products=self.target_products - np.outer(self.target_sum, target_mean),
        )

    def save(self, path: Path) -> None:
        """Write to an .npz file, through a temporary one beside it."""
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("wb") as file:
            np.savez(file, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> GramStatistics:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            fields = {name: stored[name] for name in cls.__dataclass_fields__}
        return cls(
            **{
                **fields,
                "weight": float(fields["weight"]),
                "num_rows": int(fields["num_rows"]),
                "precision": Precision(int(fields["precision"])),
            }
        )


def _weighted_sum(rows: NDArray[np.floating[Any]], roots: Matrix) -> Matrix:
    """roots @ rows in float64 without a float64 copy of the rows."""
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), 256):
        total += roots[start : start + 256] @ rows[start : start + 256].astype(np.float64)
    return total
