"""Tables, sentences and pictures of the pointwise experiment, all from its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from bochner.report.table import markdown_table
from bochner.reproduce import Row
from experiments.hybrid_random_features.sphere_maps import SHOWN

HYBRIDS = ("angular", "majority", "gaussian")
TITLES = {
    "projections": "R = 128 projections (hybrids: m n = 128), the paper's accounting",
    "length64": "64 feature columns",
    "length256": "256 feature columns",
}
COLOURS = {
    "trigonometric orthogonal": ("C0", "-"),
    "hyperbolic orthogonal": ("C1", "-"),
    "positive orthogonal (FAVOR+)": ("C2", "-"),
    "FAVOR++ simplex": ("C4", "-"),
    "angular n=1": ("C3", "-"),
    "angular n=8": ("C3", "--"),
    "majority n=1": ("C5", "--"),
    "gaussian n=8": ("C6", "--"),
}
"""What the pictures show; tables have every map."""


# -- reading ------------------------------------------------------------------------------------------
def value_at(rows: list[Row], accounting: str, label: str, radius: float, angle: float) -> Row:
    """The row of one point."""
    return next(
        row
        for row in rows
        if (row["accounting"], row["map"], row["radius"], row.get("angle"))
        == (accounting, label, radius, angle)
    )


def worst_of(rows: list[Row], accounting: str, label: str, radius: float) -> Row:
    """The row of one worst case."""
    return next(
        row
        for row in rows
        if "worst" in row
        and (row["accounting"], row["map"], row["radius"]) == (accounting, label, radius)
    )


def distinct(rows: list[Row], name: str) -> list:
    return list(dict.fromkeys(row[name] for row in rows))


def is_hybrid(label: str) -> bool:
    return label.startswith(HYBRIDS)


def number(value: float) -> str:
    """Three digits: 0.0123, 1.23, 123."""
    return "0" if value < 5e-5 else f"{value:#.3g}".rstrip(".")


# -- tables -------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """What was found, in Markdown."""
    swept = [row for row in rows if "rmse" in row]
    parts = ["## Monte Carlo against the closed forms", agreement(swept)]
    for accounting in distinct(swept, "accounting"):
        mine = [row for row in rows if row["accounting"] == accounting]
        parts += [
            f"## {TITLES[accounting]}",
            "Relative RMSE at r = 1 by theta/pi: measured, or the closed form in parentheses where the"
            " replicates do not resolve it; `worst`: largest closed form over all angles.",
            errors_table(mine, 1.0),
            "Worst case over all angles, by radius:",
            worst_table(mine),
            "Best single map and best hybrid (feature columns), and the error: worst case, at both poles"
            " (the larger of 0.02 pi and 0.98 pi), and at pi/2.",
            best_table(mine),
            verdict(mine),
        ]
        if accounting == "projections":
            parts.append(published_sizes(mine))
    parts += ["## Maps fitted to data", fitted_table([r for r in rows if "rmse" not in r])]
    return "\n\n".join(parts)


def fitted_table(rows: list[Row]) -> str:
    """Closed forms of the catalogue's fitted maps; empty without their rows."""
    mine = [row for row in rows if row["accounting"] == "fitted"]
    lines = []
    for radius in (r for r in distinct(mine, "radius") if r == int(r)):
        for label in distinct(mine, "map"):
            errors = [value_at(mine, "fitted", label, radius, a)["predicted"] for a in SHOWN]
            worst = worst_of(mine, "fitted", label, radius)["worst"]
            lines.append([f"r = {radius:g}, {label}", *map(number, [*errors, worst])])
    return (
        "Closed forms for 64 columns and iid directions, fitted to points with the mean and covariance of"
        " the uniform law on the sphere. Every direction is alike there, so that balancing, eigenbases and"
        " complex matrices find nothing to use; only the spread of the directions is left to choose.\n\n"
        + markdown_table(["map", *map(str, SHOWN), "worst"], lines)
    )


def agreement(swept: list[Row]) -> str:
    """How the sample compares with the theory."""
    points = [row for row in swept if row["z"] is not None]
    resolved = [row for row in points if row["resolved"]]
    ratios = [row["rmse"] / row["predicted"] for row in resolved]
    scores = [abs(row["rmse"] - row["predicted"]) / row["rmse_stderr"] for row in resolved]
    z = [row["z"] for row in resolved]
    exact = [row for row in swept if row["z"] is None]
    largest = max((abs(row["mean"] - 1.0) for row in exact), default=0.0)
    return (
        f"{len(swept)} points (map, accounting, radius, angle). At {len(exact)} of them theory says"
        f" that the map is exact; the largest deviation of their means is {largest:.1g}. Of the other"
        f" {len(points)}, {len(resolved)} are resolved: the standard error of their RMSE, from exact"
        " fourth moments, is at most a tenth of it. There the measured RMSE is"
        f" {min(ratios):.3f} to {max(ratios):.3f} times the closed form, at most {max(scores):.1f}"
        " standard errors away, and the means have"
        f" {(sum(v * v for v in z) / len(z)) ** 0.5:.3f} as root mean square of z (1 if unbiased with"
        f" the predicted variance), {max(map(abs, z)):.1f} at most. (Points of one map and accounting share"
        f" their draws and so deviate together, and a sample RMSE of heavy tails is skewed.) At the"
        f" {len(points) - len(resolved)} other points the tails are too heavy for any"
        " statement from this sample: features that contain an exponential, at large |x + y|, or a hybrid"
        " that is seldom wrong."
    )


