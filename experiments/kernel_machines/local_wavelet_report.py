"""What the experiment on local and wavelet features says: tables, pictures, claims (see local_wavelet.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.diagnostics import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

FEWEST = 3  # seeds that an interval takes
FEWEST_DIMENSIONS, FURTHEST = 5, 1.5
EXACT = "exact"
WAVES = ("waves, iid", "waves, orthogonal")
COLOURS = {
    "waves, iid": "#999999",
    "waves, orthogonal": "#0072B2",
    "local": "#D55E00",
    "wavelets": "#D55E00",
}


def pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], *names: str) -> list[tuple]:
    """The values of some fields, in the order in which they come."""
    return list(dict.fromkeys(tuple(row.get(name) for name in names) for row in rows))


def over_seeds(rows: Sequence[Row], name: str) -> Interval:
    return Interval.over(torch.tensor([float(row[name]) for row in rows], dtype=torch.float64))


def text(found: Interval, digits: int = 3, scale: float = 1.0) -> str:
    """Mean and half-width; the mean alone for fewer than three seeds."""
    mean = f"{scale * found.value:.{digits}f}"
    if found.redraws < FEWEST:
        return mean
    return f"{mean} ± {scale * (found.high - found.value):.{digits}f}"


def ratios(rows: Sequence[Row]) -> list[float]:
    """Measured over predicted errors of local features, where a hundred redraws show them: further out the
    error lies in rare draws, and in few dimensions hardly anything is random."""
    local = pick(rows, kind="kernel", features="local")
    return [
        float(row["rmse"]) / float(row["predicted"])
        for row in local
        if int(row["dim"]) >= FEWEST_DIMENSIONS and float(row["radius"]) <= FURTHEST
    ]


def measured(rows: list[Row]) -> Measured:
    """The closed-form error, and the coverage where the model is right."""
    values: Measured = {}
    if found := ratios(rows):
        values["local-predicted"] = float(torch.tensor(found, dtype=torch.float64).median())
    if right := pick(rows, kind="field", model=EXACT):
        values["exact-coverage"] = over_seeds(right, "coverage").value
    return values


def summary(rows: list[Row]) -> str:
    """Three tables, each with what it says."""
    parts = [
        "CPU times are of one thread, fit, choice of parameters and prediction together, on a machine that"
        " may have been shared. Intervals are 95 %, over seeds.",
    ]
    if kernel := pick(rows, kind="kernel"):
        parts += ["### Error of the kernel, by distance from the centre", _kernel_table(kernel)]
    if fields := pick(rows, kind="field"):
        parts += ["### Fields of many lengthscales", _field_table(fields), _field_words(fields)]
    if signals := pick(rows, kind="signal"):
        parts += ["### Signals", _signal_table(signals), _signal_words(signals)]
    return "\n\n".join(parts)


def _kernel_table(rows: Sequence[Row]) -> str:
    radii = [radius for (radius,) in distinct(rows, "radius")]
    lines = []
    for dim, m, features in distinct(rows, "dim", "m", "features"):
        some = {row["radius"]: row for row in pick(rows, dim=dim, m=m, features=features)}
        lines.append(
            [str(dim), str(m), str(features), *(f"{float(some[r]['rmse']):.1e}" for r in radii)]
        )
    header = ["d", "m", "features", *(f"at {radius:g}" for radius in radii)]
    return (
        "Root mean square error of K(x, y) for |x| = |y| = 0.25 to 3 lengthscales from the centre, random"
        " directions; local features are planned for these points.\n\n"
        + markdown_table(header, lines)
    )


def _field_table(rows: Sequence[Row]) -> str:
    lines = []
    for dim, model, m in distinct(rows, "dim", "model", "m"):
        some = pick(rows, dim=dim, model=model, m=m)
        centres = some[0].get("centres")
        lines.append(
            [
                str(dim),
                str(model),
                str(m) if m else "–",
                str(centres) if centres else "–",
                text(over_seeds(some, "rmse")),
                text(over_seeds(some, "nlpd"), 2),
                text(over_seeds(some, "coverage"), 1, 100.0),
                f"{over_seeds(some, 'seconds').value:.1f}",
            ]
        )
    header = ["d", "model", "m", "centres", "RMSE", "NLPD", "covered, %", "CPU-s"]
    return markdown_table(header, lines)


def _field_words(rows: Sequence[Row]) -> str:
    """Local features against the largest set of waves, by dimension."""
    words = []
    for (dim,) in distinct(rows, "dim"):
        some = pick(rows, dim=dim)
        exact = over_seeds(pick(some, model=EXACT), "rmse").value
        local = max((row for row in pick(some, model="local")), key=lambda row: row["m"])
        waves = max((r for r in some if r["model"] in WAVES), key=lambda row: row["m"])
        errors = [
            over_seeds(pick(some, model=row["model"], m=row["m"]), "rmse").value / exact
            for row in (local, waves)
        ]
        words.append(
            f"d = {dim}: {errors[0]:.2f} times the exact RMSE with {local['m']} local features a centre,"
            f" {errors[1]:.2f} times with {waves['m']} waves."
        )
    return " ".join(words)


def _signal_table(rows: Sequence[Row]) -> str:
    signals = [name for (name,) in distinct(rows, "signal")]
    lines = []
    for model, m in distinct(rows, "model", "m"):
        some = pick(rows, model=model, m=m)
        line = [str(model), str(m) if m else "–"]
        line += [text(over_seeds(pick(some, signal=name), "rmse")) for name in signals]
        line.append(text(over_seeds(some, "nlpd"), 2))
        line.append(text(over_seeds(some, "coverage"), 1, 100.0))
        lines.append(line)
    header = ["model", "m", *signals, "NLPD, all", "covered, %, all"]
    return "RMSE against the signal; the noise has deviation 1.\n\n" + markdown_table(header, lines)


def _signal_words(rows: Sequence[Row]) -> str:
    """Wavelets against orthogonal waves at the same m, paired by seed."""
    words = []
    for (name,) in distinct(rows, "signal"):
        some, told = pick(rows, signal=name), []
        for (m,) in distinct(pick(some, model="wavelets"), "m"):
            waves = {row["seed"]: row for row in pick(some, model="waves, orthogonal", m=m)}
            quotients = [
                math.log(float(row["rmse"]) / float(waves[row["seed"]]["rmse"]))
                for row in pick(some, model="wavelets", m=m)
            ]
            ratio = Interval.over(torch.tensor(quotients, dtype=torch.float64))
            low, high = math.exp(ratio.low), math.exp(ratio.high)
            interval = f" [{low:.2f}, {high:.2f}]" if ratio.redraws >= FEWEST else ""
            told.append(f"{math.exp(ratio.value):.2f}{interval} at m = {m}")
        words.append(f"{name}: {', '.join(told)}.")
    return "RMSE of wavelets over that of orthogonal waves, paired by seed. " + " ".join(words)


def draw(rows: list[Row], folder: Path) -> None:
    """Kernel errors by radius, fields and signals by the number of features."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    kernel = pick(rows, kind="kernel")
    m = max((int(row["m"]) for row in kernel if int(row["m"]) <= 256), default=0)
    for dim, features in distinct(pick(kernel, m=m), "dim", "features"):
        if features == "iid":
            continue
        some = pick(kernel, dim=dim, m=m, features=features)
        style = "-o" if features == "local" else "--"
        axes[0].plot(
            [row["radius"] for row in some],
            [max(float(row["rmse"]), 1e-16) for row in some],
            style,
            color=f"C{[d for (d,) in distinct(kernel, 'dim')].index(dim)}",
            label=f"d = {dim}, {features}",
        )
    axes[0].set(yscale="log", xlabel="distance from the centre, lengthscales", ylim=(1e-16, 10.0))
    axes[0].set_title(f"kernel error, m = {m}")
    for axis, kind, quantity in ((axes[1], "field", "dim"), (axes[2], "signal", "signal")):
        some = pick(rows, kind=kind)
        for at, (value,) in enumerate(distinct(some, quantity)):
            for model in COLOURS:
                points = pick(some, model=model, **{quantity: value})
                if not points:  # local features have no part in signals, wavelets none in fields
                    continue
                budgets = [m for (m,) in distinct(points, "m")]
                errors = [over_seeds(pick(points, m=m), "rmse").value for m in budgets]
                best = over_seeds(
                    [
                        r
                        for r in pick(some, **{quantity: value})
                        if str(r["model"]).startswith(EXACT)
                    ],
                    "rmse",
                )
                axis.plot(
                    budgets,
                    [error / best.value for error in errors],
                    marker="o^sDv*"[at % 6],
                    color=COLOURS[model],
                    label=f"{model}, d = {value}" if kind == "field" else f"{model}, {value}",
                )
        axis.set(
            xscale="log", yscale="log", xlabel="m", ylabel="RMSE / mean RMSE of exact processes"
        )
        axis.set_title({"field": "fields, by d", "signal": "signals"}[kind])
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6)
    figure.savefig(folder / "local_wavelet.png", dpi=110)
