"""`bochner reproduce`: what it prints, experiment by experiment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from bochner.cli.console import output, tracked
from bochner.reproduce import Found, Settings, reproduce
from bochner.reproduce.claims import HEADER
from bochner.reproduce.experiment import check_installed


def list_experiments(found: Sequence[Found]) -> None:
    """Names, titles, papers, and whether the checkout has their results."""
    table = Table(title="experiments", title_justify="left")
    for column in ("name", "results", "title", "paper"):
        table.add_column(column, no_wrap=column == "name")
    for entry in found:
        has_results = (entry.folder(quick=False) / "results.json").exists()
        experiment = entry.experiment
        table.add_row(
            experiment.name,
            "yes" if has_results else "–",
            escape(experiment.title),
            escape(experiment.paper),
        )
    output().print(table)


def run_experiments(found: Sequence[Found], out: Path | None, settings: Settings) -> None:
    """Run each; print its claims beside what was measured, and where the files are."""
    for entry in found:  # before the first of them runs for an hour
        check_installed(entry.experiment)
    console = output()
    for entry in found:
        experiment = entry.experiment
        began = time.perf_counter()
        console.rule(experiment.name + (" (quick)" if settings.quick else ""))
        console.print(f"{experiment.title}\n{experiment.paper}", highlight=False, markup=False)
        outcome = reproduce(
            entry,
            entry.folder(settings.quick, out),
            settings,
            progress=lambda steps, total: tracked(steps, "finished", total),
        )
        if outcome.claims:
            console.print(_claims_table(outcome.claims))
        resumed = f", {outcome.resumed} cells were done before" if outcome.resumed else ""
        console.print(f"done in {time.perf_counter() - began:.0f} s{resumed}; written to:")
        for file in outcome.files:
            console.print(f"  {file}", highlight=False, soft_wrap=True)


def _claims_table(rows: list[list[str]]) -> Table:
    """What of the claims fits a terminal: all but source and place, which claims.md has."""
    table = Table(title="published and ours", title_justify="left")
    for name in HEADER:
        if name not in ("source", "where"):
            table.add_column(name, no_wrap=name in ("published", "ours"))
    for statement, _, _, *figures in rows:
        table.add_row(*(escape(text) for text in (statement, *figures)))
    return table