def errors_table(rows: list[Row], radius: float) -> str:
    lines = []
    for label in distinct(rows, "map"):
        row = worst_of(rows, rows[0]["accounting"], label, radius)
        cells = []
        for angle in SHOWN:
            point = value_at(rows, row["accounting"], label, radius, angle)
            text = number(point["rmse"] if point["resolved"] else point["predicted"])
            cells.append(text if point["resolved"] else f"({text})")
        sizes = [str(row[name]) for name in ("projections", "features")]
        lines.append([label, *sizes, *cells, number(row["worst"])])
    header = ["map", "projections", "features", *map(str, SHOWN), "worst"]
    return markdown_table(header, lines)


def worst_table(rows: list[Row]) -> str:
    radii, accounting = distinct(rows, "radius"), rows[0]["accounting"]
    lines = [
        [label, *(number(worst_of(rows, accounting, label, r)["worst"]) for r in radii)]
        for label in distinct(rows, "map")
    ]
    return markdown_table(["map", *(f"r = {r:g}" for r in radii)], lines)


# -- who wins -----------------------------------------------------------------------------------------
def criteria(rows: list[Row], radius: float) -> dict[str, Callable[[str], float]]:
    """Name -> closed-form error of a map at a radius."""
    accounting = rows[0]["accounting"]

    def at(label: str, angle: float) -> float:
        return value_at(rows, accounting, label, radius, angle)["predicted"]

    return {
        "worst case": lambda label: worst_of(rows, accounting, label, radius)["worst"],
        "both poles": lambda label: max(at(label, 0.02), at(label, 0.98)),
        "pi/2": lambda label: at(label, 0.5),
    }


def winners(rows: list[Row]) -> dict[tuple[float, str], tuple[tuple[str, float], ...]]:
    """(radius, criterion) -> the best of the bases and the best hybrid, each with its error."""
    labels = distinct(rows, "map")
    groups = [x for x in labels if not is_hybrid(x)], [x for x in labels if is_hybrid(x)]
    found = {}
    for radius in distinct(rows, "radius"):
        for name, error in criteria(rows, radius).items():
            best = (min(group, key=error) for group in groups)
            found[radius, name] = tuple((label, error(label)) for label in best)
    return found


def best_table(rows: list[Row]) -> str:
    found = winners(rows)
    names = list(dict.fromkeys(name for _, name in found))
    columns = {row["map"]: row["features"] for row in rows}
    lines = []
    for radius in distinct(rows, "radius"):
        for kind, index in (("single", 0), ("hybrid", 1)):
            best = [found[radius, name][index] for name in names]
            lines.append(
                [f"r = {radius:g}, {kind}"]
                + [f"{label} ({columns[label]}): {number(e)}" for label, e in best]
            )
    return markdown_table(["", *names], lines)


def verdict(rows: list[Row]) -> str:
    """Where the best hybrid beats the best single map, in words."""
    found, lines = winners(rows), []
    for name in dict.fromkeys(name for _, name in found):
        ratios = {r: pair[1][1] / pair[0][1] for (r, n), pair in found.items() if n == name}
        wins = [f"{r:g}" for r, ratio in ratios.items() if ratio < 1.0]
        where = f"at r = {', '.join(wins)}" if wins else "at no radius"
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios.values())
        lines.append(
            f"- {name}: the best hybrid beats the best single map {where}; its error over theirs at"
            f" r = {', '.join(f'{r:g}' for r in ratios)}: {each}."
        )
    return "\n".join(lines)


def published_sizes(rows: list[Row]) -> str:
    """The sizes of the paper's code, n = 8 and m = 16 against 128 projections, in words."""
    labels = ("angular n=8", "trigonometric orthogonal", "hyperbolic orthogonal")
    text = []
    for radius in distinct(rows, "radius"):
        rated = criteria(rows, radius)
        errors = {name: [error(label) for label in labels] for name, error in rated.items()}
        shares = [f"{own / min(others):.2f}" for own, *others in errors.values()]
        text.append(f"r = {radius:g}: {', '.join(shares)}")
    columns = {row["map"]: row["features"] for row in rows}
    return (
        f"With the sizes of the paper's code the angular hybrid (n = 8, m = 16, {columns[labels[0]]}"
        f" columns) has, against the better of its two bases ({columns[labels[1]]} columns), this share"
        f" of the error ({', '.join(criteria(rows, 1.0))}): {'; '.join(text)}."
    )


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """errors.png, worst_case.png and estimates.png."""
    rows = [row for row in rows if row["accounting"] != "fitted"]
    draw_errors(rows, folder / "errors.png")
    draw_worst(rows, folder / "worst_case.png")
    draw_estimates(rows, folder / "estimates.png")


