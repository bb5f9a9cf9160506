"""Runs the cells that are missing, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from bochner.reproduce.discovery import Found, load
from bochner.reproduce.experiment import Cell, Experiment, check_flat, label_of
from bochner.reproduce.journal import Finished


def run_cells(
    found: Found, cells: Sequence[Cell], scratch: Path, workers: int
) -> Iterator[tuple[Cell, Finished]]:
    """Each cell with its rows as it finishes.

    Workers are processes, each with its share of the cores as torch threads. When a cell fails, those
    that run are still given out, no other is begun, and then its error is raised.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        for cell in cells:
            yield cell, run_cell(found.experiment, cell, scratch)
        return
    if not cells:
        return
    with ProcessPoolExecutor(
        max_workers=min(workers, len(cells)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork of torch's threads can hang
        initializer=_limit_threads,
        initargs=(threads_of(workers),),
    ) as pool:
        futures: dict[Future[Finished], Cell] = {
            pool.submit(_run_cell_of, found.script, cell, scratch): cell for cell in cells
        }
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if (error := future.exception()) is None:
                    yield futures[future], future.result()
                elif failure is None:
                    failure = error
                    for other in futures:
                        other.cancel()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure


def run_cell(experiment: Experiment, cell: Cell, scratch: Path) -> Finished:
    """The rows of one cell, checked to be flat; an error of the cell says in which it arose."""
    began = time.perf_counter()
    try:
        rows = experiment.run(dict(cell), scratch)
        check_flat(rows, f"{experiment.name}: a row of the cell {label_of(cell)}")
    except Exception as error:
        error.add_note(f"in the cell {label_of(cell)} of {experiment.name}")
        raise
    return Finished(rows, time.perf_counter() - began)


def threads_of(workers: int) -> int:
    """The torch threads of each worker: the cores that this process may use, divided.

    Example:
        >>> threads_of(10_000)
        1
    """
    if workers == 1:
        return torch.get_num_threads()
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable is not None else os.cpu_count() or 1
    return max(1, cores // workers)


def _limit_threads(threads: int) -> None:
    torch.set_num_threads(min(threads, torch.get_num_threads()))


def _run_cell_of(script: Path, cell: Cell, scratch: Path) -> Finished:
    return run_cell(load(script), cell, scratch)
