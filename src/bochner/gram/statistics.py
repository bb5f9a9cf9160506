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


@dataclass(frozen=True, eq=False, repr=False)
class GramStatistics:
    """Sums over n weighted rows with m features and k targets.

    Shapes:     gram [m, m], cross [m, k], feature_sum [m], target_sum [k], target_scatter [k, k]: of
                targets about their mean, YY - t t'/w; num_rows: those of positive weight.
    Numerics:   `precision` is the lowest of all that was added; `bochner.gram.lowest_alpha` says what
                penalty it can bear. Every block takes the mean of its targets off first, so that a mean of
                many deviations costs no digits of float32 products, nor of squares about it.
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
    target_scatter: Matrix
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
        rows, apart = features.astype(dtype, copy=False), targets.astype(np.float64)
        if sample_weight is None:
            unit, total = 1.0, float(count)
            feature_sum = features.sum(axis=0, dtype=np.float64)
            target_sum = apart.sum(axis=0)
            mean = target_sum / (total or 1.0)
            apart -= mean
        else:
            weights = sample_weight.astype(np.float64)
            unit, count = _power_of_four(weights), int(np.count_nonzero(weights))
            weights = weights / unit  # what float32 holds, whatever the weights; exact
            roots, total = np.sqrt(weights), float(weights.sum())
            rows = rows * roots[:, None].astype(dtype)
            feature_sum = roots @ rows if dtype == np.float64 else _weighted_sum(rows, roots)
            target_sum = weights @ apart
            mean = target_sum / (total or 1.0)
            apart = (apart - mean) * roots[:, None]
        size = np.ldexp(1.0, np.frexp(np.abs(apart).max(axis=0, initial=0.0))[1])
        cross = (rows.T @ (apart / size).astype(dtype)).astype(np.float64, copy=False) * size
        gram = (rows.T @ rows).astype(np.float64, copy=False)
        if unit != 1.0:
            gram *= unit
        return cls(
            gram,
            unit * (cross + np.outer(feature_sum, mean)),
            unit * feature_sum,
            unit * target_sum,
            unit * (apart.T @ apart),
            unit * total,
            count,
            precision,
        )

    def __repr__(self) -> str:
        return (
            f"GramStatistics(num_rows={self.num_rows}, weight={self.weight:g},"
            f" num_features={self.num_features}, num_targets={self.num_targets}, {self.precision.name})"
        )

    @property
    def num_features(self) -> int:
        """m."""
        return self.gram.shape[0]

    @property
    def num_targets(self) -> int:
        """k."""
        return self.cross.shape[1]

    @property
    def target_products(self) -> Matrix:
        """Y' W Y, [k, k]."""
        if not self.weight:
            return self.target_scatter.copy()
        return self.target_scatter + np.outer(self.target_sum, self.target_sum / self.weight)

    def _between(self, other: GramStatistics) -> Matrix:
        """What the scatter of both has beyond that of each: the distance of their means."""
        if not (self.weight and other.weight):
            return np.zeros_like(self.target_scatter)
        apart = other.target_sum / other.weight - self.target_sum / self.weight
        share = self.weight * (other.weight / (self.weight + other.weight))
        return share * np.outer(apart, apart)

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
            self.target_scatter + (other.target_scatter + self._between(other)),
            self.weight + other.weight,
            self.num_rows + other.num_rows,
            min(self.precision, other.precision),
        )

    def add_(self, other: GramStatistics) -> GramStatistics:
        """`self + other`, written over the arrays of self: for sums that nobody else holds."""
        self.gram.__iadd__(other.gram)
        self.cross.__iadd__(other.cross)
        self.feature_sum.__iadd__(other.feature_sum)
        self.target_scatter.__iadd__(other.target_scatter + self._between(other))
        self.target_sum.__iadd__(other.target_sum)
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


def _power_of_four(weights: Matrix) -> float:
    """The largest weight but for a factor below 4, 1 if all are 0: roots over its root keep their bits."""
    exponent = int(np.frexp(weights.max(initial=0.0))[1])
    return float(np.ldexp(1.0, 2 * (exponent // 2)))
