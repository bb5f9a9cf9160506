"""Where text goes: results to standard output, progress and notes to standard error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sized
from typing import Any, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
P = ParamSpec("P")


INTERRUPTED = 130
"""What shells report of a program that SIGINT (2) ended: 128 + 2."""


class Interruptible(click.Group):
    """A group whose commands exit with 130 when they are interrupted; click alone gives 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stderr().print("interrupted")
            raise click.exceptions.Exit(INTERRUPTED) from None


def stderr() -> Console:
    """The console for notes."""
    return Console(stderr=True)


def output(json_file: str | None = None) -> Console:
    """The console for results: standard error while JSON takes standard output."""
    return Console(stderr=json_file == "-")


def tracked(steps: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """A progress bar on standard error around an iterable."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as progress:
        if total is None and isinstance(steps, Sized):
            total = len(steps)
        task = progress.add_task(description, total=total)
        for step in steps:
            name = step[0] if isinstance(step, tuple) else getattr(step, "name", step)
            progress.update(task, description=f"{description} {name}")
            yield step
            progress.advance(task)


def expect_answers(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the library's errors about input into one line and exit code 2; bugs keep their traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from bochner.data import MissingDataError

        try:
            command(*args, **kwargs)
        except (ValueError, OSError, ImportError, MissingDataError) as error:
            raise click.UsageError(str(error)) from error

    return run
