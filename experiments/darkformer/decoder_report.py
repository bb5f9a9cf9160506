"""What is made of the rows of `decoder`: our values of the claims, tables, sentences, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bochner.report.table import markdown_table
from bochner.reproduce import Measured, Row
from experiments.darkformer.contestants import (
    AVERAGING,
    CALIBRATED,
    CONTESTANTS,
    EXACT,
    SMOLLM2_LAYERS,
    TRUNCATED,
    label,
)
from experiments.darkformer.tables import COLOURS, MARKERS, converted, counted, select


def measured(rows: list[Row]) -> Measured:
    """Share of the loss gap between Performer and exact attention that a map closes, untrained."""
    columns = common_columns(rows)[-1]
    return {
        f"gap-closed-{name}": closed(rows, name, columns)
        for name in ("data-aware-absolute", "dark", CALIBRATED)
    }


def lengths(rows: Sequence[Row]) -> list[int]:
    """The context lengths that were measured."""
    return sorted(int(name.removeprefix("loss_")) for name in rows[0] if name.startswith("loss_"))


def common_columns(rows: Sequence[Row]) -> list[int]:
    """The sizes that every map has."""
    return sorted({int(r["columns"]) for r in select(rows, map="positive")})


def loss(rows: Sequence[Row], metric: str = "", **fields: object) -> float | None:
    """The loss over whole windows, or another, of the one row with these fields."""
    found = select(rows, **fields)
    return float(found[0][metric or f"loss_{lengths(rows)[-1]}"] or 0.0) if found else None


def closed(rows: Sequence[Row], name: str, columns: int) -> float:
    """1 where a map reaches exact attention, 0 where it is no better than Performer; features alone."""
    fields = {"columns": columns, "window": 0, "exact_heads": 0.0}
    exact, performer = loss(rows, map=EXACT), loss(rows, map="positive", **fields)
    found = loss(rows, map=name, **fields)
    if exact is None or performer is None or found is None:
        raise ValueError(f"no row of {name} with {columns} columns, or none to compare it with.")
    return (performer - found) / (performer - exact)


# -- words --------------------------------------------------------------------------------------------
def summary(rows: list[Row]) -> str:
    """Perplexity by context length, without and with exact pairs; what a window does alone."""
    some = select(rows, map="positive")[0]
    exact = next(r for r in rows if r["window"])
    sizes = common_columns(rows)
    opening = converted(int(some["layers"]), SMOLLM2_LAYERS, "SmolLM2-135M")
    tokens = int(some["documents"]) * (int(some["length"]) - 1)
    parts = [
        f"{opening}, without any training. Perplexity of {tokens:,} held-out tokens: the beginnings of"
        f" {counted(int(some['documents']), 'document')}, {some['length']:,} tokens each. The same pass"
        " gives every shorter context. Maps that need data are fitted to windows of"
        f" {some['fit_length']:,} tokens, one of each of {some['fitted']} other documents"
        f" ({some['source']}). An exact window of {exact['window']} tokens with"
        f" {exact['sinks']} sinks computes those pairs exactly, in the same normaliser; {label(TRUNCATED)}"
        " attend to nothing else and use no features. The weights are the package's, in 4 bits, and the"
        " text is not what others report perplexities of: compare within the tables.",
        f"### Perplexity by context length, {sizes[-1]} columns",
        _by_length(rows, sizes[-1]),
        "### Perplexity by columns, whole windows",
        _by_columns(rows),
        "### Read from the tables",
        _findings(rows, sizes),
    ]
    return "\n\n".join(parts)


def _perplexity(value: float | None) -> str:
    if value is None:
        return "–"
    found = math.exp(value)
    return f"{found:.1f}" if found < 1000 else f"{found:.2g}"


def _names(rows: Sequence[Row]) -> list[str]:
    present = {r["map"] for r in rows}
    return [name for name in CONTESTANTS if name in present]


def _fields(name: str, columns: int, exact: bool) -> dict[str, object]:
    fields: dict[str, object] = {"map": name, "exact_heads": 0.0}
    return fields | ({} if name == AVERAGING else {"columns": columns}) | {"exact": exact}


def _marked(rows: Sequence[Row]) -> list[Row]:
    return [{**r, "exact": bool(r["window"])} for r in rows]


def _by_length(rows: list[Row], columns: int) -> str:
    marked, sizes = _marked(rows), lengths(rows)
    lines = [[label(EXACT), "–", *(_perplexity(loss(rows, f"loss_{n}", map=EXACT)) for n in sizes)]]
    lines.append(
        [label(TRUNCATED), "–"]
        + [_perplexity(loss(rows, f"loss_{n}", map=TRUNCATED)) for n in sizes]
    )
    for exact in (False, True):
        for name in _names(rows):
            fields = _fields(name, columns, exact)
            found = [_perplexity(loss(marked, f"loss_{n}", **fields)) for n in sizes]
            lines.append([label(name), "yes" if exact else "no", *found])
    return markdown_table(["map", "window", *(f"{n:,} tokens" for n in sizes)], lines)


def _by_columns(rows: list[Row]) -> str:
    marked = _marked(rows)
    sizes = sorted({int(r["columns"]) for r in rows if r["map"] in CONTESTANTS} - {1})
    header = ["map", *(f"m = {m}" for m in sizes), *(f"m = {m}, window" for m in sizes)]
    lines = [
        [label(name)]
        + [
            _perplexity(loss(marked, **_fields(name, m, exact)))
            for exact in (False, True)
            for m in sizes
        ]
        for name in _names(rows)
    ]
    mixed = [r for r in marked if r["exact_heads"]]
    for row in mixed:
        share = f"{float(row['exact_heads'] or 0):.0%} of the heads exact"
        where = "with window" if row["exact"] else "features alone"
        values = [
            _perplexity(loss([row])) if (m, e) == (row["columns"], row["exact"]) else "–"
            for e in (False, True)
            for m in sizes
        ]
        lines.append([f"{label(str(row['map']))}, {share}, {where}", *values])
    return markdown_table(header, lines)


def _findings(rows: list[Row], sizes: list[int]) -> str:
    marked, columns = _marked(rows), sizes[-1]
    trivial = loss(marked, **_fields(AVERAGING, 1, False))
    exact, rival = loss(rows, map=EXACT), loss(rows, map=TRUNCATED)
    lines = []
    for with_window, floor, what in (
        (False, trivial, label(AVERAGING)),
        (True, rival, label(TRUNCATED)),
    ):
        found = {
            label(name): loss(marked, **_fields(name, columns, with_window))
            for name in _names(rows)
        }
        below = [
            name
            for name, value in found.items()
            if value is not None and floor is not None and value < floor - 1e-9
        ]
        where = "with exact window and sinks" if with_window else "features alone"
        lines.append(
            f"- {columns} columns, {where}: a lower loss than {what} ({_perplexity(floor)}) has"
            f" {', '.join(below) or 'no map'}. Exact attention: {_perplexity(exact)}."
        )
    shares = {name: closed(rows, name, columns) for name in _names(rows) if name != AVERAGING}
    texts = [f"{label(n)} {share:.0%}" for n, share in shares.items() if n != "positive"]
    lines.append(
        f"- Of the loss between Performer and exact attention ({columns} columns, features alone) the"
        f" maps close, untrained: {', '.join(texts)}."
    )
    return "\n".join(lines)


# -- pictures -----------------------------------------------------------------------------------------
def draw(rows: list[Row], folder: Path) -> None:
    """perplexity.png: against context length, without and with exact pairs."""
    from matplotlib.figure import Figure

    marked, sizes, columns = _marked(rows), lengths(rows), common_columns(rows)[-1]
    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = ("features alone", "with exact window and sinks")
    for panel, exact, title in zip(panels, (False, True), titles, strict=True):
        for index, name in enumerate(n for n in _names(rows) if n != AVERAGING):
            fields = _fields(name, columns, exact)
            _line(panel, marked, sizes, fields, index, label(name))
        _line(panel, marked, sizes, _fields(AVERAGING, 1, exact), -1, label(AVERAGING))
        _line(panel, rows, sizes, {"map": EXACT}, -2, label(EXACT))
        _line(panel, rows, sizes, {"map": TRUNCATED}, -3, label(TRUNCATED))
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [f"{n:,}" for n in sizes])
        panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        panel.set(title=f"{title}, {columns} columns", xlabel="context length (tokens)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("perplexity")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(folder / "perplexity.png", dpi=110)


def _line(
    panel: object,
    rows: Sequence[Row],
    sizes: list[int],
    fields: dict[str, object],
    index: int,
    name: str,
) -> None:
    """One curve; a negative index is a reference, dotted and grey."""
    losses = [loss(rows, f"loss_{n}", **fields) for n in sizes]
    points = [
        (n, math.exp(min(x, 50.0))) for n, x in zip(sizes, losses, strict=True) if x is not None
    ]
    if not points:
        return
    reference = index < 0
    style = {
        "color": ("0.55", "black", "0.3")[-index - 1]
        if reference
        else COLOURS[index % len(COLOURS)],
        "linestyle": (":", "-", "--")[-index - 1] if reference else "-",
        "marker": "" if reference else MARKERS[index % len(MARKERS)],
    }
    xs, ys = zip(*points, strict=True)
    panel.plot(xs, ys, label=name, markersize=5, linewidth=1.3, **style)  # type: ignore[attr-defined]
