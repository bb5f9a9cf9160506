"""What the pages say of kernel machines: a benchmark, tables and sentences of the experiments' summaries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.measuring.machine_tables import machine_caption, machine_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments/kernel_machines/results"
QUOTED = [  # experiment, how a line of its summary begins, what it is about
    ("kernel-gp-calibration", "Where the model is right", "95 % intervals of Gaussian processes"),
    ("kernel-local-wavelet", "d = 1:", "local features on fields of many lengthscales"),
    ("kernel-binning", "- Gaussian, d = 2, fast:", "random binning"),
    ("kernel-whitening", "At C = 1,", "whitening of sentence embeddings"),
]
DIRECTIONS = ("| directions |", "|---|", "| orthogonal |", "| sobol |")


def summary(experiment: str) -> str:
    """What an experiment says of itself."""
    return (RESULTS / experiment / "summary.md").read_text(encoding="utf-8")


def line(experiment: str, beginning: str) -> str:
    """The one line of a summary that begins so."""
    (found,) = (x for x in summary(experiment).splitlines() if x.startswith(beginning))
    return found.removeprefix("- ")


def section(experiment: str, title: str) -> str:
    """What stands under a heading of a summary."""
    return summary(experiment).split(f"### {title}\n", 1)[1].split("\n### ", 1)[0].strip()


def first_table(text: str, *, beginnings: tuple[str, ...] = ("|",)) -> str:
    """The rows of the first table that begin so."""
    rows: list[str] = []
    for row in text.splitlines():
        if row.startswith("|"):
            rows.append(row)
        elif rows:
            break
    return "\n".join(row for row in rows if row.startswith(beginnings))


def kernel_error() -> str:
    """Ratios of the kernel's error to RBFSampler's over all data sets."""
    return (
        "RMSE of the kernel over that of `RBFSampler` with as many components, smallest to largest over all"
        " data sets and numbers of components; `surely`: with all of its simultaneous 95 % interval"
        " ([kernel-error](KERNELS)):\n\n"
        + first_table(summary("kernel-error"), beginnings=DIRECTIONS)
    )


def kernel_accuracy() -> str:
    """Counts of settings that each kind of features wins and loses."""
    found = [x for x in summary("kernel-accuracy").splitlines() if x.startswith("- ")]
    return (
        "Points of accuracy (of R² times 100) at equal m, gamma and penalty chosen for every contestant"
        " ([kernel-accuracy](KERNELS)):\n\n" + "\n".join(found)
    )


def quoted() -> str:
    """Sentences of the other experiments."""
    return "\n".join(f"- *{subject}:* {line(name, begins)}" for name, begins, subject in QUOTED)


def benchmark(titles: tuple[str, ...]) -> str:
    """Tables of benchmarks/kernel_machines.json."""
    found = json.loads((ROOT / "benchmarks/kernel_machines.json").read_text(encoding="utf-8"))
    parts = [machine_caption(found)]
    for title, table in machine_tables(found).items():
        if title.startswith(titles):
            parts += [f"*{title}*", table]
    return "\n\n".join(parts)


def linked(text: str, pages: str) -> str:
    """Links to the experiments from one page."""
    return text.replace("(KERNELS)", f"({pages})")


def readme_kernels() -> str:
    """For README.md."""
    text = "\n\n".join(
        (benchmark(("100,000 rows × 20, m = 1,024, 1", "1,000,000")), kernel_error(), quoted())
    )
    return linked(text, "experiments/kernel_machines/results")


def page_kernels() -> str:
    """For docs/kernel-machines.md."""
    largest = "\n\n".join(
        (
            kernel_error(),
            kernel_accuracy(),
            "Accuracy in percent, mean ± deviation over seeds, m = 1,024:",
            first_table(section("kernel-accuracy", "m = 1,024")),
            quoted(),
        )
    )
    return linked(largest, "experiments/kernel_machines.md")
