"""Rows in a Dask collection: one map over the groups of the block grid, one fold in their order.

    piece_g = rows of group g, wherever its chunks are            total_g = total_{g-1} + work(piece_g)

Chunks may be of any size: they are cut on the grid, on the workers. Nothing but the last total comes to the
client. All tasks are plain functions of the collection's own, so that what a lost worker held is computed
again by the others, with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bochner.gram.grid import BlockGrid
from bochner.gram.threads import one_thread

if TYPE_CHECKING:
    import dask.array as da

Work = Callable[..., Any]


def as_array(collection: Any) -> da.Array:
    """A Dask array of known chunks [n, d] or [n], its columns in one chunk; the collection is left alone.

    A dataframe, or an array whose chunk sizes are unknown, is read once for the lengths of its chunks.

    Raises:     TypeError for another collection; ValueError for columns that are no numbers.
    """
    import dask
    import dask.array as da

    if hasattr(collection, "to_dask_array"):
        collection = collection.to_dask_array()
    if not isinstance(collection, da.Array):
        raise TypeError(
            f"rows are a Dask {type(collection).__name__}; expected a Dask array or dataframe"
            " (dask.bag and dask.delayed have no rows of numbers: dask.array.from_delayed makes one)."
        )
    if collection.ndim > 1:
        collection = collection.rechunk({axis: -1 for axis in range(1, collection.ndim)})
    if any(math.isnan(size) for size in collection.chunks[0]):
        lengths = dask.compute(*map(dask.delayed(_length), collection.to_delayed().ravel()))
        chunks = (tuple(lengths), *collection.chunks[1:])
        collection = da.Array(collection.dask, collection.name, chunks, meta=collection._meta)
    return collection


def sum_over_groups(
    work: Work,
    rows: da.Array,
    others: Sequence[Any],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """The sum, over groups in order, of work(rows, *others): computed by the active Dask scheduler.

    Shapes:     rows [n, d], others [n, ...]: Dask arrays of any chunks, numpy arrays, or None.
    Arguments:  progress: called once, at the end; Dask's dashboard shows tasks as they finish.
    Numerics:   every group is worked on with one thread of BLAS, whatever the workers' settings.
    Cost:       one pass over the rows; each worker holds the rows of a group for every of its threads.
    Raises:     ValueError if an array has another number of rows.
    """
    import dask

    grid = BlockGrid(rows.shape[0])
    cuts = tuple(group.stop - group.start for group in grid.groups())
    columns = [_pieces(array, cuts, number) for number, array in enumerate((rows, *others))]
    shared = dask.delayed(work, traverse=False, pure=False)
    apply, add = dask.delayed(_apply, pure=False), dask.delayed(_add, pure=False)
    total = None
    for pieces in zip(*columns, strict=True):
        part = apply(shared, *pieces)
        total = part if total is None else add(total, part)
    assert total is not None
    result = total.compute()
    if progress is not None:
        progress(grid.num_rows, grid.num_rows)
    return result


def _pieces(array: Any, cuts: tuple[int, ...], number: int) -> list[Any]:
    """One delayed piece for each group."""
    import dask.array as da

    if array is None:
        return [None] * len(cuts)
    if not isinstance(array, da.Array):
        array = da.from_array(np.asarray(array), chunks=(cuts, *(-1,) * (np.ndim(array) - 1)))
    if array.shape[0] != sum(cuts):
        raise ValueError(
            f"array {number} beside the rows has {array.shape[0]} rows; expected {sum(cuts)}."
        )
    whole = {axis: -1 for axis in range(1, array.ndim)}
    return list(array.rechunk({0: cuts, **whole}).to_delayed().ravel())


def _apply(work: Work, *pieces: Any) -> Any:
    with one_thread():
        return work(*map(_checked, pieces))


def _add(total: Any, part: Any) -> Any:
    return total + part  # never in place: a task that runs again gets the same total


def _checked(piece: Any) -> Any:
    """A piece as numpy or CSR.

    Raises:     ValueError if it holds NaN or infinity: nobody else has looked at it.
    """
    if piece is None:
        return None
    values = piece.data if sparse.issparse(piece) else np.ascontiguousarray(piece)
    if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):
        raise ValueError("a chunk of the Dask input contains NaN, infinity or values too large.")
    return piece if sparse.issparse(piece) else values


def take(rows: da.Array, indices: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """The rows with these numbers, in memory."""
    picked = rows[np.asarray(indices)].compute()
    return picked.toarray() if sparse.issparse(picked) else np.asarray(picked)


def union(values: Any) -> NDArray[Any]:
    """The different values of a collection, sorted: chunk by chunk on the workers."""
    import dask

    chunks = dask.compute(*map(dask.delayed(_different), values.to_delayed().ravel()))
    return np.unique(np.concatenate([chunk for chunk in chunks if len(chunk)]))


def map_rows(function: Callable[[Any], NDArray[Any]], rows: Any, example: NDArray[Any]) -> Any:
    """function(rows), lazily, chunk by chunk; chunk sizes may be unknown.

    Shapes:     rows [n, d] -> [n, ...], as function maps [b, d] -> [b, ...].
    Arguments:  function: picklable; example: its result for some rows, of which shape and dtype are used.
    """
    import dask.array as da

    if hasattr(rows, "to_dask_array"):
        rows = rows.to_dask_array()
    if not isinstance(rows, da.Array):
        raise TypeError(f"rows are a Dask {type(rows).__name__}; expected an array or dataframe.")
    rows = rows.rechunk({1: -1})
    shared = dict(dtype=example.dtype, meta=example[:0])
    if example.ndim == 1:
        return rows.map_blocks(_mapped, function=function, drop_axis=1, **shared)
    chunks = (rows.chunks[0], (example.shape[1],))
    return rows.map_blocks(_mapped, function=function, chunks=chunks, **shared)


def _mapped(piece: Any, *, function: Callable[[Any], Any]) -> Any:
    with one_thread():
        return function(piece)


def _length(piece: Any) -> int:
    return int(piece.shape[0])


def _different(piece: Any) -> NDArray[Any]:
    return np.unique(np.asarray(piece))
