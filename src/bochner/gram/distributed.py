"""Rows over the ranks of a torch.distributed process group: the same fit, on every rank, to the bit.

    RankRows      every rank holds its own rows, which follow each other in the order of the ranks
    SharedRows    every rank can read all rows (a memory map), and takes its share of the groups

Given to an estimator in the place of X, on all ranks alike: each rank works on whole groups of the global
grid, totals go from rank to rank in the order of the groups, and all ranks get the last one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from scipy import sparse

from bochner.gram.digest import digest
from bochner.gram.grid import BlockGrid
from bochner.gram.rows import DistantRows, Progress, Work, added
from bochner.gram.threads import in_order

if TYPE_CHECKING:
    Group = dist.ProcessGroup | None
Checked = TypeVar("Checked")


_END = object()
_SEED = "give the estimator an int as random_state"


@dataclass(frozen=True)
class _Failure:
    """What a rank sends in the place of a total that it could not compute."""

    rank: int
    said: str


class GroupRows(DistantRows):
    """What both kinds have in common: who owns which group, and the total on its way from rank to rank."""

    def __init__(self, local: Any, group: Group) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed is not initialised: call torch.distributed.init_process_group first"
                " (torchrun sets its environment); for one process give the rows themselves."
            )
        if dist.get_rank(group) < 0:
            raise ValueError("this process is not in `group`; only its members may call.")
        if local.ndim != 2:
            raise ValueError(f"rows have {local.ndim} dimensions; expected [n, d].")
        self.local, self.group = local, group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.dtype = local.dtype

    @abstractmethod
    def _owners(self, grid: BlockGrid) -> list[int]:
        """The rank that works on each group."""

    @abstractmethod
    def _pieces(self, arrays: Sequence[Any], grid: BlockGrid, owned: list[int]) -> list[list[Any]]:
        """The rows of each array in each group that this rank owns; called on all ranks at once."""

    @abstractmethod
    def _parts(self, parts: Iterator[Any]) -> Iterator[Any]:
        """The parts of this rank, as they are computed, or all of them first."""

    def sum_over_groups(
        self,
        work: Work,
        others: Sequence[Any],
        *,
        num_threads: int | None,
        progress: Progress | None,
    ) -> Any:
        """The sum on every rank; `progress` hears of this rank's own groups.

        Raises:     on the rank where `work` fails its error, on all others RuntimeError with its number.
        """
        same = self.checked(lambda _: digest(work))
        self._agree(f"what is computed ({_SEED})", same)
        arrays = (self.local, *others)
        self._agree("the targets and weights given", [_kind(array) for array in arrays])
        grid = BlockGrid(self.shape[0])
        owners = self._owners(grid)
        owned = [index for index, owner in enumerate(owners) if owner == self.rank]
        pieces = self._pieces(arrays, grid, owned)
        computed = in_order(lambda own: work(*own), pieces, num_threads=num_threads)
        total = self._folded(owners, self._parts(part for _, part in computed), grid, progress)
        if isinstance(total, _Failure):
            raise RuntimeError(f"rank {total.rank} of the group failed: {total.said}")
        return total

    def _folded(
        self, owners: list[int], parts: Iterator[Any], grid: BlockGrid, progress: Progress | None
    ) -> Any:
        """The total over all groups in order, on every rank."""
        total: Any = None
        problem: Exception | None = None
        for index, owner in enumerate(owners):
            if owner != self.rank:
                continue
            if problem is None:
                try:
                    part = next(parts)
                except Exception as error:  # the others wait for a total, or for this
                    problem = error
            if index and owners[index - 1] != self.rank:
                total = self._receive(owners[index - 1])
            if problem is not None:
                total = _Failure(self.rank, f"{type(problem).__name__}: {problem}")
            elif not isinstance(total, _Failure):
                total = part if index == 0 else added(total, part)
            if index + 1 < len(owners) and owners[index + 1] != self.rank:
                self._send(total, owners[index + 1])
                total = None
            if progress is not None:
                progress(grid.group(index).stop, grid.num_rows)
        message = [total if owners[-1] == self.rank else None]
        dist.broadcast_object_list(message, src=self._global(owners[-1]), group=self.group)
        if problem is not None:
            raise problem
        return message[0]

    def checked(self, check: Callable[[Any], Checked]) -> Checked:
        """check(local rows) on every rank; what it raises on one is RuntimeError on the others."""
        problem: Exception | None = None
        try:
            found = check(self.local)
        except Exception as error:
            problem = error
        said = self._gathered(None if problem is None else f"{type(problem).__name__}: {problem}")
        if problem is not None:
            raise problem
        for rank, message in enumerate(said):
            if message is not None:
                raise RuntimeError(f"rank {rank} of the group refused its rows: {message}")
        return found

    def _agree(self, what: str, value: Any) -> list[Any]:
        """Check that all ranks say the same; raises on all of them alike."""
        said = self._gathered(value)
        if any(other != said[0] for other in said):
            raise ValueError(f"ranks differ in {what}: {said}, by rank.")
        return said

    def _gathered(self, value: Any) -> list[Any]:
        said: list[Any] = [None] * self.ranks
        dist.all_gather_object(said, value, group=self.group)
        return said

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def _send(self, value: Any, rank: int) -> None:
        dist.send_object_list([value], dst=self._global(rank), group=self.group)

    def _receive(self, rank: int) -> Any:
        message = [None]
        dist.recv_object_list(message, src=self._global(rank), group=self.group)
        return message[0]


class SharedRows(GroupRows):
    """Rows [n, d] that every rank can read, such as a memory map; the ranks take the groups in turn.

    Shapes:     rows [n, d], the same on all ranks; targets and weights beside it [n, ...], whole as well.
    Arguments:  group: torch.distributed's, the default one if None, of a backend for CPU tensors (gloo).
    Cost:       as in one process, divided by the ranks; each total travels once: m^2 numbers a group.
    Raises:     ValueError on all ranks if they see rows of another shape or type; RuntimeError without a
                process group.
    Example:
        >>> import tempfile
        >>> store = "file://" + tempfile.NamedTemporaryFile(delete=False).name
        >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        >>> from bochner.gram.rows import ColumnMoments
        >>> ColumnMoments.over(SharedRows(np.arange(10.0).reshape(5, 2))).mean.tolist()
        [4.0, 5.0]
        >>> dist.destroy_process_group()
    """

    def __init__(self, rows: Any, *, group: Group = None) -> None:
        super().__init__(rows, group)
        self.shape = tuple(rows.shape)
        self._agree("the shape and type of the rows", (self.shape, str(rows.dtype)))

    def _owners(self, grid: BlockGrid) -> list[int]:
        return [index % self.ranks for index in range(grid.num_groups)]

    def _pieces(self, arrays: Sequence[Any], grid: BlockGrid, owned: list[int]) -> list[list[Any]]:
        return [
            [None if array is None else array[grid.group(index)] for array in arrays]
            for index in owned
        ]

    def _parts(self, parts: Iterator[Any]) -> Iterator[Any]:
        return _ahead(parts)

    def take(self, indices: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The rows with these numbers."""
        picked = self.local[indices]
        return picked.toarray() if sparse.issparse(picked) else np.asarray(picked)

    def union(self, values: NDArray[Any]) -> NDArray[Any]:
        """The different values, sorted."""
        return np.unique(values)


