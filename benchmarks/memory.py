"""Peak memory beyond the inputs, each contestant in a process of its own.

    python -m benchmarks.memory [--quick]

The child makes q, k and v, calls the contestant once on 256 tokens so that libraries have their buffers,
notes its resident memory, calls it on the whole length, and reports how far the peak rose. The peak is
the operating system's; in units of one q tensor, to compare with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.attention import FORMAT, FULL, QUICK
from benchmarks.measuring.contestants import (
    CONTESTANTS,
    Contestant,
    Missing,
    Setting,
    build_bochner,
    calibrated_map,
)
from benchmarks.measuring.peers import ATTENTION, versions
from benchmarks.measuring.tables import memory_table
from benchmarks.measuring.turns import too_much
from bochner.report.results import environment, to_json, write_text
from bochner.reproduce.peak import forget_peak, peak_bytes, resident_bytes

LONGEST = 120.0
"""Seconds for one child, its imports included."""


def in_child(order: dict[str, Any]) -> dict[str, float]:
    """Resident bytes before and peak bytes after, in this process."""
    torch.set_num_threads(order["threads"])
    setting = Setting(num_features=order["num_features"])
    contestant = next(c for c in CONTESTANTS if c.label == order["label"])
    if order["map"]:  # fitted in the parent: fitting has a peak of its own
        phi = torch.load(order["map"], weights_only=False)
        from benchmarks.measuring.contestants import WINDOW

        exact = WINDOW if "window" in contestant.name else None
        attend = build_bochner(lambda _: phi, exact)(setting, order["causal"])
    else:
        attend = contestant.build(setting, order["causal"])

    def call(points: tuple[torch.Tensor, ...]) -> None:
        if not order["training"]:
            with torch.no_grad():
                attend(*points)
            return
        leaves = [x.requires_grad_() for x in points]
        out = attend(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    points = contestant.points(setting, order["length"])
    call(contestant.points(setting, 256))
    forget_peak()
    before, peak_before = resident_bytes(), peak_bytes()
    call(points)
    return {"before": before, "peak_before": peak_before, "peak": peak_bytes()}


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Run one child; bytes, or the reason why there are none."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(order)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        return {"bytes": None, "reason": f"took more than {LONGEST:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"bytes": None, "reason": last[0]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    # the peak of what came before (imports, inputs) hides less than this
    return {
        "bytes": found["peak"] - found["before"],
        "hidden": found["peak_before"] - found["before"],
        "reason": None,
    }


def row_of(
    contestant: Contestant, setting: Setting, length: int, order: dict[str, Any]
) -> dict[str, Any]:
    """One contestant, one form."""
    needed = None
    if order["training"] and order["causal"] and contestant.training_bytes is not None:
        needed = contestant.training_bytes(setting, length)
    reason = too_much(None, needed)
    found = {"bytes": None, "reason": reason} if reason else measure(order)
    return {
        "contestant": contestant.name,
        "dtype": str(contestant.dtype).removeprefix("torch."),
        "length": length,
        "causal": order["causal"],
        "training": order["training"],
        "one_tensor": setting.one_tensor(length, contestant.dtype),
        **found,
    }


@click.command()
@click.option("--length", default=16384, show_default=True)
@click.option("--num-features", default=128, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", default="", help="Contestants whose label contains this.")
@click.option("--quick", is_flag=True, help=f"A small version; writes to {QUICK}.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--child", hidden=True)
def main(
    length: int,
    num_features: int,
    threads: int,
    only: str,
    quick: bool,
    out: Path | None,
    child: str | None,
) -> None:
    """Measure the peak memory of attention, 8 heads, d = 64, batch 1, float32."""
    if child is not None:
        print(json.dumps(in_child(json.loads(child))))
        return
    torch.set_num_threads(threads)
    length = 2048 if quick else length
    out = out or (QUICK if quick else FULL)
    setting = Setting(num_features=num_features)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": {**environment(), "peers": versions(ATTENTION)},
        "heads": setting.heads,
        "dim": setting.dim,
        "num_features": setting.num_features,
        "quick": quick,
        "complete": False,
        "rows": rows,
    }
    contestants = [c for c in CONTESTANTS if only in c.label and c.dtype == torch.float32]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibrated.pt"
        try:
            torch.save(calibrated_map(setting), path)
        except Missing as missing:
            print(f"calibrated: {missing}")
        for training in (False, True):
            for causal in (False, True):
                for contestant in contestants:
                    fitted = "calibrated" in contestant.name and path.exists()
                    order = {
                        "label": contestant.label,
                        "causal": causal,
                        "training": training,
                        "length": length,
                        "num_features": num_features,
                        "threads": threads,
                        "map": str(path) if fitted else "",
                    }
                    rows.append(row_of(contestant, setting, length, order))
                    write_text(out / "memory.json", to_json(result) + "\n")
    result["complete"] = True
    result["table"] = memory_table(result)
    write_text(out / "memory.json", to_json(result) + "\n")
    print(result["table"])


if __name__ == "__main__":
    main()
