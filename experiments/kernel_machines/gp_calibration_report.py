"""What the calibration of Gaussian processes says: tables, the picture, claims (see gp_calibration.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row

RIGHT = ("draw", "hole")
"""Sets of which the model is true."""
NAMES = ("scikit-learn", "exact", "nystrom", "features")
COLOURS = {
    "scikit-learn": "#000000",
    "exact": "#0072B2",
    "nystrom": "#009E73",
    "features": "#D55E00",
}


def pick(rows: Sequence[Row], /, **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], name: str) -> list:
    """The values of a field, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def mean(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Mean over seeds and its standard error (0 for one); NaN where nothing was measured.

    Example:
        >>> mean([{"a": 1.0}, {"a": 3.0}], "a")
        (2.0, 1.0)
    """
    values = [float(row[name]) for row in rows if row[name] is not None]
    if not values:
        return math.nan, math.nan
    centre = sum(values) / len(values)
    if len(values) == 1:
        return centre, 0.0
    variance = sum((v - centre) ** 2 for v in values) / (len(values) - 1)
    return centre, math.sqrt(variance / len(values))


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one set, size, posterior and number of features, which differ by their seed."""
    keys = ("data", "rows", "posterior", "features")
    found = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    order = sorted(found, key=lambda k: (rank(rows, k[0]), k[1], NAMES.index(k[2]), k[3]))
    return [pick(rows, **dict(zip(keys, key, strict=True))) for key in order]


def rank(rows: Sequence[Row], name: object) -> int:
    """The place of a set among those measured."""
    return distinct(rows, "data").index(name)


def measured(rows: list[Row]) -> Measured:
    """Smallest and largest mean coverage over the sets of which the model is true, and elsewhere."""
    values: Measured = {}
    right = [group for group in groups(rows) if group[0]["data"] in RIGHT]
    for posterior in ("exact", "nystrom"):
        found = [mean(g, "coverage")[0] for g in right if g[0]["posterior"] == posterior]
        if found:
            values[f"right-{posterior}"] = (min(found), max(found))
    for posterior in ("exact", "nystrom", "features"):
        unsure = [mean(g, "coverage_unsure")[0] for g in right if g[0]["posterior"] == posterior]
        if unsure:
            values[f"unsure-{posterior}"] = (min(unsure), max(unsure))
    for data in ("rough", "unequal", "friedman"):
        found = [
            mean(g, "coverage")[0]
            for g in groups(pick(rows, data=data))
            if g[0]["posterior"] == "exact"
        ]
        if found:
            values[f"{data}-exact"] = (min(found), max(found))
    noisy = [
        mean(g, "coverage_noisy")[0] for g in groups(pick(rows, data="unequal", posterior="exact"))
    ]
    if noisy:
        values["unequal-noisy"] = (min(noisy), max(noisy))
    return values


def summary(rows: list[Row]) -> str:
    """Coverage and density, as tables; one for each number of rows."""
    parts = [
        "Central 95 % intervals for new observations, in %: over all test points; over the tenth where the"
        " exact posterior is least sure; over the tenth with the largest noise. RMSE and negative log"
        " predictive density (NLPD) with targets of variance 1; means over seeds ± standard error. dof:"
        " directions that the data determine. gap: log evidence for each observation by which the features"
        " exceed the kernel where the search ended. Seconds of one CPU: search, conditioning, prediction.",
    ]
    for n in sorted(distinct(rows, "rows")):
        parts += [f"### {n} rows", _table([g for g in groups(rows) if g[0]["rows"] == n])]
    parts.append(_verdict(rows))
    return "\n\n".join(parts)


def _table(found: list[list[Row]]) -> str:
    header = [
        "set", "posterior", "m", "coverage", "unsure", "noisy", "RMSE", "NLPD", "dof", "gap", "seconds",
    ]  # fmt: skip
    lines = []
    for group in found:
        first = group[0]
        lines.append(
            [
                str(first["data"]),
                str(first["posterior"]),
                str(first["features"] or "–"),
                *(_text(group, f"coverage{which}", 100, 1) for which in ("", "_unsure", "_noisy")),
                _text(group, "rmse", 1, 3),
                _text(group, "nlpd", 1, 3),
                _plain(group, "dof", 0),
                _plain(group, "gap", 3),
                _plain(group, "cpu_seconds", 1),
            ]
        )
    return markdown_table(header, lines)


def _text(group: list[Row], name: str, factor: float, digits: int) -> str:
    value, error = mean(group, name)
    if math.isnan(value):
        return "–"
    text = f"{factor * value:.{digits}f}"
    return f"{text} ± {factor * error:.{digits}f}" if len(group) > 1 else text


def _plain(group: list[Row], name: str, digits: int) -> str:
    value, _ = mean(group, name)
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _verdict(rows: list[Row]) -> str:
    """What the tables say, from the numbers."""
    found = measured(rows)

    def ends(name: str) -> str:
        low, high = found[name]
        return f"{100 * low:.1f} to {100 * high:.1f} %"

    words = []
    if "right-exact" in found and "right-nystrom" in found:
        words.append(
            f"Where the model is right, {ends('right-exact')} (exact) and {ends('right-nystrom')} (nystrom)"
            " of new observations lie in their 95 % intervals."
        )
    if "unsure-features" in found:
        words.append(
            f"Where the exact posterior is least sure: exact {ends('unsure-exact')}, nystrom"
            f" {ends('unsure-nystrom')}, features alone {ends('unsure-features')}."
        )
    if "unequal-noisy" in found:
        words.append(
            f"With noise that grows along a column, {ends('unequal-exact')} are covered over all points but"
            f" {ends('unequal-noisy')} where the noise is largest: one noise is all that the model has."
        )
    return " ".join(words)


def draw(rows: list[Row], folder: Path) -> None:
    """Coverage of every set: over all points, and where the exact posterior is least sure."""
    from matplotlib.figure import Figure

    sets = distinct(rows, "data")
    figure = Figure(figsize=(11.0, 0.6 * len(sets) + 1.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"coverage": "all test points", "coverage_unsure": "the least sure tenth"}
    largest = max(int(n) for n in distinct(rows, "rows"))
    for panel, (field, title) in zip(panels, titles.items(), strict=True):
        panel.axvspan(93, 97, color="#DDDDDD")
        for index, name in enumerate(NAMES):
            some = [g for g in groups(rows) if g[0]["posterior"] == name]
            for group in some:
                value, error = mean(group, field)
                size = 4 + 3 * (group[0]["rows"] == largest)
                at = sets.index(group[0]["data"]) + 0.18 * (index - 1.5)
                label = name if group is some[0] else None
                panel.errorbar(
                    100 * value, at, xerr=100 * error, fmt="o", ms=size, color=COLOURS[name],
                    label=label, alpha=0.8,
                )  # fmt: skip
        panel.set_yticks(range(len(sets)), sets)
        panel.set_xlabel("new observations inside their 95 % intervals, %")
        panel.set_title(title)
        panel.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()
    panels[0].legend(fontsize="small")
    figure.savefig(folder / "coverage.png", dpi=110)
