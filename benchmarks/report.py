"""The page of benchmarks from the results of the others: docs/benchmarks.md, or a quick one in build/.

    python -m benchmarks.report [--quick]

Measures nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.attention import FORMAT, FULL, QUICK
from benchmarks.measuring.machine_tables import machine_caption
from benchmarks.measuring.tables import caption
from bochner.report.results import write_text

PAGE = Path("docs/benchmarks.md")


def load(folder: Path, name: str) -> dict[str, Any]:
    """Complete results of one benchmark."""
    found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    if found.get("format") != FORMAT or not found["complete"]:
        raise SystemExit(
            f"{folder / name}.json is not a complete result of this version; run"
            f" python -m benchmarks.{name} first."
        )
    return found


def page(folder: Path) -> str:
    """Everything that was measured."""
    attention, decoding, memory = (load(folder, n) for n in ("attention", "decoding", "memory"))
    sections = {k: v for k, v in attention["tables"].items() if k != "What was measured"}
    lines = [
        "# Benchmarks",
        "Written by `make bench`, not typed. " + caption(attention),
        *(f"## {title}\n\n{table}" for title, table in sections.items()),
        "## Decoding: one more token",
        f"Microseconds of one layer by the length of the context, medians of {decoding['tokens']} tokens,"
        f" contestants in turn, {decoding['environment']['threads']} threads. The exact ones attend to a"
        " preallocated cache; the others carry a state of constant size.",
        decoding["table"],
        "## Memory",
        f"Peak beyond q, k and v at {memory['rows'][0]['length']:,} tokens, float32, in a process of its own,"
        " the output (and with the backward pass the three gradients) included: MB, and in brackets in"
        " units of one of q, k, v.",
        memory["table"],
        *structured_lines(folder),
        *kernel_machine_lines(folder),
    ]
    return "\n\n".join(lines) + "\n"


def structured_lines(folder: Path) -> list[str]:
    """Chains of many states; nothing before they have been measured."""
    if not (folder / "structured.json").exists():
        return []
    found = load(folder, "structured")
    return [
        "## Structured models: chains of many states",
        found["caption"],
        *(f"### {title}\n\n{table}" for title, table in found["tables"].items()),
    ]


def kernel_machine_lines(folder: Path) -> list[str]:
    """Kernel ridge regression; nothing before it has been measured."""
    if not (folder / "kernel_machines.json").exists():
        return []
    found = load(folder, "kernel_machines")
    return [
        "## Kernel machines: a million rows and more",
        machine_caption(found),
        *(f"### {title}\n\n{table}" for title, table in found["tables"].items()),
    ]


@click.command()
@click.option("--quick", is_flag=True, help=f"Of the small versions; writes to {QUICK}.")
def main(quick: bool) -> None:
    """Write the page."""
    folder, target = (QUICK, QUICK / "benchmarks.md") if quick else (FULL, PAGE)
    write_text(target, page(folder))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
