"""Tables for the terminal (rich) and for documents (Markdown), from the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bochner.diagnostics import Candidate, Comparison, Interval

if TYPE_CHECKING:
    from rich.table import Table  # for terminals; documents need no rich


def error_text(interval: Interval | None) -> str:
    """0.53 ± 0.01: mean and half-width of its interval; plain where it exceeds 10, or nothing is drawn."""
    if interval is None:
        return "–"
    half = interval.high - interval.value
    if abs(interval.value) >= 10 or half >= 10:
        return f"{interval.value:.3g}"
    return f"{interval.value:.2f}" if interval.redraws < 2 else f"{interval.value:.2f} ± {half:.2f}"


def _grid(table: Comparison) -> tuple[list[str], list[int], dict[tuple[str, int], Candidate]]:
    cells = {(c.name, c.num_features): c for c in table.candidates}
    labels = list(dict.fromkeys(c.name for c in table.candidates))
    budgets = sorted({c.num_features for c in table.candidates})
    largest = budgets[-1]
    labels.sort(
        key=lambda name: cells[name, largest].output_error if (name, largest) in cells else 1e9
    )
    return labels, budgets, cells


def _cell(candidate: Candidate | None) -> str:
    """The output error; with the number of columns in brackets where fewer than the budget are used."""
    if candidate is None:
        return "–"
    text = error_text(candidate.report.output_error)
    fewer = candidate.columns < candidate.num_features
    return f"{text} [{candidate.columns}]" if fewer else text


def rows_of(table: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: map, then attention output error at each budget, best last column first.

    [60] behind an error: the map cannot use the whole budget and uses 60 columns. (biased) behind a
    name: `FeatureMap.unbiased` is False.
    """
    labels, budgets, cells = _grid(table)
    shown = {c.name: c.label for c in table.candidates}
    header = ["feature map", *(f"m = {m}" for m in budgets)]
    rows = []
    for label in labels:
        found = [cells.get((label, m)) for m in budgets]
        rows.append([shown[label], *(_cell(c) for c in found)])
    trivial = f"{table.trivial_output_error:.2f}"
    place = next(
        (
            i
            for i, label in enumerate(labels)
            if (label, budgets[-1]) in cells
            and cells[label, budgets[-1]].output_error > table.trivial_output_error
        ),
        len(rows),
    )
    rows.insert(place, ["(averaging the values)", *([trivial] * len(budgets))])
    return header, rows


def rich_grid(title: str, header: list[str], rows: list[list[str]]) -> Table:
    """A table for the terminal: first column to the left, numbers to the right; (...) rows stand out."""
    from rich.table import Table

    result = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        result.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        result.add_row(*row, style="bold yellow" if row[0].startswith("(") else None)
    return result


def rich_table(table: Comparison, title: str) -> Table:
    """Attention output error by map and budget, for the terminal."""
    grid = rich_grid(title, *rows_of(table))
    notes = []
    if any(c.columns < c.num_features for c in table.candidates):
        notes.append("\\[n]: uses n columns, the most within the budget that the map can use")
    if not all(c.unbiased for c in table.candidates):
        notes.append("(biased): its error does not average out over draws, if it draws at all")
    grid.caption = "\n".join(notes) or None
    return grid


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, first column to the left, numbers to the right."""
    lines = [
        "| " + " | ".join(header) + " |",
        "|---|" + "---:|" * (len(header) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def details_table(table: Comparison) -> Table:
    """Every metric of every row, for the terminal; says where theory has no prediction."""
    from rich.table import Table

    missing = "no theory" if table.predicted else "–"
    result = Table(
        title="all metrics (medians over heads, mean over redraws)", title_justify="left"
    )
    names = ("output error", "kernel error", "row variation", "entries < 0", "denominators <= 0")
    result.add_column("feature map", no_wrap=True)
    for name in ("columns", "directions", *names, "predicted"):
        result.add_column(name, justify="right")
    for c in table.candidates:
        predicted = missing
        if c.prediction is not None:
            mark = "" if c.prediction.reliable else " (overestimate)"
            predicted = f"{c.prediction.output_error:.2g}{mark}"
        result.add_row(
            c.label,
            str(c.columns),
            str(c.feature_map.num_projections),
            error_text(c.report.output_error),
            error_text(c.report.kernel_error),
            error_text(c.report.row_variation),
            f"{c.report.negative_entries.value:.1%}",
            f"{c.report.nonpositive_denominators.value:.1%}",
            predicted,
        )
    if table.predicted and any(c.prediction is None for c in table.candidates):
        result.caption = "no theory: the variance of this map has no closed form; measure it"
    return result