class RankRows(GroupRows):
    """Rows of which every rank holds some, in the order of the ranks; none may be all there is.

    Shapes:     rows [n', d] of this rank, n' of any size, 0 too; targets and weights beside it [n', ...].
                `shape` is that of all rows.
    Arguments:  group: torch.distributed's, the default one if None, of a backend for CPU tensors (gloo).
    Cost:       as in one process, divided by the ranks. Rows move only where a group of the grid crosses
                from one rank to the next. A rank keeps the sums of its groups, m^2 numbers each, until
                its turn comes: at most 64 in all.
    Raises:     ValueError on all ranks if they differ in columns or type; RuntimeError without a group.
    Example:
        >>> import tempfile
        >>> store = "file://" + tempfile.NamedTemporaryFile(delete=False).name
        >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        >>> from bochner.gram.rows import ColumnMoments
        >>> ColumnMoments.over(RankRows(np.arange(10.0).reshape(5, 2))).mean.tolist()
        [4.0, 5.0]
        >>> dist.destroy_process_group()
    """

    def __init__(self, rows: Any, *, group: Group = None) -> None:
        if sparse.issparse(rows):
            raise TypeError("RankRows are dense; SharedRows take CSR that every rank can read.")
        super().__init__(rows, group)
        self._agree("the columns and type of their rows", (rows.shape[1], str(rows.dtype)))
        counts = self._gathered(int(rows.shape[0]))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.shape = (int(self._starts[-1]), int(rows.shape[1]))

    def _owners(self, grid: BlockGrid) -> list[int]:
        firsts = [group.start for group in grid.groups()]
        return (np.searchsorted(self._starts, firsts, side="right") - 1).tolist()

    def _pieces(self, arrays: Sequence[Any], grid: BlockGrid, owned: list[int]) -> list[list[Any]]:
        received = self._moved(arrays, grid)
        start = int(self._starts[self.rank])
        pieces = []
        for index in owned:
            group = grid.group(index)
            here = slice(group.start - start, min(group.stop - start, self.local.shape[0]))
            piece = []
            for number, array in enumerate(arrays):
                parts = received.get((index, number), [])
                if array is None or not parts:
                    piece.append(None if array is None else array[here])
                else:
                    piece.append(np.concatenate([array[here], *parts]))
            pieces.append(piece)
        return pieces

    def _moved(
        self, arrays: Sequence[Any], grid: BlockGrid
    ) -> dict[tuple[int, int], list[NDArray[Any]]]:
        """Rows of groups that begin on an earlier rank go there; what came, by (group, array)."""
        received: dict[tuple[int, int], list[NDArray[Any]]] = {}
        waiting = []
        for index, owner in enumerate(self._owners(grid)):
            group = grid.group(index)
            for rank in range(owner + 1, self.ranks):
                first = max(group.start, int(self._starts[rank]))
                last = min(group.stop, int(self._starts[rank + 1]))
                if first >= last or self.rank not in (rank, owner):
                    continue
                for number, array in enumerate(arrays):
                    if array is None or 0 in array.shape[1:]:
                        continue
                    tag = index * len(arrays) + number
                    if self.rank == rank:
                        start = int(self._starts[rank])
                        own = np.array(array[first - start : last - start], order="C")
                        tensor = torch.from_numpy(own.view(np.uint8).reshape(-1))
                        waiting.append(dist.isend(tensor, self._global(owner), self.group, tag))
                    else:
                        part = np.empty((last - first, *array.shape[1:]), dtype=array.dtype)
                        received.setdefault((index, number), []).append(part)
                        tensor = torch.from_numpy(part.view(np.uint8).reshape(-1))
                        waiting.append(dist.irecv(tensor, self._global(rank), self.group, tag))
        for request in waiting:
            assert request is not None
            request.wait()
        return received

    def _parts(self, parts: Iterator[Any]) -> Iterator[Any]:
        return _first_all(parts)

    def take(self, indices: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The rows with these numbers, on every rank.

        Raises:     ValueError on all ranks if they ask for different rows.
        """
        self._agree(f"which rows they ask for ({_SEED})", digest(np.asarray(indices)))
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        own = owners == self.rank
        picked = np.asarray(self.local[np.asarray(indices)[own] - self._starts[self.rank]])
        found = np.empty((len(indices), self.shape[1]), dtype=self.dtype)
        for rank, part in enumerate(self._gathered(picked)):
            found[owners == rank] = part
        return found

    def union(self, values: NDArray[Any]) -> NDArray[Any]:
        """The different values on all ranks, sorted."""
        return np.unique(np.concatenate(self._gathered(np.unique(values))))


def _first_all(parts: Iterator[Any]) -> Iterator[Any]:
    """The same parts, all computed before the first is given: later ranks do not wait for earlier ones."""
    yield from list(parts)


def _ahead(parts: Iterator[Any]) -> Iterator[Any]:
    """The same parts, the next one computed while the last travels."""
    with ThreadPoolExecutor(1, thread_name_prefix="bochner-ahead") as thread:
        coming = thread.submit(next, parts, _END)
        while (part := coming.result()) is not _END:
            coming = thread.submit(next, parts, _END)
            yield part


def _kind(array: Any) -> Any:
    """What must be the same on all ranks."""
    return None if array is None else (str(array.dtype), tuple(array.shape[1:]))
