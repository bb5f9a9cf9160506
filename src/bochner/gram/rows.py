"""Rows wherever they are: in memory, in a Dask collection, spread over the ranks of a process group.

    total = work(rows of group 0) + work(rows of group 1) + ...        always in this order

`work` is called with whole groups of `BlockGrid` and nothing else, so the total has the same bits whoever
does the work. Everything that a fit asks of its rows is such a sum, or a few rows by their number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bochner.gram.grid import BLOCK_ROWS, BlockGrid
from bochner.gram.threads import in_order

Work = Callable[..., Any]
"""(rows of a group, and of every other array) -> a part of a sum: anything with `+`. It pickles."""
Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all) after every group."""


class DistantRows(ABC):
    """Rows [n, d] that do the work on their groups themselves: what is not an array in memory.

    Beside them other arrays (targets, weights) come as plain arrays of as many rows as this process holds.
    """

    shape: tuple[int, int]
    """Of all rows, wherever they are."""
    dtype: np.dtype[Any]
    local: Any
    """The rows [n', d] that this process holds."""

    @abstractmethod
    def sum_over_groups(
        self,
        work: Work,
        others: Sequence[Any],
        *,
        num_threads: int | None,
        progress: Progress | None,
    ) -> Any:
        """The sum, over groups in order, of work(rows, *others)."""

    @abstractmethod
    def take(self, indices: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The rows with these numbers."""

    @abstractmethod
    def checked(self, check: Callable[[Any], Any]) -> Any:
        """check(rows that this process holds); an error in one process is an error in all."""

    @abstractmethod
    def union(self, values: NDArray[Any]) -> NDArray[Any]:
        """The different values, sorted, of an array that every process has a part of."""


def is_dask(rows: Any) -> bool:
    """Whether rows are a Dask collection; Dask itself is not imported for the question."""
    return hasattr(rows, "__dask_graph__")


def sum_over_groups(
    work: Work,
    rows: Any,
    *others: Any,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """The sum over the groups of `BlockGrid(n)`, in order, of work(rows of the group, ...).

    Shapes:     rows [n, d], others [n, ...] or None, which `work` gets as None.
    Arguments:  rows: numpy, a memory map, CSR, a Dask array of known chunks, `DistantRows`; num_threads:
                torch's by default, each with one thread of BLAS; workers of Dask have their own.
    Numerics:   the same bits for any of these and for any number of threads, workers and ranks.
    Raises:     ValueError if an array has another number of rows.
    Example:
        >>> rows = np.arange(20_000.0).reshape(-1, 1)
        >>> float(sum_over_groups(np.sum, rows)), float(sum_over_groups(np.sum, rows, num_threads=2))
        (199990000.0, 199990000.0)
    """
    if is_dask(rows):
        from bochner.gram import dask

        return dask.sum_over_groups(work, rows, others, progress=progress)
    held = rows.local if isinstance(rows, DistantRows) else rows
    for number, other in enumerate(others, start=1):
        if other is not None and other.shape[0] != held.shape[0]:
            raise ValueError(
                f"array {number} beside the rows has {other.shape[0]} rows; expected {held.shape[0]}."
            )
    if isinstance(rows, DistantRows):
        return rows.sum_over_groups(work, others, num_threads=num_threads, progress=progress)
    grid = BlockGrid(rows.shape[0])

    def work_on(group: slice) -> Any:
        return work(rows[group], *(None if other is None else other[group] for other in others))

    total = None
    for group, part in in_order(work_on, grid.groups(), num_threads=num_threads):
        total = part if total is None else added(total, part)
        if progress is not None:
            progress(group.stop, grid.num_rows)
    return total


def added(total: Any, part: Any) -> Any:
    """total + part, written over the arrays of a total that nobody else holds."""
    in_place = getattr(total, "add_", None)
    return total + part if in_place is None else in_place(part)


def take_rows(rows: Any, indices: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """The rows with these numbers, dense, in memory."""
    if is_dask(rows):
        from bochner.gram import dask

        return dask.take(rows, indices)
    if isinstance(rows, DistantRows):
        return rows.take(indices)
    picked = rows[indices]
    return picked.toarray() if sparse.issparse(picked) else np.asarray(picked)


def different_values(values: Any, rows: Any = None) -> NDArray[Any]:
    """The different values of targets, sorted: the classes of all rows, wherever they are."""
    if is_dask(values):
        from bochner.gram import dask

        return dask.union(values)
    if isinstance(rows, DistantRows):
        return rows.union(np.asarray(values))
    return np.unique(np.asarray(values))


@dataclass(frozen=True, eq=False)
class ColumnMoments:
    """Weight, means and sums of squared deviations of columns; they add (Chan, Golub and LeVeque, 1979).

    Shapes:     mean [d], squares [d]; float64.
    Example:
        >>> first, second = (ColumnMoments.of(np.array(x)) for x in ([[1.0], [2.0]], [[6.0]]))
        >>> (first + second).mean.tolist(), (first + second).variance().tolist()
        ([3.0], [4.666666666666667])
    """

    weight: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Any, sample_weight: NDArray[np.floating[Any]] | None = None) -> ColumnMoments:
        """Of some rows [n, d], dense or CSR, with weights [n] or 1 each."""
        total = cls(0.0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1]))
        for start in range(0, rows.shape[0], BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            block = rows[part]
            weight = np.ones(block.shape[0])
            if sample_weight is not None:
                weight = sample_weight[part].astype(np.float64)
            total = total + (cls._sparse if sparse.issparse(block) else cls._dense)(block, weight)
        return total

    @classmethod
    def over(
        cls, rows: Any, sample_weight: NDArray[np.floating[Any]] | None = None
    ) -> ColumnMoments:
        """Of all rows, wherever they are: one pass.

        Raises:     ValueError if the weights sum to zero.
        """
        moments: ColumnMoments = sum_over_groups(cls.of, rows, sample_weight)
        if not moments.weight > 0:
            raise ValueError("sample_weight sums to zero; some row must count.")
        return moments

    @classmethod
    def _dense(cls, rows: Any, weight: NDArray[np.float64]) -> ColumnMoments:
        wide = np.ascontiguousarray(rows, dtype=np.float64)
        total = float(weight.sum())
        mean = weight @ wide / (total or 1.0)
        return cls(total, mean, weight @ np.square(wide - mean))

    @classmethod
    def _sparse(cls, rows: Any, weight: NDArray[np.float64]) -> ColumnMoments:
        wide = rows.astype(np.float64)  # a copy
        wide.sum_duplicates()
        total = float(weight.sum())
        mean = np.asarray(weight @ wide).ravel() / (total or 1.0)
        stored = wide.copy()
        stored.data = np.ones_like(stored.data)
        absent = total - np.asarray(weight @ stored).ravel()  # weight of the zeros of a column
        wide.data = np.square(wide.data - mean[wide.indices])
        return cls(total, mean, np.asarray(weight @ wide).ravel() + absent * mean**2)

    def __add__(self, other: ColumnMoments) -> ColumnMoments:
        """Of the rows of both."""
        total = self.weight + other.weight
        share = other.weight / (total or 1.0)
        apart = other.mean - self.mean
        return ColumnMoments(
            total,
            self.mean + share * apart,
            self.squares + other.squares + self.weight * share * apart**2,
        )

    def variance(self) -> NDArray[np.float64]:
        """Of every column, [d]."""
        return self.squares / self.weight

    def variance_of_entries(self) -> float:
        """Of all entries of the matrix together."""
        between = np.square(self.mean - self.mean.mean()).mean()
        return float(self.variance().mean() + between)
