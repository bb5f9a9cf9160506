"""Put measured tables and sentences into README.md and docs/: what stands between markers is written here.

    trade       what converting a model loses and gains (trade_off.py); also in docs/transformers.md
    demo        docs/demo/tables.md, word for word, after `bochner demo --out docs/demo`
    bench       the table of benchmarks/attention.json, after `make bench`
    structured  chains of many states: a benchmark and the experiments (structured_results.py)
    kernels     kernel machines (kernel_results.py); `samplers`, more of them, in docs/kernel-machines.md
    hybrids     sentences of experiments/hybrid_random_features/results/*/summary.md

A test compares the pages with all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kernel_results import page_kernels, readme_kernels
from structured_results import structured_results
from trade_off import trade_off

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments/hybrid_random_features/results"
QUOTED = [  # experiment, section of its summary, how the sentences begin, what they are about
    ("hrf-pointwise", "## 256 feature columns", ("worst case:", "both poles:", "pi/2:")),
    ("hrf-clustered", "", ("At 416 columns",)),
    ("hrf-attention", "", ("All heads, m = 256:", "Signed maps")),
]
SUBJECTS = {
    "hrf-pointwise": "vectors of one norm r, 256 columns",
    "hrf-clustered": "clustered data",
    "hrf-attention": "attention on the heads of the encoder above",
}


def markers(name: str) -> tuple[str, str]:
    """The comments around a block."""
    return (
        f"<!-- {name}:begin (written by tools/readme_from_results.py) -->",
        f"<!-- {name}:end -->",
    )


def block_of(text: str, name: str) -> str:
    """What stands between the markers."""
    begin, end = markers(name)
    return text.split(begin, 1)[1].split(end, 1)[0].strip()


def measured_tables() -> str:
    """The demo's own tables."""
    return (ROOT / "docs/demo/tables.md").read_text(encoding="utf-8").strip()


def quoted_sentences() -> str:
    """Sentences that the experiments wrote about hybrids, each a bullet."""
    lines = []
    for experiment, section, beginnings in QUOTED:
        summary = (RESULTS / experiment / "summary.md").read_text(encoding="utf-8")
        part = summary.split(section, 1)[1].split("\n## ", 1)[0] if section else summary
        bullets = [line[2:] for line in part.splitlines() if line.startswith("- ")]
        for beginning in beginnings:
            (sentence,) = (b for b in bullets if b.startswith(beginning))
            lines.append(f"- *{SUBJECTS[experiment]}:* {sentence}")
    return "\n".join(lines)


def benchmark_table() -> str:
    """The table of `make bench`, and what it was measured on."""
    found = json.loads((ROOT / "benchmarks/attention.json").read_text(encoding="utf-8"))
    return f"{found['caption']}\n\n{found['table']}"


BLOCKS = {
    "trade": trade_off,
    "demo": measured_tables,
    "hybrids": quoted_sentences,
    "bench": benchmark_table,
    "structured": structured_results,
    "kernels": readme_kernels,
    "samplers": page_kernels,
}
PAGES = {
    "README.md": [name for name in BLOCKS if name != "samplers"],
    "docs/transformers.md": ["trade"],
    "docs/kernel-machines.md": ["samplers"],
}


def main() -> None:
    """Replace every block."""
    contents = {name: content() for name, content in BLOCKS.items()}
    for page, names in PAGES.items():
        file = ROOT / page
        text = file.read_text(encoding="utf-8")
        for name in names:
            begin, end = markers(name)
            head, tail = text.split(begin, 1)[0], text.split(end, 1)[1]
            text = f"{head}{begin}\n{contents[name]}\n{end}{tail}"
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
