"""Tables from rows: times, ratios, floors, and from which length on the linear form is faster."""

from __future__ import annotations

import math
from typing import Any

from bochner.report.table import markdown_table

Row = dict[str, Any]
EXACT = "SDPA"
FORMS = [
    (False, False, "bidirectional, forward"),
    (True, False, "causal, forward"),
    (False, True, "bidirectional, forward and backward"),
    (True, True, "causal, forward and backward"),
]
FLOOR = (
    "Floor: max(FLOPs / rate of a large matrix product, bytes / rate of a copy), both measured in the same"
    " run; FLOPs = heads (8 L m d + 4 L m), bytes = q, k, v and output once; three times that with the"
    " backward pass."
)


def chosen(rows: list[Row], *, causal: bool, training: bool, dtype: str | None = None) -> list[Row]:
    """The rows of one form."""
    return [
        r
        for r in rows
        if (r["causal"], r["training"]) == (causal, training) and dtype in (None, r["dtype"])
    ]


def milliseconds(row: Row | None) -> str:
    """Time to three digits; a dash for what was left out or is missing."""
    if row is None or row["seconds"] is None:
        return "–"
    value = 1000 * row["seconds"]
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def by_name(rows: list[Row]) -> dict[tuple[str, str, int], Row]:
    """(contestant, dtype, length) -> row."""
    return {(r["contestant"], r["dtype"], r["length"]): r for r in rows}


def names_of(rows: list[Row]) -> list[tuple[str, str]]:
    """Contestants in the order in which they were run."""
    return list(dict.fromkeys((r["contestant"], r["dtype"]) for r in rows))


def times_table(rows: list[Row]) -> str:
    """Milliseconds by contestant and length."""
    cells, lengths = by_name(rows), sorted({r["length"] for r in rows})
    lines = [
        [f"{name}, {dtype}", *(milliseconds(cells.get((name, dtype, n))) for n in lengths)]
        for name, dtype in names_of(rows)
    ]
    return markdown_table(["milliseconds", *(f"{n:,}" for n in lengths)], lines)


def ratios_table(rows: list[Row]) -> str:
    """How many times faster than exact attention of the same dtype."""
    cells, lengths = by_name(rows), sorted({r["length"] for r in rows})

    def ratio(name: str, dtype: str, length: int) -> str:
        own, exact = cells.get((name, dtype, length)), cells.get((EXACT, dtype, length))
        if own is None or exact is None or own["seconds"] is None or exact["seconds"] is None:
            return "–"
        value = exact["seconds"] / own["seconds"]
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"

    lines = [
        [f"{name}, {dtype}", *(ratio(name, dtype, n) for n in lengths)]
        for name, dtype in names_of(rows)
        if name != EXACT
    ]
    return markdown_table(["SDPA's time over theirs", *(f"{n:,}" for n in lengths)], lines)


def floors_table(rows: list[Row]) -> str:
    """Time over the floor, linear contestants."""
    cells, lengths = by_name(rows), sorted({r["length"] for r in rows})

    def ratio(row: Row | None) -> str:
        if row is None or row["seconds"] is None:
            return "–"
        return f"{row['seconds'] / row['floor_seconds']:.1f}"

    lines = [
        [f"{name}, {dtype}", *(ratio(cells.get((name, dtype, n))) for n in lengths)]
        for name, dtype in names_of(rows)
        if name != EXACT
    ]
    return markdown_table(["time over the floor", *(f"{n:,}" for n in lengths)], lines)


def crossover(lengths: list[int], ratios: list[float]) -> str:
    """The length from which on the ratio stays at 1 or above, by interpolation of the logarithms.

    Example:
        >>> crossover([256, 1024], [0.5, 2.0]), crossover([256, 1024], [1.5, 2.0])
        ('512', '<= 256')
    """
    if not ratios:
        return "–"
    if ratios[-1] < 1:
        return f"> {lengths[-1]:,}"
    last = next((i for i in reversed(range(len(ratios))) if ratios[i] < 1), None)
    if last is None:
        return f"<= {lengths[0]:,}"
    below, above = math.log(ratios[last]), math.log(ratios[last + 1])
    share = -below / (above - below)
    length = math.exp(math.log(lengths[last]) + share * math.log(lengths[last + 1] / lengths[last]))
    return f"{length:,.0f}"


def crossovers_table(rows: list[Row]) -> str:
    """From which length on each linear contestant is faster than exact attention of its dtype."""
    lines = []
    for name, dtype in names_of(rows):
        if name == EXACT:
            continue
        cells = []
        for causal, training, _ in FORMS:
            form = by_name(chosen(rows, causal=causal, training=training, dtype=dtype))
            pairs = [
                (n, form[EXACT, dtype, n]["seconds"] / form[name, dtype, n]["seconds"])
                for n in sorted({key[2] for key in form})
                if (EXACT, dtype, n) in form
                and form[EXACT, dtype, n]["seconds"]
                and form[name, dtype, n]["seconds"]
            ]
            cells.append(crossover([n for n, _ in pairs], [r for _, r in pairs]))
        lines.append([f"{name}, {dtype}", *cells])
    return markdown_table(["faster than SDPA from", *(name for *_, name in FORMS)], lines)


