"""What `decentralised` says: slopes with intervals, tables, the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.kernel_machines.decentralised_circle import RATE

GRAPHS = ("ring", "grid", "complete")
COLOURS = {"ring": "#D55E00", "grid": "#009E73", "complete": "#0072B2"}
FEWEST = 3  # seeds that an interval takes


def pick(rows: Sequence[Row], /, **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], name: str) -> list:
    """The values of a field, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def interval(values: Sequence[float]) -> Interval:
    return Interval.over(torch.tensor(values, dtype=torch.float64))


def text(found: Interval, digits: int = 3) -> str:
    """Mean and half-width; the mean alone for fewer than three seeds."""
    mean = f"{found.value:.{digits}f}"
    if found.redraws < FEWEST:
        return mean
    return f"{mean} ± {found.high - found.value:.{digits}f}"


def slope(rows: Sequence[Row], graph: str, name: str = "mean") -> Interval:
    """d log(risk) / d log(rows), one least-squares line for each seed."""
    some = pick(rows, part="rate", graph=graph)
    slopes = []
    for seed in distinct(some, "seed"):
        own = pick(some, seed=seed)
        x = np.log([float(row["rows"]) for row in own])
        y = np.log([float(row[name]) for row in own])
        slopes.append(float(np.polyfit(x, y, 1)[0]))
    return interval(slopes)


def ratios(rows: Sequence[Row], agents: object, graph: str, name: str = "mean") -> Interval:
    """Excess risk over that of descent on all rows, paired by seed."""
    some = pick(rows, part="network", agents=agents)
    base = {row["seed"]: float(row["mean"]) for row in pick(some, graph="all rows")}
    return interval([float(row[name]) / base[row["seed"]] for row in pick(some, graph=graph)])


def measured(rows: list[Row]) -> Measured:
    """Slopes, and the two identities."""
    of_path = pick(rows, part="path", graph="complete")
    return {
        **{f"rate-{graph}".replace(" ", "-"): slope(rows, graph).value for graph in KINDS},
        "complete-graph": max(float(row["away"]) for row in of_path),
        "gloo": max(float(row["difference"]) for row in pick(rows, part="gloo")),
    }


KINDS = ("all rows", "ridge", *GRAPHS)


def summary(rows: list[Row]) -> str:
    """Four parts."""
    return "\n\n".join([_path(rows), _rate(rows), _network(rows), _gloo(rows)])


def _path(rows: Sequence[Row]) -> str:
    some = pick(rows, part="path")
    lines = []
    for t in distinct(some, "step"):
        line = [str(t)]
        for graph in GRAPHS:
            own = pick(some, step=t, graph=graph)
            line.append(text(interval([float(row["mean"]) for row in own])))
            line.append(f"{max(float(row['worst']) for row in own):.3f}")
        own = pick(some, step=t, graph="ring")
        line += [
            text(interval([float(row[name]) for row in own])) for name in ("together", "alone")
        ]
        lines.append(line)
    header = ["steps"]
    for graph in GRAPHS:
        header += [f"{graph}, mean agent", "worst"]
    ridge = text(interval([float(r["ridge"]) for r in pick(some, step=1, graph="ring")]))
    gaps = ", ".join(f"{g} {float(pick(some, graph=g)[0]['gap']):.3g}" for g in GRAPHS)
    seeds = len(distinct(some, "seed"))
    return "\n\n".join(
        [
            "### Along the steps",
            f"Root mean square error against the noise-free function, {seeds} seeds"
            f"{' with 95 % intervals' if seeds >= FEWEST else ''}; worst: of all agents and seeds. Spectral"
            f" gaps: {gaps}. Ridge regression on all rows, its penalty by GCV: {ridge}.",
            markdown_table([*header, "descent on all rows", "one agent alone"], lines),
            _best(some),
        ]
    )


def _best(some: Sequence[Row]) -> str:
    """The best number of steps for each."""
    words = []
    series = {**{g: (g, "mean") for g in GRAPHS}, "all rows": ("ring", "together")}
    for name, (graph, field) in {**series, "one agent alone": ("ring", "alone")}.items():
        means = {
            t: interval([float(r[field]) for r in pick(some, step=t, graph=graph)]).value
            for t in distinct(some, "step")
        }
        best = min(means, key=lambda t: means[t])
        words.append(f"{name} {means[best]:.3f} after {best}")
    last = distinct(some, "step")[-1]
    return f"Lowest along the path: {', '.join(words)} (of {last} steps)."


