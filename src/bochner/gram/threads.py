"""Work on groups of rows by threads, each with one thread of BLAS, results in the order of the groups."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import threadpoolctl
import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Task], Result], tasks: list[Task], *, num_threads: int | None = None
) -> Iterator[tuple[Task, Result]]:
    """(task, work(task)) in the order of the tasks, worked on by threads with one thread of BLAS each.

    At most one more result than threads waits to be taken. An error in a task is raised here.
    """
    count = torch.get_num_threads() if num_threads is None else num_threads
    if count < 1:
        raise ValueError(f"num_threads={count} must be a positive integer.")
    with one_thread():
        if count == 1 or len(tasks) == 1:
            yield from ((task, work(task)) for task in tasks)
            return
        pending: deque[tuple[Task, Future[Result]]] = deque()
        remaining = iter(tasks)
        with ThreadPoolExecutor(
            count, thread_name_prefix="bochner", initializer=torch.set_num_threads, initargs=(1,)
        ) as threads:
            try:
                for task in remaining:
                    pending.append((task, threads.submit(work, task)))
                    if len(pending) > count:
                        first, future = pending.popleft()
                        yield first, future.result()
                while pending:
                    first, future = pending.popleft()
                    yield first, future.result()
            finally:
                for _, future in pending:
                    future.cancel()


class _Limit:
    """One thread for all of BLAS while anybody holds it: OpenBLAS has one pool for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._holders == 0:
                _take_control()
                self._limits = _controller().limit(limits=1, user_api="blas")
            self._holders += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                _take_control()  # the first one in may have been another thread
                self._limits.restore_original_limits()
                self._limits = None
                _take_control()


@cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()  # it looks for libraries in 8 ms: once is enough


def _take_control() -> None:
    """threadpoolctl >= 3.8 listens to the thread that has set a limit, until it is told to forget it."""
    openblas = getattr(threadpoolctl, "OpenBLASController", None)
    forget = getattr(openblas, "clear_controlling_thread", None)
    if forget is not None:
        forget(force=True)


_BLAS = _Limit()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for BLAS in this process and for torch in this thread, and what was before afterwards.

    Safe from several threads at once (a Dask worker runs several tasks): the last one out restores.
    """
    before = torch.get_num_threads()
    with _BLAS, _controller().limit(limits=1, user_api="openmp"):  # OpenMP counts thread by thread
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