def reasons(rows: list[Row]) -> str:
    """Why there are dashes: a bullet for each reason."""
    found: dict[str, None] = {}
    for row in rows:
        if row["reason"] is None:
            continue
        form = next(t for c, b, t in FORMS if (c, b) == (row["causal"], row["training"]))
        if row["reason"].startswith("missing"):
            found[f"- {row['contestant']}: {row['reason']}."] = None
        else:
            who = f"{row['contestant']}, {row['dtype']}"
            found[f"- {who}, {form}, {row['length']:,} tokens: {row['reason']}."] = None
    return "\n".join(["Left out (–):", *found]) if found else ""


def caption(result: dict[str, Any]) -> str:
    """What was measured, on what."""
    where = result["environment"]
    peers = ", ".join(f"{k} {v or 'not installed'}" for k, v in where.get("peers", {}).items())
    gemm = result["rates"]["gemm"]
    return (
        f"{result['heads']} heads, d = {result['dim']}, m = {result['num_features']}, batch 1,"
        f" {where['threads']} threads, torch {where['torch']}; {peers}. Contestants in turn after a warm-up"
        " round, medians; one run where a run takes more than 3 s. q and k are already divided by the"
        f" temperature. Matrix products: {gemm['float32'] / 1e9:.0f} GFLOP/s in float32,"
        f" {gemm['bfloat16'] / 1e9:.0f} in bfloat16; copy {result['rates']['copy'] / 1e9:.1f} GB/s."
    )


def attention_tables(result: dict[str, Any]) -> dict[str, str]:
    """Every table by its title."""
    rows = result["rows"]
    tables = {"What was measured": caption(result), "Crossover": crossovers_table(rows)}
    for causal, training, title in FORMS:
        form = chosen(rows, causal=causal, training=training)
        if form:
            title = title[0].upper() + title[1:]
            tables[title] = f"{times_table(form)}\n\n{ratios_table(form)}"
            tables[f"{title}: floor"] = f"{FLOOR}\n\n{floors_table(form)}"
    said = reasons(rows)
    return {**tables, "Left out": said} if said else tables


def readme_caption(result: dict[str, Any]) -> str:
    """The sentence above README's table."""
    where = result["environment"]
    return (
        f"Attention of {result['heads']} heads, d = {result['dim']}, m = {result['num_features']},"
        f" float32, batch 1, {where['threads']} threads, torch {where['torch']}; medians, contestants in turn"
        " (`make bench`). The best peer is the faster of performer-pytorch and darkformer-pytorch with as"
        " many features:"
    )


def readme_table(result: dict[str, Any]) -> str:
    """float32 in short: the best peer beside exact attention and ours."""
    lines = []
    for causal, training, title in FORMS:
        form = by_name(chosen(result["rows"], causal=causal, training=training, dtype="float32"))
        lengths = [n for n in sorted({key[2] for key in form}) if n in SHORT]
        for n in lengths:
            row = {name: form[name, dtype, m] for name, dtype, m in form if m == n}
            times = {k: r["seconds"] for k, r in row.items() if r["seconds"] is not None}
            peers = [t for k, t in times.items() if k.endswith("-pytorch")]
            exact, ours = times.get(EXACT), times.get("bochner positive")
            windowed = next((t for k, t in times.items() if "window" in k), None)
            lines.append(
                [
                    f"{n:,} {title}",
                    *(_short(t) for t in (exact, min(peers, default=None), ours, windowed)),
                    _over(exact, ours),
                    _over(min(peers, default=None), ours),
                    _over(exact, windowed),
                ]
            )
    header = ["tokens", "SDPA ms", "best peer ms", "positive ms", "calibrated + window ms"]
    header += ["SDPA / positive", "peer / positive", "SDPA / calibrated + window"]
    return markdown_table(header, lines)


SHORT = (512, 1024, 4096, 16384, 65536)
"""Lengths that README shows."""


def _short(seconds: float | None) -> str:
    return milliseconds(None if seconds is None else {"seconds": seconds})


def _over(a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return "–"
    return f"{a / b:.2f}" if a / b < 10 else f"{a / b:.1f}"


def decoding_table(result: dict[str, Any]) -> str:
    """Microseconds per token and layer."""
    rows = result["rows"]
    contexts = sorted({r["context"] for r in rows})
    cells = {(r["contestant"], r["dtype"], r["context"]): r for r in rows}

    def text(row: Row | None) -> str:
        if row is None or row["seconds"] is None:
            return "–"
        value = 1e6 * row["seconds"]
        return f"{value:.1f}" if value < 10 else f"{value:,.0f}"

    lines = [
        [f"{name}, {dtype}", *(text(cells.get((name, dtype, n))) for n in contexts)]
        for name, dtype in names_of(rows)
    ]
    return markdown_table(["µs a token", *(f"{n:,}" for n in contexts)], lines)


def memory_table(result: dict[str, Any]) -> str:
    """Peak beyond the inputs in MB, and in units of one q tensor, the output included."""
    rows = result["rows"]
    lines = []
    for name, dtype in names_of(rows):
        cells = []
        for causal, training, _ in FORMS:
            row = by_name(chosen(rows, causal=causal, training=training)).get(
                (name, dtype, rows[0]["length"])
            )
            if row is None or row["bytes"] is None:
                cells.append("–")
            else:
                cells.append(f"{row['bytes'] / 1e6:,.0f} ({row['bytes'] / row['one_tensor']:.1f})")
        lines.append([f"{name}, {dtype}", *cells])
    return markdown_table(["MB (q tensors)", *(name for *_, name in FORMS)], lines)
