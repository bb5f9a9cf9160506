"""What is made of the rows of `encoder`: our values of the claims, tables, sentences, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bochner.diagnostics.interval import Interval
from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.darkformer.contestants import (
    AVERAGING,
    CALIBRATED,
    CONTESTANTS,
    MINILM_LAYERS,
    label,
)
from experiments.darkformer.tables import converted, curve, mean_of, over_seeds, select, text

FINETUNED = "finetuned"
METRICS = {
    "error": ("output error of a head (median)", 2),
    "error_mean": ("(mean)", 2),
    "cosine": ("cosine to the original", 3),
    "ranking": ("rank correlation of pairs", 3),
    "neighbour": ("same nearest neighbour", 2),
}
CLAIMED = {  # id -> (map, columns, with exact pairs, metric)
    "cosine-averaging": (AVERAGING, 1, False, "cosine"),
    "cosine-performer-64": ("positive", 64, False, "cosine"),
    "cosine-performer-256": ("positive", 256, False, "cosine"),
    "cosine-data-aware-64": ("data-aware", 64, False, "cosine"),
    "cosine-data-aware-256": ("data-aware", 256, False, "cosine"),
    "cosine-calibrated-32-exact": (CALIBRATED, 32, True, "cosine"),
    "cosine-calibrated-64-exact": (CALIBRATED, 64, True, "cosine"),
    "error-averaging": (AVERAGING, 1, False, "error"),
    "error-performer-64": ("positive", 64, False, "error"),
    "error-theorem-64": ("data-aware-absolute", 64, False, "error"),
    "error-data-aware-64": ("data-aware", 64, False, "error"),
    "error-data-aware-256": ("data-aware", 256, False, "error"),
    "error-calibrated-64": (CALIBRATED, 64, False, "error"),
    "error-calibrated-64-exact": (CALIBRATED, 64, True, "error"),
}


def untrained(rows: Sequence[Row]) -> list[Row]:
    """Rows of models that no gradient has touched."""
    return [r for r in rows if r["part"] == "model" and r["stage"] != FINETUNED]


def with_exact(rows: Sequence[Row], exact: bool) -> list[Row]:
    return [r for r in rows if bool(r["window"]) == exact]


def columns_of(rows: Sequence[Row]) -> list[int]:
    return sorted({int(r["columns"]) for r in untrained(rows) if r["map"] != AVERAGING})


def measured(rows: list[Row]) -> Measured:
    """Means over seeds; the heads on which Theorem 3.2's proposal exists."""
    values: Measured = {}
    sizes = [1, *columns_of(rows)]
    for name, (feature_map, wanted, exact, metric) in CLAIMED.items():
        found = with_exact(untrained(rows), exact)
        columns = max(m for m in sizes if m <= wanted)  # the quick version has small ones
        values[name] = mean_of(found, metric, map=feature_map, columns=columns)
    heads = select(rows, part="existence")[0]
    for form in ("pooled", "separate", "balanced"):
        values[f"theorem-exists-{form}"] = float(heads[form])
    return values


# -- words --------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """What each map leaves of the embeddings, by columns, with exact pairs, after finetuning."""
    some = untrained(rows)[0]
    texts = select(rows, part="existence")[0]["source"]
    exact = with_exact(untrained(rows), True)[0]
    sizes = columns_of(rows)
    middle = 64 if 64 in sizes else sizes[-1]
    parts = [
        f"{converted(int(some['layers']), MINILM_LAYERS, 'the sentence encoder MiniLM')}. Measured on"
        f" {int(some['documents']) * int(some['each'])} windows of {some['length']} tokens,"
        f" {some['each']} of each of {some['documents']} documents; maps that need data are fitted to"
        f" {some['fitted']} windows of other documents ({texts}). An exact window of"
        f" {exact['window']} tokens with {exact['sinks']} sinks computes those pairs exactly, in the"
        " same normaliser. Means over seeds, ± the 95 % interval. The output error of a head is"
        " |Ô - O| / |O| on the original model's queries, keys and values; averaging the values is what a"
        " map has to beat.",
        f"### What is left of the embeddings, {middle} columns, no training",
        _table(rows, middle),
        "### Mean cosine to the original embedding, by columns",
        _by_columns(rows, sizes, "cosine"),
        "### Output error of a head (median), by columns",
        _by_columns(rows, sizes, "error"),
        "### After finetuning",
        _finetuned(rows),
        "### Read from the tables",
        _findings(rows, sizes),
    ]
    return "\n\n".join(parts)


def _names(rows: Sequence[Row]) -> list[str]:
    present = {r["map"] for r in untrained(rows)}
    return [name for name in CONTESTANTS if name in present]


def _at(rows: Sequence[Row], name: str, columns: int, exact: bool, metric: str) -> Interval | None:
    fields = {"map": name} if name == AVERAGING else {"map": name, "columns": columns}
    return over_seeds(with_exact(untrained(rows), exact), metric, **fields)


