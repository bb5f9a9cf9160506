"""What accuracies say about coupled directions: tables, pictures, claims (see classification.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row


def pick(rows: Sequence[Row], **wanted: str | float) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], name: str) -> list:
    """The values of a field, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def average(rows: Sequence[Row], name: str) -> tuple[float, float, float]:
    """Mean over rows (sets and numbers of features) with its interval: each row is drawn on its own."""
    count = len(rows)
    mean = sum(float(row[name]) for row in rows) / count
    squares = sum((float(row[f"{name}_high"]) - float(row[name])) ** 2 for row in rows)
    return mean, mean - math.sqrt(squares) / count, mean + math.sqrt(squares) / count


def measured(rows: list[Row]) -> Measured:
    """Mean gain in accuracy of simplex over orthogonal positive features, as an interval."""
    values: Measured = {}
    for rule in ("features", "exact"):
        where = {"family": "positive", "coupling": "simplex", "bandwidth": rule}
        values[f"simplex-{rule}"] = average(pick(rows, **where), "change")[1:]
    return values


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(rows: Sequence[Row]) -> str:
    value, low, high = (100 * v for v in average(rows, "change"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def summary(rows: list[Row]) -> str:
    """Sets, gains by number of features, gains by set, agreement with the exact classifier."""
    sets = distinct(rows, "set")
    parts = [
        "Accuracies in percent on test data, gains in percentage points. Intervals (95 %) are over redraws"
        " of the directions on one split of each set: they say nothing of other splits. `phi` is the median"
        " of \\|x + y\\|² / h² over pairs: m independent positive features have the relative variance"
        " (e^phi - 1) / m.",
        "### The sets, the exact kernel, and orthogonal positive features with m = 4 d",
        _sets_table(rows, sets),
    ]
    for rule, what in (
        ("features", "the bandwidth tuned for features"),
        ("exact", "the bandwidth tuned for the exact kernel"),
    ):
        parts += [f"### Mean gain over the {len(sets)} sets, {what}", _gains_table(rows, rule)]
    parts += ["### By set: positive features, bandwidth tuned for features", _by_set(rows, sets)]
    parts += ["### Mean over the sets, m = 4 d, bandwidth tuned for features", _levels(rows)]
    return "\n\n".join([*parts, _verdict(rows)])


def _sets_table(rows: list[Row], sets: list[str]) -> str:
    lines = []
    for name in sets:
        where = {"set": name, "family": "positive", "coupling": "orthogonal", "multiple": 4.0}
        found = {r["bandwidth"]: r for r in pick(rows, **where)}
        first = found["exact"]
        line = [name, *(str(first[key]) for key in ("dim", "classes", "train"))]
        line.append(_percent(float(first["majority"])))
        for rule in ("exact", "features"):
            row = found[rule]
            line += [f"{row['h']:.2f}", f"{row['phi']:.3g}", _percent(float(row["exact"]))]
            line.append(_percent(float(row["accuracy"])))
        lines.append(line)
    columns = ["h", "phi", "exact", "features"]
    header = ["set", "d", "classes", "train", "majority"]
    header += [f"{c} (h for exact)" for c in columns] + [f"{c} (h for features)" for c in columns]
    return markdown_table(header, lines)


def _gains_table(rows: list[Row], rule: str) -> str:
    lines = []
    for family in distinct(rows, "family"):
        for coupling, against in (("orthogonal", "iid"), ("simplex", "orthogonal")):
            found = pick(rows, family=family, coupling=coupling, bandwidth=rule)
            by_size = [
                _points([r for r in found if r["multiple"] == m])
                for m in distinct(rows, "multiple")
            ]
            lines.append(
                [family, f"{coupling} - {against}", *by_size, _points(found), _signs(found)]
            )
    header = [
        "features",
        "difference",
        *(f"m = {m:g} d" for m in distinct(rows, "multiple")),
        "all m",
        "clear + / -",
    ]
    return markdown_table(header, lines)


def _signs(rows: Sequence[Row]) -> str:
    """How many intervals lie above and below zero."""
    above = sum(float(row["change_low"]) > 0 for row in rows)
    below = sum(float(row["change_high"]) < 0 for row in rows)
    return f"{above} / {below} of {len(rows)}"


def _by_set(rows: list[Row], sets: list[str]) -> str:
    lines = []
    for name in sets:
        line = [name]
        for multiple in (1.0, 4.0):
            where = {"set": name, "family": "positive", "bandwidth": "features"}
            found = pick(rows, **where, multiple=multiple)
            line += [_percent(float(row["accuracy"])) for row in found]
            line += [_points([row]) for row in found if row["change"] is not None]
        lines.append(line)
    columns = [*distinct(rows, "coupling"), "orthogonal - iid", "simplex - orthogonal"]
    header = [f"{c} (m = {m} d)" for m in (1, 4) for c in columns]
    return markdown_table(["set", *header], lines)


def _levels(rows: list[Row]) -> str:
    lines = []
    for family in distinct(rows, "family"):
        for coupling in distinct(rows, "coupling"):
            where = {"family": family, "coupling": coupling, "bandwidth": "features"}
            found = pick(rows, **where, multiple=4.0)
            line = [family, coupling]
            for name in ("accuracy", "agreement"):
                value, low, high = average(found, name)
                line.append(f"{_percent(value)} [{_percent(low)}, {_percent(high)}]")
            mean = sum(float(r["nonpositive"]) for r in found) / len(found)
            lines.append([*line, _percent(mean)])
    sets = pick(rows, family="positive", coupling="iid", bandwidth="features", multiple=4.0)
    for label, name in (("exact kernel", "exact"), ("majority class", "majority")):
        mean = sum(float(r[name]) for r in sets) / len(sets)
        lines.append([label, "–", _percent(mean), "–", "–"])
    header = ["features", "directions", "accuracy", "agrees with the exact kernel", "totals <= 0"]
    return markdown_table(header, lines)


def _verdict(rows: list[Row]) -> str:
    positive = pick(rows, family="positive", bandwidth="features")
    words = []
    for coupling, against in (("orthogonal", "iid"), ("simplex", "orthogonal")):
        found = [row for row in positive if row["coupling"] == coupling]
        words.append(
            f"{coupling} against {against} directions: {_points(found)} points over all sets and m,"
            f" clearly better / worse in {_signs(found)}"
        )
    useless = [
        str(row["set"])
        for row in positive
        if (row["coupling"], row["multiple"]) == ("simplex", 4.0)
        and float(row["accuracy_low"]) <= float(row["majority"])
    ]
    lost = pick(rows, family="positive", coupling="orthogonal", bandwidth="exact", multiple=4.0)
    behind = [row for row in lost if float(row["exact"]) - float(row["accuracy_high"]) > 0.1]
    least = min((float(row["phi"]) for row in behind), default=math.nan)
    return (
        f"Positive features at the bandwidth tuned for them. {'; '.join(words)}. By chance alone one"
        " interval in twenty misses zero. Sets on which simplex directions with m = 4 d are not clearly"
        f" above the majority class: {', '.join(useless) or 'none'}. At the bandwidth tuned for the exact"
        " kernel, orthogonal positive features with m = 4 d stay more than ten points behind that kernel on"
        f" {len(behind)} of {len(lost)} sets (phi there is at least {least:.3g})."
    )


def draw(rows: list[Row], folder: Path) -> None:
    """Accuracy against m for every set, and the mean gains."""
    from matplotlib.figure import Figure

    sets = distinct(rows, "set")
    across = min(4, len(sets))
    down = -(-len(sets) // across)
    figure = Figure(figsize=(3.4 * across, 2.9 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, name in zip(panels, sets, strict=False):
        for index, coupling in enumerate(distinct(rows, "coupling")):
            found = pick(rows, set=name, family="positive", coupling=coupling, bandwidth="features")
            _draw_line(panel, found, "accuracy", coupling, f"C{index}", 0.97 + 0.03 * index)
        panel.axhline(float(found[0]["exact"]), color="black", linewidth=0.8, label="exact kernel")
        panel.axhline(float(found[0]["majority"]), color="gray", linestyle=":", label="majority")
        panel.set_title(f"{name}, d = {found[0]['dim']}", fontsize=9)
    panels[0].legend(fontsize=7)
    figure.suptitle("accuracy against m / d: positive features, bandwidth tuned for features")
    figure.savefig(folder / "accuracy.png", dpi=100)

    figure = Figure(figsize=(13.0, 4.0), layout="constrained")
    panels = figure.subplots(1, len(distinct(rows, "family")), squeeze=False, sharey=True)[0]
    for panel, family in zip(panels, distinct(rows, "family"), strict=True):
        for index, coupling in enumerate(("orthogonal", "simplex"), start=1):
            means = []
            for multiple in distinct(rows, "multiple"):
                where = {"family": family, "coupling": coupling, "bandwidth": "features"}
                value, low, high = average(pick(rows, **where, multiple=multiple), "change")
                ends = {"change": value, "change_low": low, "change_high": high}
                means.append({"multiple": multiple, **ends})
            label = "orthogonal - iid" if coupling == "orthogonal" else "simplex - orthogonal"
            _draw_line(panel, means, "change", label, f"C{index}", 0.97 + 0.03 * index)
        panel.axhline(0.0, color="black", linewidth=0.8)
        panel.set_title(family)
        panel.set_xlabel("m / d")
    panels[0].set_ylabel(f"gain in accuracy, mean over {len(sets)} sets")
    panels[0].legend(fontsize=8)
    figure.savefig(folder / "gains.png", dpi=110)


def _draw_line(panel, rows: list, name: str, label: str, color: str, aside: float) -> None:
    """One line with its intervals, a little aside so that intervals do not hide each other."""
    values = [row[name] for row in rows]
    low = [row[name] - row[f"{name}_low"] for row in rows]
    high = [row[f"{name}_high"] - row[name] for row in rows]
    at = [row["multiple"] * aside for row in rows]
    panel.errorbar(at, values, (low, high), color=color, marker="o", markersize=3, label=label)
    panel.set_xscale("log", base=2)
    panel.grid(alpha=0.3)
