"""What sparse binning finds of a function, and in what time (see binning.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.kernel_machines.whitening_report import distinct, over_seeds, pick, text


def models(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "missed" in row]


def measured(rows: list[Row]) -> Measured:
    """The variance of the kernel's estimates over its closed form."""
    found = [float(row["variance_ratio"]) for row in pick(rows, model="closed form")]
    return {"variance": sum(found) / len(found)}


def summary(rows: list[Row]) -> str:
    """A table for each kind of number."""
    some = models(rows)
    seeds = len(distinct(some, "seed"))
    return "\n\n".join(
        [
            f"Means over {seeds} {'draw' if seeds == 1 else 'draws'} of the function"
            f"{', with 95 % intervals' if seeds > 2 else ''}. All know the lengthscale and the noise. Binning"
            " has a kernel of its own (Laplacian, or spline windows of the same curvature at 0); the dense"
            " features have the kernel that the function was drawn from.",
            "### Variance of the function that is missed on new points, in percent",
            _table(rows, "missed", 100, 2),
            "### CPU seconds of the fit, on a machine that may have been shared",
            _table(rows, "seconds", 1, 1),
            _verdict(some),
        ]
    )


def _table(rows: Sequence[Row], field: str, scale: float, digits: int) -> str:
    some = models(rows)
    problems = distinct(some, "problem")
    lines = [
        [
            str(name),
            *(
                text(over_seeds(pick(some, model=name, problem=p), field), scale, digits)
                for p in problems
            ),
        ]
        for name in distinct(some, "model")
    ]
    return markdown_table(["model", *map(str, problems)], lines)


def _verdict(some: Sequence[Row]) -> str:
    """The best of each family on every problem."""
    lines = []
    for problem in distinct(some, "problem"):
        values = {
            name: over_seeds(pick(some, model=name, problem=problem), "missed").value
            for name in distinct(some, "model")
        }
        best = min(values, key=lambda name: values[name])
        lines.append(f"- {problem}: {best} misses least ({100 * values[best]:.2f} %).")
    return "\n".join(lines)


def ratio(some: Sequence[Row], name: str, against: str, problem: str) -> Interval:
    """What one model misses over what another does, draw by draw."""
    ours, theirs = (
        {r["seed"]: float(r["missed"]) for r in pick(some, model=m, problem=problem)}
        for m in (name, against)
    )
    return Interval.over(torch.tensor([ours[s] / theirs[s] for s in ours], dtype=torch.float64))


def draw(rows: list[Row], folder: Path) -> None:
    """Missed variance against CPU time, a panel for each problem."""
    from matplotlib.figure import Figure

    some = models(rows)
    problems = distinct(some, "problem")
    figure = Figure(figsize=(3.4 * len(problems), 3.6), layout="constrained")
    axes = figure.subplots(1, len(problems), squeeze=False)[0]
    for axis, problem in zip(axes, problems, strict=True):
        for name in distinct(some, "model"):
            these = pick(some, model=name, problem=problem)
            mark = "o" if "smooth" in str(name) else "s" if "binning" in str(name) else "^"
            axis.plot(
                over_seeds(these, "seconds").value,
                over_seeds(these, "missed").value,
                mark,
                label=str(name),
            )
        axis.set(xscale="log", yscale="log", xlabel="CPU seconds", title=str(problem))
    axes[0].set_ylabel("variance missed")
    axes[-1].legend(fontsize=6)
    figure.savefig(folder / "binning.png", dpi=150)