def _table(rows: list[Row], columns: int) -> str:
    tables = []
    for exact, title in ((False, "Features alone"), (True, "With exact window and sinks")):
        lines = [
            [label(name)]
            + [
                text(_at(rows, name, columns, exact, metric), digits)
                for metric, (_, digits) in METRICS.items()
            ]
            for name in _names(rows)
        ]
        header = ["map", *(title for title, _ in METRICS.values())]
        tables.append(f"{title}:\n\n{markdown_table(header, lines)}")
    return "\n\n".join(tables)


def _by_columns(rows: list[Row], sizes: list[int], metric: str) -> str:
    header = ["map", *(f"m = {m}" for m in sizes), *(f"m = {m}, window" for m in sizes)]
    digits = METRICS[metric][1]
    lines = [
        [label(name)]
        + [text(_at(rows, name, m, e, metric), digits) for e in (False, True) for m in sizes]
        for name in _names(rows)
    ]
    return markdown_table(header, lines)


def _finetuned(rows: list[Row]) -> str:
    """Before and after, on the same seeds."""
    lines = []
    trained = select(rows, stage=FINETUNED)
    for row in trained:
        same = {field: row[field] for field in ("map", "columns", "window")}
        line = [label(str(row["map"])), str(row["columns"]), "yes" if row["window"] else "no"]
        seeds = {r["seed"] for r in select(trained, **same)}
        before = [r for r in select(untrained(rows), **same) if r["seed"] in seeds]
        for metric, digits in (("error", 2), ("cosine", 3), ("ranking", 3)):
            after = over_seeds(trained, metric, **same)
            line.append(f"{text(over_seeds(before, metric), digits)} → {text(after, digits)}")
        if line not in lines:
            lines.append(line)
    if not lines:
        return "Nothing was finetuned."
    steps = trained[0]["steps"]
    header = ["map", "columns", "window", "output error", "cosine", "rank correlation"]
    return (
        f"Before → after {steps} steps of attention distillation, which trains the maps and nothing"
        f" else.\n\n{markdown_table(header, lines)}"
    )


def _findings(rows: list[Row], sizes: list[int]) -> str:
    lines = [
        _against_averaging(rows, m, exact)
        for exact in (False, True)
        for m in dict.fromkeys((sizes[0], sizes[-1]))
    ]
    heads = select(rows, part="existence")[0]
    lines.append(
        f"- The proposal of Theorem 3.2 exists on {heads['pooled']} of {heads['heads']} heads as the"
        f" theorem states it (one covariance), on {heads['separate']} with a covariance each for"
        f" queries and keys, on {heads['balanced']} in centred, balanced coordinates; elsewhere its"
        f" variances are clipped. The largest eigenvalue of the pooled covariance is"
        f" {float(heads['eigenvalue']):.2g} in the median head; the theorem needs all of them below 1/2."
    )
    return "\n".join(lines)


def _against_averaging(rows: list[Row], columns: int, exact: bool) -> str:
    """Which maps have their whole interval on the better side of averaging, by error and by cosine."""
    better: dict[str, list[str]] = {"error": [], "cosine": []}
    levels = {}
    for metric, sign in (("error", -1.0), ("cosine", 1.0)):
        trivial = _at(rows, AVERAGING, 1, exact, metric)
        levels[metric] = 0.0 if trivial is None else trivial.value
        for name in _names(rows):
            found = _at(rows, name, columns, exact, metric)
            if name == AVERAGING or found is None:
                continue
            worst = found.high if sign < 0 else found.low
            if sign * (worst - levels[metric]) > 0:
                better[metric].append(label(name))
    where = "with exact window and sinks" if exact else "features alone"
    return (
        f"- {columns} columns, {where}: the output error lies below that of averaging"
        f" ({levels['error']:.2f}) for {', '.join(better['error']) or 'none'}; the cosine above its"
        f" ({levels['cosine']:.3f}) for {', '.join(better['cosine']) or 'none'}."
    )


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """cosine.png and error.png: against columns, without and with exact pairs."""
    for metric in ("cosine", "error"):
        _draw(rows, metric, folder / f"{metric}.png")


def _draw(rows: list[Row], metric: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    sizes = columns_of(rows)
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("features alone", "with exact window and sinks")
    for panel, exact, title in zip(panels, (False, True), titles, strict=True):
        others = [name for name in _names(rows) if name != AVERAGING]
        for index, name in enumerate(others):
            found = [(m, _at(rows, name, m, exact, metric)) for m in sizes]
            curve(panel, [(m, f) for m, f in found if f is not None], label(name), index)
        if (trivial := _at(rows, AVERAGING, 1, exact, metric)) is not None:
            panel.axhline(trivial.value, color="0.4", linestyle=":", label=label(AVERAGING))
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(m) for m in sizes])
        panel.minorticks_off()
        panel.set(title=title, xlabel="columns m")
        panel.grid(alpha=0.3)
    names = {
        "cosine": "cosine to the original embedding (mean)",
        "error": "output error of a head (median)",
    }
    panels[0].set_ylabel(names[metric])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=110)
