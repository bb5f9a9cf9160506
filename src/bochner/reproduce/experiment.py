"""What an experiment says of itself: its cells, what one cell measures, and what is made of the rows."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Value = str | int | float | bool | None
"""What a field of a cell or of a row may hold."""
Cell = dict[str, Value]
"""One unit of work, of seconds to a few minutes, fully determined by its fields (the seed included)."""
Row = dict[str, Value]
"""One flat line of the results."""
Measured = dict[str, float | tuple[float, float]]
"""Claim id -> our value, or its smallest and largest."""


class ExperimentError(ValueError):
    """An experiment cannot be found, run or continued as asked; the message says what to do."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: the name `EXPERIMENT` of a script experiments/<paper>/<script>.py.

    Cells are independent: they run in any order, in several processes, and a run that was
    interrupted goes on with those that are missing. What they share (a trained model) is kept in the
    scratch folder and written there with `bochner.data.replacing`.

    Arguments:
        name:       what `bochner reproduce` takes: lower case, digits, hyphens.
        title:      a headline.
        paper:      what is reproduced: authors, title, year, section.
        cells:      quick -> the cells, all different; quick ones take seconds.
        run:        (cell, scratch folder) -> its rows.
        draw:       (all rows, folder) -> None: writes *.png into the folder.
        measured:   all rows -> our value of each claim in claims/<script>.toml.
        summary:    all rows -> Markdown: what was found, its tables generated from the rows.
        requires:   names to import that bochner itself does not need; imported inside functions.

    Raises:     ExperimentError for another name.

    Example:
        >>> thirds = Experiment(
        ...     name="thirds", title="Thirds", paper="none",
        ...     cells=lambda quick: [{"n": n} for n in range(2 if quick else 9)],
        ...     run=lambda cell, folder: [{"n": cell["n"], "third": cell["n"] / 3}],
        ...     draw=lambda rows, folder: None,
        ...     measured=lambda rows: {"largest": max(row["third"] for row in rows)},
        ...     summary=lambda rows: f"{len(rows)} thirds",
        ... )
        >>> rows = [row for cell in thirds.cells(False) for row in thirds.run(cell, Path())]
        >>> thirds.measured(rows)
        {'largest': 2.6666666666666665}
    """

    name: str
    title: str
    paper: str
    cells: Callable[[bool], list[Cell]]
    run: Callable[[Cell, Path], list[Row]]
    draw: Callable[[list[Row], Path], None]
    measured: Callable[[list[Row]], Measured]
    summary: Callable[[list[Row]], str]
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name that is no name of a folder everywhere."""
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ExperimentError(
                f"name={self.name!r} of an experiment must be lower-case words or digits with hyphens,"
                " for example 'hrf-pointwise'."
            )


def check_installed(experiment: Experiment) -> None:
    """Check that what the experiment imports can be imported.

    Raises:     ExperimentError with the command that installs it.
    """
    missing = [name for name in experiment.requires if importlib.util.find_spec(name) is None]
    if missing:
        raise ExperimentError(
            f"{experiment.name} needs {', '.join(missing)}, not installed here; in the source"
            " checkout: pip install -e '.[experiments]'"
        )


def checked_cells(experiment: Experiment, quick: bool) -> list[Cell]:
    """The cells, each a flat record and all of them different.

    Raises:     ExperimentError otherwise, or if there are none.
    """
    cells = experiment.cells(quick)
    if not cells:
        raise ExperimentError(f"{experiment.name}: cells(quick={quick}) is empty; expected some.")
    check_flat(cells, f"{experiment.name}: cells(quick={quick})")
    labels: set[str] = set()
    for cell in cells:
        if (label := label_of(cell)) in labels:
            raise ExperimentError(
                f"{experiment.name}: cells(quick={quick}) has this cell twice: {label}; give repeated"
                " work a field that tells it apart, such as the seed."
            )
        labels.add(label)
    return cells


def label_of(cell: Cell) -> str:
    """A cell on one line.

    Example:
        >>> label_of({"r": 1.5, "seed": 0})
        'r=1.5 seed=0'
    """
    return " ".join(f"{name}={value!r}" for name, value in cell.items())


def check_flat(records: Iterable[Row], owner: str) -> None:
    """Check that records map names to plain values, so that JSON gives back what went in.

    Raises:     ExperimentError that names the owner, the field and its type.
    """
    for record in records:
        for name, value in record.items():
            if not isinstance(name, str) or not isinstance(value, str | int | float | None):
                raise ExperimentError(
                    f"{owner} has {name!r} = {value!r} of type {type(value).__name__}; expected a"
                    " str with a str, int, float, bool or None (float(...) makes one of a tensor)."
                )
