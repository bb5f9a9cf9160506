"""Pictures of the language-model experiment: angles and lengths, and metrics against R."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bochner.reproduce import Row
from experiments.hybrid_random_features.language_model_report import baseline, budgets, estimates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 5
CURVES = {
    "wasserstein": ("Wasserstein-1 over word indices", "log"),
    "ks": ("Kolmogorov-Smirnov distance over word indices", "linear"),
    "kl": ("KL(estimate, truth) in nats", "log"),
    "total_variation": ("total variation", "linear"),
    "top1": ("agreement on the most likely word", "linear"),
    "mass_error": ("relative error of the softmax sum (median over queries)", "log"),
}


def draw(rows: list[Row], folder: Path, *, labels: dict[str, str]) -> None:
    """histograms.png, and for each metric METRIC.png with one panel for each map."""
    _histograms(rows, folder / "histograms.png")
    for metric in CURVES:
        _curves(rows, metric, labels, folder / f"{metric}.png")


def _histograms(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 3.0), layout="constrained")
    names = ("angle", "query length", "key length")
    for axes, name in zip(figure.subplots(1, 3), names, strict=True):
        bins = [row for row in rows if row["kind"] == "histogram" and row["quantity"] == name]
        axes.stairs(
            [b["share"] for b in bins], [bins[0]["left"], *(b["right"] for b in bins)], fill=True
        )
        unit = " between query and key (degrees)" if name == "angle" else ""
        axes.set_xlabel(name + unit)
        axes.set_yticks([])
    figure.savefig(path, dpi=110)


def _curves(rows: list[Row], metric: str, labels: dict[str, str], path: Path) -> None:
    from matplotlib.figure import Figure

    title, scale = CURVES[metric]
    lines = -(-len(labels) // COLUMNS)
    figure = Figure(figsize=(2.1 * COLUMNS, 1.9 * lines + 0.8), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, sharex=True, sharey=True)
    sizes = budgets(rows)
    for axes, (method, label) in zip(grid.flat, labels.items(), strict=False):
        _panel(axes, rows, metric, method)
        axes.set_title(label, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_yscale(scale)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(labels) :]:
        axes.set_axis_off()
    handles, names = grid.flat[0].get_legend_handles_labels()
    grid.flat[-1].legend(handles, names, fontsize=8, loc="center", frameon=False)
    figure.suptitle(f"{title}, against R", fontsize=11)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, rows: list[Row], metric: str, method: str) -> None:
    """One map: both accountings, and the answers that ignore the query."""
    for accounting, style, label in (
        ("paper", "o-", "R projections"),
        ("features", "s--", "2R columns"),
    ):
        mine = [row for row in estimates(rows, accounting) if row["method"] == method]
        axes.plot(
            [row["budget"] for row in mine],
            [row[metric] for row in mine],
            style,
            markersize=4,
            color="C0" if accounting == "paper" else "C1",
            label=label,
        )
    for name, color in (("uniform", "0.5"), ("average", "black")):
        level = baseline(rows, name).get(metric)
        if level is not None:
            axes.axhline(level, color=color, linestyle=":", label=f"{name} row")