def _rate(rows: Sequence[Row]) -> str:
    some = pick(rows, part="rate")
    sizes = distinct(some, "rows")
    lines = []
    for graph in distinct(some, "graph"):
        risks = [
            np.mean([float(r["mean"]) for r in pick(some, graph=graph, rows=n)]) for n in sizes
        ]
        name = {"all rows": "descent on all rows", "ridge": "ridge, alpha = N / t"}.get(
            graph, graph
        )
        found = slope(rows, graph)
        lines.append([name, *(f"{risk:.4f}" for risk in risks), text(found)])
    agents = some[0]["agents"]
    return "\n\n".join(
        [
            "### The rate",
            f"Excess risk on the circle with {agents} agents, N rows in all, after t = N^(2/3) steps with"
            f" N^(2/3) features. Theory: N^-{RATE:.3f} where agents hold rows enough; slopes are of"
            " straight lines through all sizes, one for each seed. `alone` stops by its own rows.",
            markdown_table(["", *(f"N = {n}" for n in sizes), "slope"], lines),
        ]
    )


def _network(rows: Sequence[Row]) -> str:
    some = pick(rows, part="network")
    lines = []
    for agents in distinct(some, "agents"):
        own = pick(some, agents=agents)
        total = int(own[0]["rows"])
        line = [str(agents), str(total // int(agents))]
        for graph in GRAPHS:
            gap = float(pick(own, graph=graph)[0]["gap"])
            line.append(f"{text(ratios(rows, agents, graph), 2)} ({gap:.2g})")
            line.append(f"{ratios(rows, agents, graph, 'worst').value:.2f}")
        line.append(text(ratios(rows, agents, "alone"), 1))
        lines.append(line)
    header = ["agents", "rows each"]
    for graph in GRAPHS:
        header += [f"{graph} (gap)", "worst agent"]
    return "\n\n".join(
        [
            "### More agents, the same rows",
            f"Excess risk over that of descent on all {total} rows, at the theory's steps; mean over agents"
            " and seeds.",
            markdown_table([*header, "alone"], lines),
        ]
    )


def _gloo(rows: Sequence[Row]) -> str:
    lines = [
        [
            str(row["graph"]),
            str(row["agents"]),
            str(row["steps"]),
            f"{float(row['difference']):.3g}",
            f"{float(row['milliseconds']):.1f}",
            str(row["bytes"]),
        ]
        for row in pick(rows, part="gloo")
    ]
    header = ["graph", "processes", "steps", "largest difference from the simulation"]
    return "\n\n".join(
        [
            "### Over processes (gloo)",
            "Every agent a process, all on one machine that may have been shared; bytes are those that the"
            " busiest agent sends in a step.",
            markdown_table([*header, "ms a step", "bytes a step"], lines),
        ]
    )


def draw(rows: list[Row], folder: Path) -> None:
    """Errors along the steps, and the rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    some = pick(rows, part="path")
    steps = distinct(some, "step")

    def means(graph: str, name: str) -> list[float]:
        return [
            interval([float(r[name]) for r in pick(some, step=t, graph=graph)]).value for t in steps
        ]

    for graph in GRAPHS:
        left.plot(steps, means(graph, "mean"), "o-", color=COLOURS[graph], label=graph)
    left.plot(steps, means("ring", "together"), "k--", label="descent on all rows")
    left.plot(steps, means("ring", "alone"), ":", color="#777777", label="one agent alone")
    left.axhline(means("ring", "ridge")[0], color="#CC79A7", label="ridge on all rows")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("steps")
    left.set_ylabel("RMSE, mean agent")
    left.legend()
    sizes = distinct(pick(rows, part="rate"), "rows")
    for graph in (*GRAPHS, "all rows"):
        own = pick(rows, part="rate", graph=graph)
        risks = [np.mean([float(r["mean"]) for r in pick(own, rows=n)]) for n in sizes]
        style = {"color": COLOURS.get(graph, "k"), "linestyle": "-" if graph in COLOURS else "--"}
        right.plot(sizes, risks, marker="o", label=graph, **style)
    first = risks[-1] * (np.array(sizes) / sizes[-1]) ** -RATE
    right.plot(sizes, first, color="#999999", label=f"N^-{RATE:.2f}")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("rows of all agents, N")
    right.set_ylabel("excess risk, mean agent")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(folder / "decentralised.png", dpi=110)


assert math.isclose(RATE, 2 / 3)
