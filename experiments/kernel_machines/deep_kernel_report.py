"""What deep kernels of low rank say on real data: a table, a picture (see deep_kernel.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

FEWEST = 3  # seeds that an interval takes
NAMES = {
    "bound": "deep kernel, bound",
    "uncorrected": "deep kernel, bound, uncorrected",
    "spectrum": "deep kernel, bound, spectrum on top",
    "predictive": "deep kernel, predictive loss",
    "last layer": "network, Bayesian last layer",
    "exact": "GP, all rows (Nyström from 4,096)",
    "features": "GP, 512 random features",
}
AGAINST = "last layer"


def pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def problems(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Sets with their numbers of rows, in the order in which they come."""
    return list(dict.fromkeys((str(row["set"]), int(row["train"])) for row in rows))


def over_seeds(rows: Sequence[Row], name: str) -> Interval:
    return Interval.over(torch.tensor([float(row[name]) for row in rows], dtype=torch.float64))


def paired(rows: Sequence[Row], kind: str, other: str, name: str) -> Interval | None:
    """Differences of two kinds, seed by seed; None unless both ran."""
    there = {row["seed"]: float(row[name]) for row in pick(rows, kind=other)}
    found = [
        float(row[name]) - there[row["seed"]]
        for row in pick(rows, kind=kind)
        if row["seed"] in there
    ]
    return Interval.over(torch.tensor(found, dtype=torch.float64)) if found else None


def text(found: Interval | None, digits: int = 3, scale: float = 1.0, sign: str = "") -> str:
    """Mean and half-width; the mean alone for fewer than three seeds."""
    if found is None:
        return "–"
    mean = f"{scale * found.value:{sign}.{digits}f}"
    if found.redraws < FEWEST:
        return mean
    return f"{mean} ± {scale * (found.high - found.value):.{digits}f}"


def measured(rows: list[Row]) -> Measured:
    """Nothing has a published value (claims/deep_kernel.toml)."""
    return {}


def summary(rows: list[Row]) -> str:
    """One table for each set and number of rows."""
    seeds = len({row["seed"] for row in rows})
    splits = "one split" if seeds == 1 else f"{seeds} splits"
    parts = [
        "Errors in units of the target's deviation on the training rows, negative log density in nats a row"
        " (lower is better), share of test rows inside central 95 % intervals for observations; means over"
        f" {splits}{', with 95 % intervals' if seeds >= FEWEST else ''}. `against` is the difference in log"
        f" density from the {NAMES[AGAINST]}, paired by split. CPU time includes the choice of the number of"
        " steps, on a machine that may have been shared."
    ]
    for name, count in problems(rows):
        some = pick(rows, set=name, train=count)
        parts += [f"### {name}, {count:,} training rows", _table(some)]
    return "\n\n".join([*parts, _verdict(rows)])


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for kind in [k for k in NAMES if pick(rows, kind=k)]:
        some = pick(rows, kind=kind)
        against = None if kind == AGAINST else paired(rows, kind, AGAINST, "nlpd")
        lines.append(
            [
                NAMES[kind],
                text(over_seeds(some, "rmse")),
                text(over_seeds(some, "nlpd")),
                text(against, sign="+"),
                text(over_seeds(some, "coverage"), 1, 100),
                f"{over_seeds(some, 'seconds').value:.1f}",
            ]
        )
    header = ["model", "RMSE", "NLPD", "against", "coverage %", "CPU-s"]
    return markdown_table(header, lines)


def best(rows: Sequence[Row], name: str) -> str:
    """The kind with the smallest mean."""
    kinds = [k for k in NAMES if pick(rows, kind=k)]
    return min(kinds, key=lambda kind: over_seeds(pick(rows, kind=kind), name).value)


def _verdict(rows: Sequence[Row]) -> str:
    lines = []
    for name, count in problems(rows):
        some = pick(rows, set=name, train=count)
        winners = [NAMES[best(some, measure)] for measure in ("rmse", "nlpd")]
        lines.append([f"{name}, {count:,} rows", *winners])
    return "### Smallest means\n\n" + markdown_table(["set", "RMSE", "NLPD"], lines)


def draw(rows: list[Row], folder: Path) -> None:
    """Log density against coverage, a panel for each set."""
    from matplotlib.figure import Figure

    places = problems(rows)
    figure = Figure(figsize=(max(9.0, 3.0 * len(places)), 3.4), layout="constrained")
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    for panel, (name, count) in zip(panels, places, strict=True):
        some = pick(rows, set=name, train=count)
        for kind in [k for k in NAMES if pick(some, kind=k)]:
            of_kind = pick(some, kind=kind)
            coverage = 100 * over_seeds(of_kind, "coverage").value
            panel.plot(coverage, over_seeds(of_kind, "nlpd").value, "o", label=NAMES[kind])
        panel.axvline(95, color="0.7", linewidth=1)
        panel.set_title(f"{name}, {count:,} rows", fontsize=9)
        panel.set_xlabel("coverage of 95 % intervals")
    panels[0].set_ylabel("negative log density, nats a row")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7
    )
    figure.savefig(folder / "density_and_coverage.png", dpi=120)
