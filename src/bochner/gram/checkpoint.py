"""Long fits that survive being killed: sums are written down as they grow, and a second run goes on.

    folder/pass-000.pickle, pass-001.pickle, ...      one for each pass over the rows that the fit makes

Groups are added in the order of their index, so that a sum over the first ones is all there is to keep. A
run that goes on adds the same numbers in the same order as one that was never interrupted: the same bits.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bochner.gram.digest import digest
from bochner.gram.grid import BLOCK_ROWS, BlockGrid
from bochner.gram.rows import DistantRows, Progress, Work, added
from bochner.gram.threads import in_order

Checked = TypeVar("Checked")


class _Written(NamedTuple):
    """What a file holds: whose sum, over how many groups."""

    name: str
    groups: int
    total: Any


class CheckpointedRows(DistantRows):
    """Rows [n, d] in memory or in a memory map, whose sums are kept in a folder: give it in the place of X.

    Make one for each fit, with the folder of the run that was killed to go on with it. The estimator must
    have an int as random_state: other features are another fit, which is refused.

    Arguments:  rows: numpy, a memory map, CSR; folder: made if it is not there; delete it when the fit is
                done; seconds: between two writings of a sum, which costs as long as writing m^2 numbers.
    Numerics:   the bits of a fit to the rows themselves.
    Raises:     ValueError if the folder holds sums of another fit: other features, other rows (told by
                one row of every block), other targets or weights.
    Security:   files are pickles: go on only with a folder that nobody else writes to.
    Example:
        >>> import tempfile
        >>> from bochner.gram.rows import ColumnMoments
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = CheckpointedRows(np.arange(10.0).reshape(5, 2), folder)
        ...     ColumnMoments.over(rows).mean.tolist(), os.listdir(folder)
        ([4.0, 5.0], ['pass-000.pickle'])
    """

    def __init__(self, rows: Any, folder: str | Path, *, seconds: float = 30.0) -> None:
        if rows.ndim != 2:
            raise ValueError(f"rows have {rows.ndim} dimensions; expected [n, d].")
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds} must not be negative.")
        self.local, self.folder, self.seconds = rows, Path(folder), seconds
        self.shape, self.dtype = tuple(rows.shape), rows.dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        self._passes = 0

    def sum_over_groups(
        self,
        work: Work,
        others: Sequence[Any],
        *,
        num_threads: int | None,
        progress: Progress | None,
    ) -> Any:
        """The sum, from where the last run left it."""
        path = self.folder / f"pass-{self._passes:03d}.pickle"
        self._passes += 1
        arrays = (self.local, *others)
        name = digest([work, self.shape, [_glimpse(array) for array in arrays]])
        written = _read(path, name)
        grid = BlockGrid(self.shape[0])

        def work_on(group: slice) -> Any:
            return work(*(None if array is None else array[group] for array in arrays))

        done, total = written.groups, written.total
        last = time.monotonic()
        for group, part in in_order(work_on, grid.groups()[done:], num_threads=num_threads):
            total = part if total is None else added(total, part)
            done += 1
            if done == grid.num_groups or time.monotonic() - last >= self.seconds:
                _write(path, _Written(name, done, total))
                last = time.monotonic()
            if progress is not None:
                progress(group.stop, grid.num_rows)
        return total

    def take(self, indices: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The rows with these numbers."""
        picked = self.local[indices]
        return picked.toarray() if sparse.issparse(picked) else np.asarray(picked)

    def union(self, values: NDArray[Any]) -> NDArray[Any]:
        """The different values, sorted."""
        return np.unique(values)

    def checked(self, check: Callable[[Any], Checked]) -> Checked:
        """check(rows)."""
        return check(self.local)


def _glimpse(array: Any) -> Any:
    """The first row of every block, and the last of all."""
    if array is None:
        return None
    picked = array[[*range(0, array.shape[0], BLOCK_ROWS), array.shape[0] - 1]]
    return [
        array.shape,
        str(array.dtype),
        picked if sparse.issparse(picked) else np.asarray(picked),
    ]


def _read(path: Path, name: str) -> _Written:
    if not path.exists():
        return _Written(name, 0, None)
    try:
        with path.open("rb") as file:
            written = _Written(*pickle.load(file))
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint ({error}); delete it to begin anew.") from error
    if written.name != name:
        raise ValueError(
            f"{path} is of another fit: the features, the rows, the targets or the weights are not those"
            " that it was begun with (is random_state an int?). Give what was given then, or delete"
            f" {path.parent} to begin anew."
        )
    return written


def _write(path: Path, written: _Written) -> None:
    """Through a temporary file beside it: what is at `path` is always whole."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        pickle.dump(tuple(written), file, protocol=pickle.HIGHEST_PROTOCOL)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
