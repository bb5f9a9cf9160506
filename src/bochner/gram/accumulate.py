"""The pass over the rows: groups of blocks on any number of threads, added in the order of their index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bochner.gram.features import Reused
from bochner.gram.grid import BLOCK_ROWS
from bochner.gram.rows import Progress, sum_over_groups
from bochner.gram.statistics import GramStatistics, Precision


class RowFeatures(Protocol):
    """What a pass asks of features: `BlockFeatures`, or anything like it."""

    @property
    def num_features(self) -> int:
        """m."""
        ...

    def __call__(self, rows: Any) -> NDArray[np.floating[Any]]:
        """Rows [n, d] -> features [n, m]; called from several threads at once."""
        ...


def group_statistics(
    features: RowFeatures,
    rows: Any,
    targets: NDArray[np.floating[Any]] | None = None,
    sample_weight: NDArray[np.floating[Any]] | None = None,
    *,
    block_rows: int = BLOCK_ROWS,
    precision: Precision = Precision.SINGLE,
) -> GramStatistics:
    """The sums over the rows of one group, block after block: what one worker does at one time.

    Shapes:     rows [n, d] dense or CSR, targets [n, k], sample_weight [n].
    Numerics:   call it within `one_thread()`: a threaded product has other bits.
    Cost:       n m^2 operations; memory of one block of features and two matrices m x m.
    """
    total: GramStatistics | None = None
    for start in range(0, rows.shape[0], block_rows):
        part = slice(start, start + block_rows)
        block = GramStatistics.of(
            features(rows[part]),
            None if targets is None else targets[part],
            None if sample_weight is None else sample_weight[part],
            precision=precision,
        )
        total = block if total is None else total.add_(block)
    if total is None:
        raise ValueError("rows is empty; statistics want at least one row.")
    return total


def accumulate(
    features: RowFeatures,
    rows: Any,
    targets: NDArray[np.floating[Any]] | None = None,
    *,
    sample_weight: NDArray[np.floating[Any]] | None = None,
    precision: Precision = Precision.SINGLE,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> GramStatistics:
    """The sums over all rows, streamed: memory does not grow with their number.

    Shapes:     rows [n, d], anything that can be sliced: numpy, a memory map, CSR; or a Dask array, or
                `DistantRows`; targets [n, k]; sample_weight [n].
    Arguments:  num_threads: torch.get_num_threads() by default, each with one thread of BLAS.
    Numerics:   the same bits for any num_threads, and for any workers that take the groups of
                `BlockGrid(n)` and add them in order.
    Cost:       n m^2 operations (SYRK), n m d for the features; memory of num_threads blocks of features
                and a few matrices m x m.
    Example:
        >>> from bochner import make
        >>> from bochner.gram.features import BlockFeatures
        >>> phi = BlockFeatures(make("trigonometric", dim=2, num_features=4, kernel="gaussian"))
        >>> round(float(np.trace(accumulate(phi, np.zeros((10, 2))).gram)), 3)   # |phi(x)| = 1
        10.0
    """
    statistics: GramStatistics = sum_over_groups(
        GroupWork(Reused(features), precision),
        rows,
        targets,
        sample_weight,
        num_threads=num_threads,
        progress=progress,
    )
    return statistics


@dataclass(frozen=True)
class GroupWork:
    """`group_statistics` of some features: what is sent to whoever has the rows."""

    features: RowFeatures
    precision: Precision

    def __call__(self, rows: Any, targets: Any, sample_weight: Any) -> GramStatistics:
        """The sums over one group."""
        return group_statistics(
            self.features, rows, targets, sample_weight, precision=self.precision
        )
