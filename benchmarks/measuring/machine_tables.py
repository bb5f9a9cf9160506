"""Tables and gates of the kernel machines, from the rows alone."""

from __future__ import annotations

from typing import Any

from benchmarks.measuring.machines import FLOOR, OURS, RIDGE
from bochner.report.table import markdown_table

Row = dict[str, Any]


def place(row: Row) -> tuple[int, int, int]:
    """Rows, features, threads."""
    return row["rows"], row["features"], row["threads"]


def places(rows: list[Row]) -> list[tuple[int, int, int]]:
    """In the order in which they were run."""
    return list(dict.fromkeys(place(row) for row in rows))


def at(
    rows: list[Row], where: tuple[int, int, int], name: str, dtype: str = "float32"
) -> Row | None:
    """One contestant's row, if it was measured."""
    found = [
        row
        for row in rows
        if place(row) == where
        and (row["contestant"], row["dtype"]) == (name, dtype)
        and row["wall"] is not None
    ]
    return found[0] if found else None


def over(a: Row | None, b: Row | None, field: str) -> float | None:
    """The ratio of two measurements."""
    return None if a is None or b is None else a[field] / b[field]


def table(rows: list[Row], where: tuple[int, int, int]) -> str:
    """Contestants at one size."""
    own = [row for row in rows if place(row) == where]
    floor = at(rows, where, FLOOR)
    lines = []
    for row in own:
        if row["wall"] is None:
            lines.append([f"{row['contestant']}, {row['dtype']}", *"–––––"])
            continue
        ratio = over(row, floor, "wall")
        lines.append(
            [
                f"{row['contestant']}, {row['dtype']}",
                f"{row['cpu']:.2f}",
                f"{row['wall']:.2f}",
                "–" if ratio is None else f"{ratio:.2f}",
                f"{row['bytes'] / 1e6:,.0f}",
                "–" if row["r2"] is None else f"{row['r2']:.4f}",
            ]
        )
    header = ["contestant", "CPU s", "wall s", "wall / floor", "MB", "R²"]
    reasons = [
        f"- {row['contestant']}, {row['dtype']}: {row['reason']}." for row in own if row["reason"]
    ]
    left_out = "\n".join(["", "", "Left out (–):", *reasons]) if reasons else ""
    return markdown_table(header, lines) + left_out


def gates(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be shown, what was measured, and whether it was met; nothing of sizes that were not run."""
    rows = result["rows"]
    found: list[dict[str, Any]] = []

    def gate(statement: str, value: float | None, target: float, *, least: bool = False) -> None:
        if value is not None:
            met = value >= target if least else value <= target
            found.append({"statement": statement, "value": value, "target": target, "met": met})

    for where in places(rows):
        n, m, threads = where
        size = f"{n:,} rows, m = {m:,}, {threads} thread{'s' if threads > 1 else ''}"
        ours = at(rows, where, OURS)
        if n >= 1_000_000:
            gate(f"{size}: wall time over SYRK's", over(ours, at(rows, where, FLOOR), "wall"), 1.5)
            gate(f"{size}: extra MB", None if ours is None else ours["bytes"] / 1e6, 600.0)
        double, single = (at(rows, where, RIDGE, dtype) for dtype in ("float64", "float32"))
        if n == 100_000:
            gate(
                f"{size}: {RIDGE} float64 over ours, CPU",
                over(double, ours, "cpu"),
                3.0,
                least=True,
            )
            gate(f"{size}: ours over {RIDGE} float32, CPU", over(ours, single, "cpu"), 1.0)
            gate(f"{size}: ours over {RIDGE} float32, memory", over(ours, single, "bytes"), 1 / 7)
    return found


def gate_table(result: dict[str, Any]) -> str:
    """The gates, met or not."""
    checked = result["agreement"]
    lines = [
        [g["statement"], f"{g['value']:.3g}", f"{g['target']:.3g}", "yes" if g["met"] else "**no**"]
        for g in result["gates"]
    ]
    lines.append(
        [
            f"{checked['rows']:,} rows, m = {checked['features']:,}: relative change of the weights from"
            f" float64's, condition number {checked['condition']:.2g} times 2^-21 allowed",
            f"{checked['weights']:.2g}",
            f"{checked['allowed']:.2g}",
            "yes" if checked["weights"] <= checked["allowed"] else "**no**",
        ]
    )
    words = (
        f"Predictions of the two differ by {checked['predictions']:.1g} of their norm. Ratios of the"
        " least that was asked for are met from the target on, all others up to it."
    )
    return markdown_table(["what", "measured", "target", "met"], lines) + "\n\n" + words


def machine_tables(result: dict[str, Any]) -> dict[str, str]:
    """Every table by its title."""
    tables = {"Targets": gate_table(result)}
    for where in places(result["rows"]):
        n, m, threads = where
        title = f"{n:,} rows × 20, m = {m:,}, {threads} thread{'s' if threads > 1 else ''}"
        tables[title] = table(result["rows"], where)
    return tables


def machine_caption(result: dict[str, Any]) -> str:
    """What was measured, on what."""
    where, problem = result["environment"], result["problem"]
    peers = ", ".join(f"{k} {v or 'not installed'}" for k, v in where["peers"].items())
    return (
        f"Kernel ridge regression of a synthetic draw of a Gaussian process (d = {problem['dim']},"
        f" lengthscale {problem['lengthscale']:g}, noise {problem['noise']:g}, penalty {problem['alpha']:g}),"
        f" torch {where['torch']}; {peers}. CPU and wall seconds of `fit`, each in a process of its own,"
        " contestants in turn, medians of the rounds; MB are the peak beyond the rows themselves. R² is"
        " against the noise-free function on 20,000 other rows. `SYRK alone` is nothing but the float32"
        " matrix products that the Gram matrix takes, on as many threads: the floor."
    )
