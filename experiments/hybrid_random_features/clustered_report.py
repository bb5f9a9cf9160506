"""What is made of the rows of `clustered`: our values of the claims, tables, sentences, pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from bochner.reproduce.claims import read_claims
from experiments.hybrid_random_features.clustered_maps import (
    BOUNDED,
    CONSTANT,
    FAVOR,
    HYBRID,
    LINEAR,
    METHODS,
    MOMENT,
    TRIG,
)
from experiments.hybrid_random_features.clustered_points import (
    KEY_NORM,
    QUERY_NORM,
    SETTINGS,
    Setting,
)

PUBLISHED = {"hybrid": HYBRID, "favor": FAVOR, "trig": TRIG}
ONE_MATRIX = "balanced-exponential"
SHOWN_M = 100
CLAIMS = Path(__file__).parent / "claims" / "clustered.toml"
DRAWN = (HYBRID, BOUNDED, MOMENT, "cluster (centred)", FAVOR, TRIG, "trigonometric, orthogonal")
DRAWN += ("gaussian-mixture", "complex-exponential", "aderf", "data-aware")


def select(rows: Sequence[Row], setting: Setting | None = None, **fields: object) -> list[Row]:
    """The rows of a setting with these fields."""
    if setting is not None:
        fields |= {"variance": setting.variance, "kept": setting.kept}
    return [r for r in rows if all(r.get(name) == value for name, value in fields.items())]


def random(rows: Sequence[Row], accounting: str, **fields: object) -> list[Row]:
    return select(rows, part="random", accounting=accounting, **fields)


def at(rows: Sequence[Row], setting: Setting, accounting: str, label: str, size: int) -> Row:
    """The row of one measured point; size is m or the number of columns."""
    key = "m" if accounting == "projections" else "columns"
    found = select(rows, setting, part="random", accounting=accounting, method=label, **{key: size})
    return found[0]


def claim_id(name: str, setting: Setting, m: int) -> str:
    return f"{name}-variance{setting.variance}-k{setting.kept}-m{m}"


def measured(rows: list[Row], sizes: Sequence[int]) -> Measured:
    """[min, max] over the runs of the paper's methods; s over the pairs of clusters of our instance 0."""
    values: Measured = {}
    for setting in SETTINGS:
        for m in sizes:
            for name, label in PUBLISHED.items():
                row = at(rows, setting, "projections", label, m)
                values[claim_id(name, setting, m)] = (float(row["low"]), float(row["high"]))
        (row,) = select(rows, setting, part="instances", method=HYBRID, instance=0)
        values[f"s-variance{setting.variance}-k{setting.kept}"] = (
            float(row["s_low"]),
            float(row["s_high"]),
        )
    return values


# -- words ------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """Errors under both accountings, the instance, and what follows."""
    largest = max(int(row["columns"]) for row in random(rows, "columns"))
    parts = [
        "Mean squared error of exp(q·k) over all pairs, x 10⁻³: mean over the runs, and in brackets the"
        f" closed form where the library has one. |q| = {QUERY_NORM:g} and |k| = {KEY_NORM:g}, so that"
        f" every kernel value lies between {math.exp(-QUERY_NORM * KEY_NORM):.3f} and"
        f" {math.exp(QUERY_NORM * KEY_NORM):.3f}: the constant and the linear term below, which draw"
        " nothing, say how much there is to be estimated.",
        f"### The paper's accounting: m = {SHOWN_M} directions for each estimator",
        _errors(rows, "projections", SHOWN_M),
        f"### Equal length: {largest} feature columns",
        _errors(rows, "columns", largest),
        "### The instance decides: published A on other draws of the clusters",
        _instances(rows),
        _findings(rows, largest),
    ]
    return "\n\n".join(parts)


def _errors(rows: list[Row], accounting: str, size: int) -> str:
    header = ["map", "columns", "directions", *(s.label for s in SETTINGS)]
    lines: list[tuple[float, list[str]]] = []
    for label in METHODS:
        found = [at(rows, setting, accounting, label, size) for setting in SETTINGS]
        texts = [_error_text(row) for row in found]
        order = sum(float(row["mse"]) for row in found)
        counts = [str(found[0][name]) for name in ("columns", "directions")]
        lines.append((order, [label, *counts, *texts]))
    for label in (CONSTANT, LINEAR):
        found = [_deterministic(rows, setting, label) for setting in SETTINGS]
        texts = [f"{1e3 * float(row['mse']):.3g}" for row in found]
        order = sum(float(row["mse"]) for row in found)
        lines.append((order, [f"({label})", str(found[0]["columns"]), "0", *texts]))
    return markdown_table(header, [line for _, line in sorted(lines)])


def _deterministic(rows: list[Row], setting: Setting, label: str) -> Row:
    return select(rows, setting, part="deterministic", method=label)[0]


def _error_text(row: Row) -> str:
    text = f"{1e3 * float(row['mse']):.3g}"
    return text if row["expected"] is None else f"{text} ({1e3 * float(row['expected']):.3g})"


