"""What the README says of structured models: sentences that the experiments wrote, and two tables."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments/structured/results"
QUOTED = {  # experiment -> what it is about, and how its sentences begin
    "structured-error-laws": (
        "error laws, predicted against measured",
        ("Where the predicted standard deviation",),
    ),
    "structured-language-model": ("an HMM of the King James Bible", ("Trained through its",)),
    "structured-tagger": ("a CRF tagger with 14,057 labels", ("With transitions of rank",)),
    "structured-letters": ("handwritten words, 26 labels", ("Rank 26, learned",)),
}
FORM = "partition"
SHOWN = (128, 1024, 16384, 65536)


def structured_results() -> str:
    """A table of the benchmark and a bullet for each experiment."""
    return f"{benchmark()}\n\n{sentences()}"


def sentences() -> str:
    """Paragraphs of the experiments' summaries, word for word."""
    lines = []
    for experiment, (subject, beginnings) in QUOTED.items():
        summary = (RESULTS / experiment / "summary.md").read_text(encoding="utf-8")
        for beginning in beginnings:
            (sentence,) = (x for x in summary.splitlines() if x.startswith(beginning))
            lines.append(f"- *{subject}:* {sentence}")
    return "\n".join(lines)


def benchmark() -> str:
    """CPU seconds and megabytes of log Z by contestant and states."""
    found = json.loads((ROOT / "benchmarks/structured.json").read_text(encoding="utf-8"))
    rows = [r for r in found["rows"] if r["form"] == FORM]
    contestants = list(dict.fromkeys(r["contestant"] for r in rows))
    cells = {(r["contestant"], r["states"]): r for r in rows}
    lines = [
        "| log Z: CPU s (MB) | " + " | ".join(f"{s:,} states" for s in SHOWN) + " |",
        "|---|" + "---:|" * len(SHOWN),
        *(
            f"| {name} | " + " | ".join(cell(cells.get((name, s))) for s in SHOWN) + " |"
            for name in contestants
        ),
    ]
    said = (
        "~: some of the steps were run, and scaled up. –: would take more than 6 CPU seconds or 4 GB; the"
        " reasons, marginals and gradients stand in [benchmarks](docs/benchmarks.md)."
    )
    return f"{found['caption']}\n\n" + "\n".join(lines) + f"\n\n{said}"


def cell(row: dict | None) -> str:
    """Seconds (megabytes); a dash where it was not run, ~ where it was scaled up from fewer steps."""
    if row is None or row["seconds"] is None:
        return "–"
    scaled = "~" if (row["share"] or 1.0) < 1.0 else ""
    seconds = row["seconds"]
    time = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
    if row["bytes"] is None:
        return scaled + time
    return (
        f"{scaled}{time} ({row['bytes'] / 1e6:,.0f})"
        if row["bytes"] >= 1e6
        else f"{scaled}{time} (< 1)"
    )
