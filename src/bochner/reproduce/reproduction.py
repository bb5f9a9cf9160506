"""One experiment from its cells to its files."""

from __future__ import annotations

import csv
import io
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bochner.report.results import environment, finite, to_json, write_text
from bochner.reproduce.claims import claim_rows, claims_markdown, read_claims
from bochner.reproduce.discovery import Found
from bochner.reproduce.experiment import (
    Experiment,
    ExperimentError,
    Row,
    check_installed,
    checked_cells,
    label_of,
)
from bochner.reproduce.fingerprint import fingerprint
from bochner.reproduce.journal import Finished, Journal
from bochner.reproduce.running import run_cells, threads_of

JOURNAL = "journal.jsonl"
SCRATCH = "scratch"

Progress = Callable[[Iterable[str], int], Iterable[str]]
"""Passes on the labels of cells as they finish; the number is how many there will be."""


@dataclass(frozen=True)
class Settings:
    """How to run.

    Arguments:
        quick:      the small version of the experiment, for a first look and for CI.
        workers:    processes that run cells.
        fresh:      forget finished cells and the scratch folder.
    """

    quick: bool = False
    workers: int = 1
    fresh: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run found and where it is: rows, claims as text, files; `resumed` cells were done before."""

    rows: list[Row]
    claims: list[list[str]]
    files: list[Path]
    resumed: int


def reproduce(
    found: Found, folder: Path, settings: Settings, *, progress: Progress = lambda steps, _: steps
) -> Outcome:
    """Run the cells that are missing, then write everything that is made of the rows.

    Raises:     ExperimentError if something required is not installed, if the folder holds finished
                cells of another version, or if the claims and what is measured differ.
    """
    experiment = found.experiment
    check_installed(experiment)
    claims = read_claims(found.claims, experiment.name)
    cells = checked_cells(experiment, settings.quick)
    if settings.fresh:
        (folder / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    journal = Journal(folder / JOURNAL, cells, fingerprint(found.script))
    missing = [cell for cell in cells if journal.finished(cell) is None]

    def steps() -> Iterator[str]:
        for cell, finished in run_cells(found, missing, folder / SCRATCH, settings.workers):
            journal.add(cell, finished)
            yield label_of(cell)

    for _ in progress(steps(), len(missing)):
        pass
    done = [finished for cell in cells if (finished := journal.finished(cell)) is not None]
    rows = [row for finished in done for row in finished.rows]
    if not rows:
        raise ExperimentError(f"{experiment.name}: its {len(cells)} cells gave no row.")
    table = claim_rows(claims, experiment.measured(rows))
    texts = {
        "results.json": results_json(experiment, settings.quick, rows),
        "results.csv": results_csv(rows),
        "claims.md": claims_markdown(claims, table),
        "summary.md": experiment.summary(rows).strip() + "\n",
        "environment.json": to_json(_environment(done, settings)) + "\n",
    }
    pictures = _draw(experiment, rows, folder)
    for name, text in texts.items():
        write_text(folder / name, text)
    files = [folder / name for name in texts] + pictures
    return Outcome(rows, table, files, resumed=len(cells) - len(missing))


def results_json(experiment: Experiment, quick: bool, rows: list[Row]) -> str:
    """All rows, one on each line; what a difference of two versions can be read from."""
    head = {"experiment": experiment.name, "title": experiment.title, "paper": experiment.paper}
    fields = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in {**head, "quick": quick}.items()]
    lines = ",\n".join("    " + json.dumps(finite(row), allow_nan=False) for row in rows)
    return "{\n" + ",\n".join(fields) + f',\n  "rows": [\n{lines}\n  ]\n}}\n'


def results_csv(rows: list[Row]) -> str:
    """All rows under the union of their columns, in the order in which these first appear.

    Example:
        >>> results_csv([{"a": 1, "b": 0.5}, {"c": "x", "a": None}]).split()
        ['a,b,c', '1,0.5,', ',,x']
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _environment(done: list[Finished], settings: Settings) -> dict[str, Any]:
    """Versions, and the time that the cells took, all runs together."""
    return {
        **environment(),
        "threads": threads_of(settings.workers),
        "workers": settings.workers,
        "cells": len(done),
        "cell_seconds": round(sum(finished.seconds for finished in done), 1),
    }


def _draw(experiment: Experiment, rows: list[Row], folder: Path) -> list[Path]:
    """Draw beside the folder's pictures, and then replace them; the paths of the new ones."""
    drawing = folder / f".drawing-{secrets.token_hex(8)}"
    drawing.mkdir()
    try:
        experiment.draw(rows, drawing)
        drawn = sorted(drawing.glob("*.png"))
        for old in folder.glob("*.png"):
            if old.name not in {new.name for new in drawn}:
                old.unlink()
        return [new.replace(folder / new.name) for new in drawn]
    finally:
        shutil.rmtree(drawing)