def sweep(rows: list[Row], accounting: str, label: str, radius: float) -> list[Row]:
    return sorted(
        (
            row
            for row in rows
            if "angle" in row
            and (row["accounting"], row["map"], row["radius"]) == (accounting, label, radius)
        ),
        key=lambda row: row["angle"],
    )


def panels(count_rows: int, count_columns: int, *, size: tuple[float, float]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * count_columns, size[1] * count_rows), layout="constrained")
    return figure, figure.subplots(count_rows, count_columns, squeeze=False)


def draw_errors(rows: list[Row], path: Path) -> None:
    """Relative error against the angle: lines are closed forms, dots are measured."""
    accountings, radii = distinct(rows, "accounting"), distinct(rows, "radius")
    figure, grid = panels(len(accountings), len(radii), size=(3.3, 3.0))
    for axes_row, accounting in zip(grid, accountings, strict=True):
        for axes, radius in zip(axes_row, radii, strict=True):
            for label, (colour, style) in COLOURS.items():
                points = sweep(rows, accounting, label, radius)
                line = [(p["angle"], p["predicted"]) for p in points if p["z"] is not None]
                axes.plot(*zip(*line, strict=True), color=colour, linestyle=style, label=label)
                dots = [(p["angle"], p["rmse"]) for p in points if p["resolved"]]
                if dots:
                    axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=4)
            axes.set_yscale("log")
            axes.set_title(f"{accounting}, r = {radius:g}", fontsize=9)
            axes.grid(alpha=0.3)
        axes_row[0].set_ylabel("relative RMSE")
    for axes in grid[-1]:
        axes.set_xlabel("theta / pi")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=90)


def draw_worst(rows: list[Row], path: Path) -> None:
    """Worst case over angles against the radius, over that of iid trigonometric features."""
    accountings, radii = distinct(rows, "accounting"), distinct(rows, "radius")
    figure, grid = panels(1, len(accountings), size=(4.2, 3.6))
    for axes, accounting in zip(grid[0], accountings, strict=True):
        for label, (colour, style) in COLOURS.items():
            values = [
                worst_of(rows, accounting, label, r)["worst"]
                / worst_of(rows, accounting, "trigonometric iid", r)["worst"]
                for r in radii
            ]
            axes.plot(radii, values, marker=".", color=colour, linestyle=style, label=label)
        axes.set_ylim(0, 2)
        axes.set_xlabel("radius r")
        axes.set_title(TITLES[accounting].partition(",")[0], fontsize=9)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("largest error over theta,\ntrigonometric iid = 1")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=90)


def draw_estimates(rows: list[Row], path: Path) -> None:
    """Mean and standard deviation of the estimates beside the kernel, in the paper's accounting."""
    shown = ("trigonometric iid", "hyperbolic iid", "angular n=8, iid bases", "gaussian n=8")
    radii = [r for r in (1.0, 1.25, 1.5) if r in distinct(rows, "radius")]
    figure, grid = panels(len(radii), len(shown), size=(3.3, 2.8))
    for axes_row, radius in zip(grid, radii, strict=True):
        for axes, label in zip(axes_row, shown, strict=True):
            points = sweep(rows, "projections", label, radius)
            angles = [p["angle"] for p in points]
            kernel = [_kernel(radius, angle) for angle in angles]
            means = [p["mean"] * k for p, k in zip(points, kernel, strict=True)]
            spreads = [p["std"] * k for p, k in zip(points, kernel, strict=True)]
            low, high = (
                [m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1)
            )
            axes.fill_between(angles, low, high, alpha=0.3, linewidth=0)
            axes.plot(angles, means, ".", markersize=4, label="mean ± std of the estimates")
            axes.plot(angles, kernel, color="black", linewidth=1, label="exp(x.y)")
            for sign in (-1, 1):
                edge = [
                    k * (1 + sign * p["predicted"]) for p, k in zip(points, kernel, strict=True)
                ]
                axes.plot(angles, edge, "k:", linewidth=0.8, label="± std of the closed form")
            axes.set_ylim(-0.6 * kernel[0], 2.2 * kernel[0])
            axes.set_title(f"{label}, r = {radius:g}", fontsize=9)
            axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("theta / pi")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles[:3], labels[:3], loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=90)


def _kernel(radius: float, angle: float) -> float:
    return math.exp(radius**2 * math.cos(math.pi * angle))
