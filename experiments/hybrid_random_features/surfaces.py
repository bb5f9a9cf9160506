"""The squared error over angle and radius: trigonometric, hyperbolic (++) and angular hybrid features.

MSE(theta, r) = relative_variance * exp(2 x.y) for |x| = |y| = r, with m = 10 independent projections of each
base and n = 1 sign, from the library's closed forms; nothing is sampled. At equal m the hybrid draws twice
the projections of one base, and has four times its columns.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from bochner.feature_map import FeatureMap
from bochner.hybrids import bipolar
from bochner.nonlinearities import Hyperbolic, Trigonometric
from bochner.random_features import RandomFeatures
from bochner.report.table import markdown_table
from bochner.reproduce import Cell, Experiment, Measured, Row
from bochner.request import Request
from bochner.switches import SignSwitch
from bochner.worst_case import angle_sweep, worst_case

DIM, M, SIGNS = 64, 10, 1
RADII = [k / 5 for k in range(1, 26)]
ANGLES = [k / 32 for k in range(33)]  # in units of pi
QUICK_RADII = [1.0, 3.0, 5.0]
NAMES = ("trigonometric", "hyperbolic", "angular")
CLAIMED = {"0": 0.0, "25": 0.25, "50": 0.5, "75": 0.75, "100": 1.0}


def cells(quick: bool) -> list[Cell]:
    """One for each map."""
    return [{"map": name, "m": M, "signs": SIGNS, "radii": len(radii(quick))} for name in NAMES]


def radii(quick: bool) -> list[float]:
    return QUICK_RADII if quick else RADII


def build(name: str, m: int, signs: int) -> FeatureMap:
    """One of the three maps; its draw does not matter to the closed form."""
    request = Request(dim=DIM, num_features=2 * m, generator=torch.Generator().manual_seed(0))
    trig = RandomFeatures(request, Trigonometric())
    hyp = RandomFeatures(request, Hyperbolic())
    if name != "angular":
        return trig if name == "trigonometric" else hyp
    return bipolar(SignSwitch.angular(request, num_signs=signs), hyp, trig)


def run(cell: Cell, folder: Path) -> list[Row]:
    """One row for each radius and angle, and one for the worst case at each radius."""
    name = str(cell["map"])
    feature_map = build(name, int(cell["m"]), int(cell["signs"]))
    angles = math.pi * torch.tensor(ANGLES, dtype=torch.float64)
    rows: list[Row] = []
    for radius in radii(cell["radii"] == len(QUICK_RADII)):
        errors = angle_sweep(feature_map, radius, angles).tolist()
        for angle, error in zip(ANGLES, errors, strict=True):
            kernel = math.exp(radius**2 * math.cos(math.pi * angle))
            values = {"relative_error": error, "mse": (error * kernel) ** 2}
            rows.append({"map": name, "radius": radius, "angle": angle, **rounded(values)})
        worst = worst_case(feature_map, radius)
        peak = {"worst": worst.error, "worst_angle": worst.angle / math.pi}
        rows.append({"map": name, "radius": radius, **rounded(peak)})
    return rows


def rounded(values: dict[str, float]) -> Row:
    return {key: float(f"{value:.6g}") for key, value in values.items()}


def measured(rows: list[Row]) -> Measured:
    """The squared errors at r = 1."""
    found = {(r["map"], r["angle"]): r["mse"] for r in rows if r["radius"] == 1.0 and "angle" in r}
    return {
        f"mse-{name}-{text}": found[name, angle]
        for name in NAMES
        for text, angle in CLAIMED.items()
    }


def summary(rows: list[Row]) -> str:
    """Squared errors at r = 1, worst cases, and where the hybrid is the smallest or largest."""
    table = {(row["map"], row["radius"], row["angle"]): row for row in rows if "angle" in row}
    worst = {(row["map"], row["radius"]): row for row in rows if "worst" in row}
    radii_found = sorted({row["radius"] for row in rows})
    at_one = [
        [name, *(f"{table[name, 1.0, angle]['mse']:.3g}" for angle in CLAIMED.values())]
        for name in NAMES
    ]
    errors = [
        [table[name, radius, angle]["relative_error"] for name in NAMES]
        for radius in radii_found
        for angle in ANGLES
    ]
    below_worse = sum(own < max(trig, hyp) for trig, hyp, own in errors)
    below_both = sum(own < min(trig, hyp) for trig, hyp, own in errors)
    lines = []
    for radius in [r for r in radii_found if r == int(r)]:
        base, own = worst["trigonometric", radius], worst["angular", radius]
        ratio = own["worst"] / base["worst"]
        cells = [f"{base['worst']:.3g}", f"{own['worst']:.3g}", f"{ratio:.3f}"]
        lines.append([f"{radius:g}", *cells, f"{own['worst_angle']:.3f}"])
    return "\n\n".join(
        [
            f"m = {M} projections of each base, n = {SIGNS} sign, independent; closed forms, not sampled."
            " Squared error of exp(x.y) at r = 1 by theta/pi:",
            markdown_table(["map", *map(str, CLAIMED.values())], at_one),
            f"Of the {len(errors)} points (theta, r) of the surfaces the hybrid's error is below that of"
            f" the worse of its bases at {below_worse}, and below that of the better one at {below_both}:"
            " with one sign its variance is a weighted mean of theirs, a compromise for a caller who does"
            " not know the angle. It has twice the projections and four times the columns of one base.",
            "Largest relative error over all angles (both bases have the same), and where the hybrid has"
            " it:",
            markdown_table(["r", "bases", "angular", "ratio", "theta/pi"], lines),
        ]
    )


def draw(rows: list[Row], folder: Path) -> None:
    """surfaces.png: log10 of the squared error in 3D; heat.png: squared and relative error as colours."""
    import numpy as np
    from matplotlib.figure import Figure

    radii_found, angles = sorted({row["radius"] for row in rows}), ANGLES
    grids = {
        (name, key): np.log10(
            np.array(
                [
                    [max(table, 1e-30) for table in line]
                    for line in _grid(rows, name, key, radii_found)
                ]
            )
        )
        for name in NAMES
        for key in ("mse", "relative_error")
    }
    theta, radius = np.meshgrid(np.array(angles), np.array(radii_found))

    figure = Figure(figsize=(14, 4.8), layout="constrained")
    for index, name in enumerate(NAMES):
        axes = figure.add_subplot(1, 3, index + 1, projection="3d")
        for side in (1, -1):  # symmetrized along theta = 0
            heights = np.clip(grids[name, "mse"], -6, None)
            axes.plot_surface(side * theta, radius, heights, cmap="viridis", vmin=-6, vmax=40)
        axes.set_xlabel("theta / pi")
        axes.set_ylabel("r")
        axes.set_zlabel("log10 MSE")
        axes.set_zlim(-6, 45)
        axes.set_xticks((-1, 0, 1))
        axes.set_box_aspect(None, zoom=0.8)
        axes.set_title(_title(name), fontsize=10)
    figure.savefig(folder / "surfaces.png", dpi=90)

    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for line, (key, low, high) in zip(
        panels, (("mse", -4, 20), ("relative_error", -2, 6)), strict=True
    ):
        for axes, name in zip(line, NAMES, strict=True):
            values = np.clip(grids[name, key], low, high)
            picture = axes.pcolormesh(theta, radius, values, vmin=low, vmax=high, shading="gouraud")
            contours = axes.contour(
                theta, radius, values, levels=[0.0], colors="white", linewidths=1
            )
            axes.clabel(contours, fmt=lambda _: "1", fontsize=8)
            axes.set_title(f"{_title(name)}: log10 {key.replace('_', ' ')}", fontsize=10)
        figure.colorbar(picture, ax=line.tolist())
        line[0].set_ylabel("r")
    for axes in panels[-1]:
        axes.set_xlabel("theta / pi")
    figure.savefig(folder / "heat.png", dpi=90)


def _grid(rows: list[Row], name: str, key: str, radii_found: list[float]) -> list[list[float]]:
    swept = [row for row in rows if row["map"] == name and "angle" in row]
    found = {(row["radius"], row["angle"]): row[key] for row in swept}
    return [[found[radius, angle] for angle in ANGLES] for radius in radii_found]


def _title(name: str) -> str:
    return f"{name}, m = {M}" + (f", n = {SIGNS}" if name == "angular" else "")


EXPERIMENT = Experiment(
    name="hrf-surfaces",
    title="The squared error over angle and radius",
    paper="Choromanski et al., Hybrid Random Features, 2022, figure 1",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib",),
)
