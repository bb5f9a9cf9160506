"""The table that answers a person who thinks of converting a model: what is lost, what is gained, from when.

Rows of experiments/darkformer (quality) and benchmarks/attention.json (speed) beside each other; nothing
is measured or typed here. `readme_from_results` puts it into README.md and docs/transformers.md.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.measuring.tables import EXACT, by_name, chosen, crossover  # noqa: E402
from bochner.report.table import markdown_table  # noqa: E402

Row = dict[str, Any]
RESULTS = ROOT / "experiments/darkformer/results"
NAMES = {  # catalogue name -> what the table calls it, and which contestant of the benchmark it costs
    "calibrated": ("`calibrated`", "bochner calibrated"),
    "data-aware": ("`data-aware`", "bochner positive"),
    "positive": ("`positive` (Performer)", "bochner positive"),
    "averaging": ("averaging the values", None),
}
SHOWN = [  # map, features, with window and sinks
    ("calibrated", 64, True),
    ("calibrated", 32, True),
    ("calibrated", 64, False),
    ("data-aware", 64, True),
    ("data-aware", 64, False),
    ("positive", 64, True),
    ("positive", 64, False),
    ("averaging", 1, True),
    ("averaging", 1, False),
]
LONG = 16_384


def read(name: str) -> list[Row]:
    """The rows of an experiment."""
    return json.loads((RESULTS / name / "results.json").read_text(encoding="utf-8"))["rows"]


def of(rows: list[Row], name: str, columns: int, window: bool) -> list[Row]:
    """Rows of one converted model that no gradient has touched."""
    return [
        r
        for r in rows
        if r.get("map") == name
        and r["columns"] == columns
        and bool(r["window"]) == window
        and not r.get("exact_heads")
        and r.get("stage") != "finetuned"
    ]


def speeds(bench: Row, contestant: str | None) -> list[str]:
    """Faster from which length on, and how much faster at a long one; both forms in each."""
    if contestant is None:
        return ["–", "–"]
    first, later = [], []
    for causal in (False, True):
        form = by_name(chosen(bench["rows"], causal=causal, training=False, dtype="float32"))
        pairs = [
            (n, form[EXACT, "float32", n]["seconds"] / row["seconds"])
            for (name, _, n), row in sorted(form.items())
            if name == contestant and row["seconds"] and form[EXACT, "float32", n]["seconds"]
        ]
        first.append(crossover([n for n, _ in pairs], [r for _, r in pairs]))
        later.append(f"{dict(pairs)[LONG]:.1f}")
    return [" / ".join(first), " / ".join(later)]


def mean(rows: list[Row], field: str) -> float:
    """Over seeds."""
    return statistics.mean(float(r[field]) for r in rows)


def trade_off() -> str:
    """The table and what it was measured on."""
    encoder, decoder = read("darkformer-encoder"), read("darkformer-decoder")
    bench = json.loads((ROOT / "benchmarks/attention.json").read_text(encoding="utf-8"))
    windowed = next(r["contestant"] for r in bench["rows"] if "window" in r["contestant"])
    (exact,) = (r for r in decoder if r["map"] == "exact")
    (alone,) = (r for r in decoder if r["map"] == "window alone")
    lines = [["exact", "1.000", "0", perplexity(exact), "–", "1 / 1"]]
    for name, columns, window in SHOWN:
        label, contestant = NAMES[name]
        found, language = (of(rows, name, columns, window) for rows in (encoder, decoder))
        size = "" if name == "averaging" else f", m = {columns}"
        extra = " + window, sinks" if window else ""
        cells = ["–", "–"] if not found else [
            f"{mean(found, 'cosine'):.3f}", f"{mean(found, 'error'):.2f}"
        ]  # fmt: skip
        ppl = perplexity(language[0]) if language else "–"
        if window:
            contestant = windowed if name == "calibrated" else None
        lines.append([f"{label}{size}{extra}", *cells, ppl, *speeds(bench, contestant)])
    lines.append(["window and sinks alone, rest cut off", "–", "–", perplexity(alone), "–", "–"])
    header = [
        "attention in all layers",
        "encoder: cosine",
        "its heads' error",
        "decoder: perplexity",
        "faster than exact from (tokens)",
        f"times faster at {LONG:,}",
    ]
    sample = of(encoder, "calibrated", 64, True)[0]
    tokens = int(exact["length"])
    note = (
        f"No training. Encoder: all-MiniLM-L6-v2, mean cosine of its embeddings to the original's over"
        f" {int(sample['documents']) * int(sample['each'])} held-out windows of {sample['length']} tokens;"
        f" decoder: SmolLM2-135M, held-out Brown text, {tokens:,} tokens (not comparable with published"
        f" perplexities). Window {sample['window']}, {sample['sinks']} sinks. Speed: one attention layer"
        f" of {bench['heads']} heads, d = {bench['dim']}, m = {bench['num_features']}, float32,"
        f" {bench['environment']['threads']} CPU threads, against torch's exact attention,"
        " bidirectional / causal; `data-aware` and `positive` cost the same. `–`: not measured."
    )
    return f"{markdown_table(header, lines)}\n\n{note}"


def perplexity(row: Row) -> str:
    """exp of the mean loss over the whole window."""
    value = math.exp(float(row[f"loss_{int(row['length'])}"]))
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
