"""A chain's log Z, marginals and gradient by bochner, exact recursions and the peers: CPU seconds and memory.

    python -m benchmarks.structured [--quick]

One thread; correct first (the dense recursion in float64), then timed in turn, then the peak memory of a
process of its own. Writes a JSON file with a row per contestant, form and number of states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.attention import FORMAT, FULL, QUICK
from benchmarks.measuring.peers import STRUCTURED, versions
from bochner.report.results import environment, to_json, write_text
from experiments.structured.chain_contestants import CONTESTANTS, FORMS, PARTITION
from experiments.structured.chain_problems import Setting
from experiments.structured.chain_race import GateFailed, race
from experiments.structured.scaling_tables import all_tables


def caption(result: dict[str, Any]) -> str:
    """What was measured, on what."""
    where = result["environment"]
    peers = ", ".join(f"{k} {v or 'not installed'}" for k, v in where["peers"].items())
    return (
        f"One sequence of {result['steps']} steps, transitions of rank m = {result['num_features']},"
        f" float32, **one thread**, torch {where['torch']}; {peers}. CPU seconds, medians of rounds in"
        " which all contestants take turns; MB are the peak of a process of its own beyond features,"
        " embeddings and unaries, a stored K included. `from_embeddings`, `HybridChain` and `K on the fly`"
        " have K = exp(a·b), n = 64; all others sum over one and the same chain and agree to 1e-4 with the"
        " dense recursion in float64 up to 2,048 states."
    )


@click.command()
@click.option("--states", default="128,512,1024,4096,16384,65536", show_default=True)
@click.option("--training-states", default="128,1024,4096,16384", show_default=True)
@click.option("--steps", default=256, show_default=True)
@click.option("--num-features", default=256, show_default=True)
@click.option("--only", default="", help="Contestants whose name contains this.")
@click.option("--quick", is_flag=True, help=f"A small version; writes to {QUICK}.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
def main(
    states: str,
    training_states: str,
    steps: int,
    num_features: int,
    only: str,
    quick: bool,
    out: Path | None,
) -> None:
    """Time chains of many states."""
    if quick:
        states, training_states, steps, num_features = "64", "64", 32, 64
    out = out or (QUICK if quick else FULL)
    setting = Setting(steps=steps, num_features=num_features)
    contestants = [c for c in CONTESTANTS if only in c.name]
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": {**environment(), "threads": 1, "peers": versions(STRUCTURED)},
        "steps": steps,
        "num_features": num_features,
        "quick": quick,
        "complete": False,
        "rows": rows,
    }

    def write() -> None:
        write_text(out / "structured.json", to_json(result) + "\n")

    for form in FORMS:
        for count in (states if form == PARTITION else training_states).split(","):
            try:
                found = race(
                    setting,
                    int(count),
                    form,
                    budget=0.05 if quick else 1.0,
                    memory=form == PARTITION or not quick,
                    contestants=contestants,
                )
            except GateFailed as failed:
                raise SystemExit(f"correctness gate: {failed}; nothing is timed") from failed
            rows += found
            write()
            for row in found:
                what = row["reason"] or f"{row['seconds']:.4g} CPU s, {row['bytes']} bytes"
                print(f"{row['states']:7,} {form:10} {row['contestant']}: {what}", flush=True)
    result["complete"] = True
    result["caption"], result["tables"] = caption(result), all_tables(rows)
    write()
    print(*result["tables"].values(), sep="\n\n")


if __name__ == "__main__":
    main()
