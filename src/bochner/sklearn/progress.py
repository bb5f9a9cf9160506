"""A progress bar for long fits: rich's if it is installed, lines of text otherwise, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Step = Callable[[int, int], None]
"""Called with (done, of how many)."""
_SECONDS = 2.0  # between two lines of text


@contextmanager
def progress_bar(description: str, verbose: int) -> Iterator[Step | None]:
    """A function that moves the bar, or None where nothing is to be shown (`verbose` is 0).

    Example:
        >>> with progress_bar("rows", 0) as step:
        ...     step is None
        True
    """
    if not verbose:
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TaskProgressColumn as Share
    except ImportError:
        yield _lines(description)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), Share(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(description: str) -> Step:
    """A line of text now and then, and one at the end."""
    started = last = time.monotonic()

    def step(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < _SECONDS:
            return
        last = now
        print(f"{description} {done}/{total}, {now - started:.0f} s", file=sys.stderr, flush=True)

    return step
