"""What the pointwise errors of coupled directions say: tables, pictures, claims (see simplex.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row


def find(rows: Sequence[Row], **wanted: str | float) -> Row | None:
    """The row with these fields, or None."""
    return next((r for r in rows if all(r[name] == value for name, value in wanted.items())), None)


def distinct(rows: Sequence[Row], name: str) -> list:
    """The values of a field, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def _square_sizes(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Sizes with as many features as dimensions."""
    return [(d, m) for d, m in dict.fromkeys((r["dim"], r["features"]) for r in rows) if d == m]


def gain(rows: Sequence[Row], better: str, worse: str, **where: str | float) -> tuple[float, ...]:
    """Error of `worse` over that of `better`: measured with its 95 % interval, and closed form."""
    a, b = find(rows, coupling=better, **where), find(rows, coupling=worse, **where)
    if a is None or b is None:
        return (math.nan,) * 4
    known = a["closed"] is not None and b["closed"] is not None
    closed = float(b["closed"]) / float(a["closed"]) if known else math.nan
    if not (a["within_reach"] and b["within_reach"] and a["low"] and b["low"]):
        return math.nan, math.nan, math.nan, closed
    ratio = float(b["rmse"]) / float(a["rmse"])
    half = math.hypot(
        *((float(r["high"]) - float(r["low"])) / (2 * float(r["rmse"])) for r in (a, b))
    )
    return ratio, ratio * math.exp(-half), ratio * math.exp(half), closed


def claim_id(family: str, features: int, radius: float, angle: float) -> str:
    """The id of a claim about simplex directions at d = 64."""
    return f"{family}-{features}-r{radius}-{angle}pi"


CLAIMED = ((1.0, 0.25), (1.0, 0.5), (1.0, 0.75), (1.5, 0.5), (1.5, 0.75), (2.0, 0.75))


def measured(rows: list[Row]) -> Measured:
    """Simplex errors at d = 64, and the smallest gain of simplex over orthogonal by closed form."""
    values: Measured = {}
    for family in ("positive", "gerf"):
        for features in (64, 256):
            for radius, angle in CLAIMED:
                where = {"dim": 64, "features": features, "radius": radius, "angle": angle}
                row = find(rows, family=family, coupling="simplex", **where)
                values[claim_id(family, features, radius, angle)] = float(row["rmse"])
    positive = [r for r in rows if r["family"] != "trigonometric" and r["coupling"] == "simplex"]
    keys = ("family", "dim", "features", "radius", "angle")
    gains = [gain(rows, "simplex", "orthogonal", **{k: r[k] for k in keys})[3] for r in positive]
    values["simplex-never-worse"] = (min(gains), max(gains))
    return values


def summary(rows: list[Row]) -> str:
    """Errors, gains and agreement, as tables."""
    parts = [
        "Relative error sqrt(E (estimate - K)²) / K of single kernel values, |x| = |y| = r. Each cell:"
        " closed form / measured, with its 95 % interval. Measured over random draws; simplex.py"
        " says how. Trigonometric features spend two columns a direction, so they have half as many"
        " directions at the same number of features.",
    ]
    header = ["features", "directions", *_angle_names(rows)]
    for features in (64, 256):
        parts.append(f"### d = 64, {features} features, r = 1")
        parts.append(markdown_table(header, _error_lines(rows, features)))
    radii = [f"r = {r}" for r in distinct(rows, "radius")]
    parts += [
        "### Error of iid directions over that of coupled ones, θ = π/2, d = 64, 64 features",
        markdown_table(["features", "directions", *radii], _gains(rows)),
        "### Error of orthogonal over that of simplex directions, r = 1, as many features as d",
        markdown_table(["features", "d", *_angle_names(rows)], _by_dimension(rows)),
        agreement(rows),
    ]
    return "\n\n".join(parts)


def _angle_names(rows: list[Row]) -> list[str]:
    return [f"θ = {a}π" for a in distinct(rows, "angle")]


def _error_lines(rows: list[Row], features: int) -> list[list[str]]:
    lines = []
    for family in distinct(rows, "family"):
        for coupling in distinct(rows, "coupling"):
            where = {"coupling": coupling, "dim": 64, "features": features, "family": family}
            found = [
                find(rows, **where, radius=1.0, angle=angle) for angle in distinct(rows, "angle")
            ]
            if None not in found:
                lines.append([family, coupling, *(_cell_text(row) for row in found if row)])
    return lines


def _cell_text(row: Row) -> str:
    closed = "–" if row["closed"] is None else f"{row['closed']:.3g}"
    if not row["within_reach"]:
        return f"{closed} / –"
    return f"{closed} / {row['rmse']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def _gain_text(values: tuple[float, ...]) -> str:
    value, low, high, closed = values
    known = "–" if math.isnan(closed) else f"{closed:.3f}"
    return f"{known} / –" if math.isnan(value) else f"{known} / {value:.3f} [{low:.3f}, {high:.3f}]"


def _gains(rows: list[Row]) -> list[list[str]]:
    lines = []
    for family in distinct(rows, "family"):
        for coupling in distinct(rows, "coupling"):
            where = {"family": family, "dim": 64, "features": 64, "angle": 0.5}
            if coupling != "iid" and find(rows, coupling=coupling, **where):
                found = [
                    gain(rows, coupling, "iid", **where, radius=r) for r in distinct(rows, "radius")
                ]
                lines.append([family, coupling, *map(_gain_text, found)])
    return lines


def _by_dimension(rows: list[Row]) -> list[list[str]]:
    lines = []
    for family in distinct(rows, "family"):
        for dim, features in sorted(_square_sizes(rows)):
            where = {"family": family, "dim": dim, "features": features, "radius": 1.0}
            found = [
                gain(rows, "simplex", "orthogonal", **where, angle=a)
                for a in distinct(rows, "angle")
            ]
            lines.append([family, str(dim), *map(_gain_text, found)])
    return lines


def agreement(rows: list[Row]) -> str:
    """How far the measured errors are from the closed forms."""
    known = [r for r in rows if r["closed"] is not None and r["within_reach"]]
    beyond = sum(not r["within_reach"] for r in rows)
    inside = sum(float(r["low"]) <= float(r["closed"]) <= float(r["high"]) for r in known)
    scores = [
        abs(float(r["rmse"]) - float(r["closed"])) * 3.92 / (float(r["high"]) - float(r["low"]))
        for r in known
    ]
    structured = [r for r in rows if r["dim"] == 64 and r["within_reach"] and not r["normal"]]
    text = (
        f"Of {len(known)} measured errors with a closed form, {inside} ({inside / len(known):.1%}) have it"
        f" inside their 95 % interval; the largest distance is {max(scores):.1f} standard errors. Errors of"
        f" one coupling and size share their draws, so these are not independent. {beyond} of {len(rows)}"
        f" points are left out: the tails of their single features are beyond the reach of these"
        " draws."
    )
    if structured:
        clearest = max(structured, key=lambda r: abs(float(r["bias"])) / float(r["bias_stderr"]))
        score = abs(float(clearest["bias"])) / float(clearest["bias_stderr"])
        text += (
            f" Hadamard directions are only nearly normal. Of their {len(structured)} points with d = 64 the"
            f" clearest bias is {float(clearest['bias']):+.3%} of the kernel, {score:.1f} standard errors"
            f" ({clearest['family']}, {clearest['coupling']}, r = {clearest['radius']},"
            f" θ = {clearest['angle']}π, {clearest['features']} features), averaged over random pairs of"
            " points."
        )
    return text


def draw(rows: list[Row], folder: Path) -> None:
    """Error against angle, and the gain over iid against angle."""
    from matplotlib.figure import Figure

    families = distinct(rows, "family")
    figure = Figure(figsize=(13.0, 7.5), layout="constrained")
    grid = figure.subplots(2, len(families), squeeze=False)
    for axes, radius in zip(grid, (1.0, 1.5), strict=True):
        for panel, family in zip(axes, families, strict=True):
            _draw_errors(panel, [r for r in rows if (r["family"], r["radius"]) == (family, radius)])
            panel.set(yscale="log", title=f"{family}, r = {radius}", xlabel="angle / π")
            panel.grid(alpha=0.3)
        axes[0].set_ylabel("relative error")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle("d = 64, 64 features: lines join closed forms, marks are measured (95 %)")
    figure.savefig(folder / "errors.png", dpi=110)

    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for panel, family in zip(panels, families, strict=True):
        _draw_gains(panel, rows, family)
        panel.set(yscale="log", title=f"{family}, r = 1", xlabel="angle / π")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("error of iid / error of coupled")
    panels[0].legend(fontsize=8)
    figure.savefig(folder / "gains.png", dpi=110)


def _draw_errors(panel, rows: list[Row]) -> None:
    """Errors of one family and radius at d = 64 with 64 features, for all directions."""
    for index, coupling in enumerate(distinct(rows, "coupling")):
        size = (coupling, 64, 64)
        found = [r for r in rows if (r["coupling"], r["dim"], r["features"]) == size]
        seen = [row for row in found if row["within_reach"]]
        panel.errorbar(
            [row["angle"] for row in seen],
            [row["rmse"] for row in seen],
            [
                [row["rmse"] - row["low"] for row in seen],
                [row["high"] - row["rmse"] for row in seen],
            ],
            fmt="o",
            markersize=3,
            color=f"C{index}",
            label=coupling,
        )
        known = [row for row in found if row["closed"] is not None]
        angles, closed = ([row[name] for row in known] for name in ("angle", "closed"))
        panel.plot(angles, closed, color=f"C{index}", linewidth=1.0)


def _draw_gains(panel, rows: list[Row], family: str) -> None:
    """Gains of one family at r = 1 with as many features as d, for orthogonal and simplex directions."""
    angles = distinct(rows, "angle")
    for index, (dim, features) in enumerate(_square_sizes(rows)):
        for style, coupling in (("-", "simplex"), ("--", "orthogonal")):
            where = {"family": family, "dim": dim, "features": features, "radius": 1.0}
            found = [gain(rows, coupling, "iid", **where, angle=a) for a in angles]
            values, low, high, closed = torch.tensor(found).T
            color, label = f"C{index}", f"{coupling}, d = {dim}"
            panel.plot(angles, closed, style, color=color, label=label)
            ends = (values - low, high - values)
            panel.errorbar(angles, values, ends, fmt="o", color=color, markersize=3)
