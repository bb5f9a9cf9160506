"""Exact attention, the peers and bochner side by side in one run: medians, ratios, floors, crossovers.

    python -m benchmarks.attention [--quick]

Writes a JSON file with a row per contestant and length, added as it is measured, and its tables.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.measuring.contestants import CONTESTANTS, Contestant, Missing, Setting
from benchmarks.measuring.gates import GateFailed, check
from benchmarks.measuring.machine import Rates, measure_rates
from benchmarks.measuring.peers import ATTENTION, versions
from benchmarks.measuring.tables import attention_tables, readme_caption, readme_table
from benchmarks.measuring.turns import Predictor, Timing, time_in_turn, too_much
from bochner.report.results import environment, to_json, write_text

FORMAT = 2
QUICK = Path("build/benchmarks")
FULL = Path("benchmarks")


@click.command()
@click.option("--lengths", default="512,1024,2048,4096,16384", show_default=True)
@click.option("--training-lengths", default="512,1024,4096,16384", show_default=True)
@click.option("--num-features", default=128, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", default="", help="Contestants whose label contains this.")
@click.option("--quick", is_flag=True, help=f"A small version; writes to {QUICK}.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
def main(
    lengths: str,
    training_lengths: str,
    num_features: int,
    threads: int,
    only: str,
    quick: bool,
    out: Path | None,
) -> None:
    """Time attention of 8 heads, d = 64, batch 1, by every contestant."""
    torch.set_num_threads(threads)
    if quick:
        lengths, training_lengths = "256,1024", "256,512"
    out = out or (QUICK if quick else FULL)
    setting = Setting(num_features=num_features)
    contestants = [c for c in CONTESTANTS if only in c.label]
    pass_gates(contestants, setting)
    rates = measure_rates(size=1024, megabytes=64) if quick else measure_rates()
    rows: list[dict[str, Any]] = []
    result = {
        "format": FORMAT,
        "environment": {**environment(), "peers": versions(ATTENTION)},
        "heads": setting.heads,
        "dim": setting.dim,
        "num_features": setting.num_features,
        "quick": quick,
        "complete": False,
        "rates": rates.as_dict(),
        "rows": rows,
    }

    def write() -> None:
        write_text(out / "attention.json", to_json(result) + "\n")

    for training, some in ((False, lengths), (True, training_lengths)):
        for causal in (False, True):
            race = Race(setting, rates, contestants, causal=causal, training=training)
            race.budget = 0.1 if quick else 0.7
            for length in (int(part) for part in some.split(",")):
                found = race.at(length)
                rows += found
                write()
                say(found)
    result["complete"] = True
    result["tables"] = attention_tables(result)
    result["caption"], result["table"] = readme_caption(result), readme_table(result)
    write()
    print(*result["tables"].values(), sep="\n\n")


def pass_gates(contestants: list[Contestant], setting: Setting) -> None:
    """Refuse to time anything while one of ours is wrong."""
    for contestant in contestants:
        for causal in (False, True):
            try:
                if contestant.ours:
                    check(contestant, setting, causal=causal)
            except Missing:
                continue  # a row of its own says so
            except GateFailed as failed:
                raise SystemExit(f"correctness gate: {failed}; nothing is timed") from failed


class Race:
    """One form of attention: its contestants, past their gates, and their times at growing lengths."""

    budget = 0.7  # seconds for each contestant and length, apart from its warm-up

    def __init__(
        self,
        setting: Setting,
        rates: Rates,
        contestants: list[Contestant],
        *,
        causal: bool,
        training: bool,
    ) -> None:
        self.setting, self.rates, self.causal, self.training = setting, rates, causal, training
        self.predictor = Predictor()
        self.ready: dict[str, tuple[Contestant, Callable[..., torch.Tensor]]] = {}
        self.absent: dict[str, str] = {}
        self.contestants = contestants
        for contestant in contestants:
            try:
                self.ready[contestant.label] = (contestant, contestant.build(setting, causal))
            except Missing as missing:
                self.absent[contestant.label] = f"missing: {missing}"

    def at(self, length: int) -> list[dict[str, Any]]:
        """A row for every contestant."""
        runs, timings = {}, {}
        for label, (contestant, attend) in self.ready.items():
            reason = too_much(
                self.predictor.predict(label, length), self.training_bytes(contestant, length)
            )
            if reason is None:
                runs[label] = self.run_of(contestant, attend, length)
            else:
                timings[label] = Timing(reason=reason)
        timings |= time_in_turn(runs, budget=self.budget)
        for label, timing in timings.items():
            if timing.seconds is not None:
                self.predictor.learn(label, length, timing.seconds)
        del runs
        gc.collect()
        return [self.row(c, length, timings.get(c.label)) for c in self.contestants]

    def training_bytes(self, contestant: Contestant, length: int) -> float | None:
        if not (self.training and self.causal) or contestant.training_bytes is None:
            return None
        return contestant.training_bytes(self.setting, length)

    def run_of(
        self, contestant: Contestant, attend: Callable[..., torch.Tensor], length: int
    ) -> Callable[[], object]:
        """A call, forward or forward and backward, on its own tensors."""
        points = contestant.points(self.setting, length)
        if not self.training:

            def forward() -> None:
                with torch.no_grad():
                    attend(*points)

            return forward
        leaves = [x.requires_grad_() for x in points]
        weight = torch.ones_like(leaves[2])

        def backward() -> None:
            torch.autograd.grad(attend(*leaves), leaves, weight)

        return backward

    def row(self, contestant: Contestant, length: int, timing: Timing | None) -> dict[str, Any]:
        """Time, or why there is none; ratio to the floor."""
        timing = timing or Timing(reason=self.absent[contestant.label])
        floor = self.rates.floor(self.setting, length, contestant.dtype, training=self.training)
        return {
            "contestant": contestant.name,
            "dtype": str(contestant.dtype).removeprefix("torch."),
            "length": length,
            "causal": self.causal,
            "training": self.training,
            "seconds": timing.seconds,
            "runs": timing.runs,
            "reason": timing.reason,
            "floor_seconds": floor,
        }


def say(rows: list[dict[str, Any]]) -> None:
    """A line of progress for each row."""
    for row in rows:
        form = "causal" if row["causal"] else "bidirectional"
        form += " training" if row["training"] else ""
        what = row["reason"] or f"{1000 * row['seconds']:9.1f} ms x {row['runs']}"
        print(
            f"{row['length']:7,} {form:22} {row['contestant']} {row['dtype']}: {what}", flush=True
        )


if __name__ == "__main__":
    main()