def _instances(rows: list[Row]) -> str:
    header = ["setting", "A", "largest entry of A", "MSE x 10⁻³, closed form", "s at the centres"]
    header.append("inside the published range")
    published = {claim.id: claim.value for claim in read_claims(CLAIMS, "hrf-clustered").claims}
    lines = []
    for setting in SETTINGS:
        for label in (HYBRID, BOUNDED, MOMENT):
            found = select(rows, setting, part="instances", method=label)
            entries = _spread([float(row["largest_a"]) for row in found])
            errors = _spread([1e3 * float(row["expected"]) for row in found])
            low = min(float(row["s_low"]) for row in found)
            high = max(float(row["s_high"]) for row in found)
            least, most = published[claim_id("hybrid", setting, SHOWN_M)]
            inside = sum(least <= float(row["expected"]) <= most for row in found)
            text = f"{inside} of {len(found)}" if label == HYBRID else "–"
            lines.append([setting.label, label, entries, errors, f"{low:.2g} to {high:.2g}", text])
    count = len(select(rows, SETTINGS[0], part="instances", method=HYBRID))
    return (
        f"{count} draws of centres, rotations and noise, m = {SHOWN_M}: median [smallest, largest]. The"
        " last column counts the instances whose closed form lies in the published range over runs.\n\n"
        + markdown_table(header, lines)
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def _ratios(rows: list[Row], accounting: str, size: int) -> str:
    """Error of other maps over that of the published hybrid: smallest and largest of the settings."""
    texts = []
    for label in (FAVOR, TRIG, "trigonometric, orthogonal", MOMENT, ONE_MATRIX):
        ratios = [
            float(at(rows, setting, accounting, label, size)["mse"])
            / float(at(rows, setting, accounting, HYBRID, size)["mse"])
            for setting in SETTINGS
        ]
        texts.append(f"{label} {min(ratios):.2g} to {max(ratios):.2g}")
    return ", ".join(texts)


def _findings(rows: list[Row], columns: int) -> str:
    return "\n".join(
        [
            "### Read from the tables",
            "",
            f"- Error of other maps over that of {HYBRID}, smallest and largest of the settings, at"
            f" m = {SHOWN_M}: {_ratios(rows, 'projections', SHOWN_M)}.",
            f"- The same at {columns} columns: {_ratios(rows, 'columns', columns)}.",
            _clusters_against_one(rows, columns),
            _trivial(rows),
            _against_favor(rows),
        ]
    )


def _clusters_against_one(rows: list[Row], columns: int) -> str:
    """What clusters are worth beside one dense matrix for all points."""
    clustered = [label for label in METHODS if label.startswith("cluster")]
    ratios = [
        min(float(at(rows, setting, "columns", label, columns)["mse"]) for label in clustered)
        / float(at(rows, setting, "columns", ONE_MATRIX, columns)["mse"])
        for setting in SETTINGS
    ]
    return (
        f"- At {columns} columns the best clustered hybrid of each setting has {min(ratios):.2g} to"
        f" {max(ratios):.2g} times the error of one dense matrix for all clusters ({ONE_MATRIX})."
    )


def _trivial(rows: list[Row]) -> str:
    """How many maps are worth more than no map at all."""
    beaten = {CONSTANT: 0, LINEAR: 0}
    total = 0
    for setting in SETTINGS:
        for label in METHODS:
            error = float(at(rows, setting, "projections", label, SHOWN_M)["mse"])
            total += 1
            for floor in beaten:
                beaten[floor] += error < float(_deterministic(rows, setting, floor)["mse"])
    return (
        f"- Of {total} pairs of map and setting at m = {SHOWN_M}, {beaten[CONSTANT]} are below the"
        f" constant and {beaten[LINEAR]} below 1 + q·k: exp is nearly linear here, and the"
        " experiment tells estimators apart, not whether one is needed."
    )


def _against_favor(rows: list[Row]) -> str:
    """On how many instances the published matrices are worth having."""
    worse = {variance: [0, 0] for variance in sorted({s.variance for s in SETTINGS})}
    for setting in SETTINGS:
        favor = at(rows, setting, "projections", FAVOR, SHOWN_M)
        for row in select(rows, setting, part="instances", method=HYBRID):
            worse[setting.variance][0] += float(row["expected"]) > float(favor["expected"])
            worse[setting.variance][1] += 1
    text = "; ".join(f"σ² = {v}: {bad} of {total}" for v, (bad, total) in worse.items())
    return (
        "- Instances on which the published A is expected to do worse than FAVOR+ does on the first"
        f" instance: {text}. A centre's coordinate near zero makes an entry of A large, and the noise"
        " of that coordinate with it; the second moments of the cluster include the noise."
    )


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """Error against m, and against columns, for each setting."""
    from matplotlib.figure import Figure

    for accounting, name in (("projections", "projections"), ("columns", "columns")):
        figure = Figure(figsize=(15.0, 4.6), layout="constrained")
        panels = figure.subplots(1, len(SETTINGS), sharey=True)
        for panel, setting in zip(panels, SETTINGS, strict=True):
            for index, label in enumerate(DRAWN):
                found = random(select(rows, setting), accounting=accounting, method=label)
                sizes = [int(r["m" if accounting == "projections" else "columns"]) for r in found]
                style = "-" if METHODS[label].published else "--"
                color = f"C{index % 10}" if index < 10 else "k"
                means = [float(r["mse"]) for r in found]
                panel.plot(sizes, means, style, marker=".", color=color, label=label)
                if METHODS[label].published:
                    ends = [[float(r[end]) for r in found] for end in ("low", "high")]
                    panel.fill_between(sizes, *ends, color=color, alpha=0.12, linewidth=0)
            for floor, style in ((CONSTANT, ":"), (LINEAR, "-.")):
                value = float(_deterministic(rows, setting, floor)["mse"])
                panel.axhline(value, color="0.5", linestyle=style, label=floor)
            unit = "m, directions for each estimator" if name == "projections" else "columns"
            panel.set(yscale="log", title=setting.label, xlabel=unit)
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("mean squared error over all pairs")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8
        )
        figure.suptitle("mean over runs; shaded: smallest to largest of the paper's three methods")
        figure.savefig(folder / f"{name}.png", dpi=100)
