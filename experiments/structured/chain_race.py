"""Contestants at one size: correct first, then timed in turn on one thread, then their peak memory.

Seconds are CPU seconds of one thread, medians of rounds in which every contestant takes its turn. Memory is
the peak of a process of its own beyond what is resident with the problem made (features, embeddings,
unaries); a stored K counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bochner.reproduce import Row
from bochner.reproduce.peak import forget_peak, peak_bytes, resident_bytes
from experiments.structured.chain_contestants import (
    CONTESTANTS,
    Contestant,
    Missing,
    Prepared,
    Result,
)
from experiments.structured.chain_problems import Problem, Setting, Truth, truth

MOST_BYTES = 4e9
LONGEST = 6.0  # CPU seconds for one run of one contestant
TRUTH_STATES = 2048  # up to here the gate is the dense recursion in float64
TOLERANCE = 1e-4  # of log Z, relative (256 steps in float32), and of a marginal
CHILD_SECONDS = 500.0  # of wall time: others may be using the cores
ROOT = Path(__file__).resolve().parents[2]


class GateFailed(Exception):
    """A contestant that does not compute what the others do."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """CPU seconds are compared on one thread; the caller's number comes back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def race(
    setting: Setting,
    states: int,
    form: str,
    *,
    budget: float = 1.0,
    memory: bool = True,
    contestants: Sequence[Contestant] = CONTESTANTS,
) -> list[Row]:
    """A row for every contestant that has the form: seconds, bytes, difference; or why there is none.

    Arguments:  budget: CPU seconds of rounds for each contestant; memory: whether it is measured, in a
                process of its own that takes seconds to start.
    """
    with one_thread():
        made = Problem(setting, states)
        known = truth(made) if states <= TRUTH_STATES else None
        rows, runs = [], {}
        for contestant in contestants:
            if form not in contestant.forms:
                continue
            row: Row = {"contestant": contestant.name, "states": states, "form": form}
            row |= dict.fromkeys(("seconds", "runs", "share", "bytes", "difference", "reason"))
            rows.append(row)
            if reason := too_much(contestant, setting, states, form):
                row["reason"] = reason
                continue
            try:
                runs[contestant.name] = contestant.prepare(made, form)
            except Missing as missing:
                row["reason"] = str(missing)
        seconds, results = in_turn(runs, budget)
    for row in rows:
        if (name := str(row["contestant"])) not in runs:
            continue
        contestant = next(c for c in contestants if c.name == name)
        row["share"] = runs[name].share
        row["seconds"] = statistics.median(seconds[name]) / runs[name].share
        row["runs"] = len(seconds[name])
        if known is not None and contestant.same and runs[name].share == 1.0:
            row["difference"] = check(name, results[name], known)
    del runs
    for row in rows:
        if memory and row["seconds"] is not None:
            row["bytes"] = peak_of(setting, states, form, str(row["contestant"]))
    return rows


def too_much(contestant: Contestant, setting: Setting, states: int, form: str) -> str | None:
    """Why a contestant is not started at a size, or None."""
    if contestant.needs is not None:
        needed = contestant.needs(states, setting.steps, form)
        if needed > MOST_BYTES:
            return f"would ask for {needed / 1e9:,.0f} GB"
    if contestant.seconds is not None:
        predicted = contestant.seconds(states, setting.steps, form)
        if predicted > LONGEST:
            return f"would take about {predicted:,.0f} CPU seconds"
    return None


def check(name: str, result: Result, known: Truth) -> float:
    """The relative difference of log Z from the truth, or the largest one of a marginal if that is more.

    Raises:     GateFailed beyond the tolerance.
    """
    difference = abs(result.log_partition / known.log_partition - 1)
    if result.marginals is not None:
        worst = (result.marginals.double() - known.marginals).abs().max()
        difference = max(difference, float(worst))
    if not difference < TOLERANCE:
        raise GateFailed(f"{name}: differs from the dense recursion in float64 by {difference:.2g}")
    return difference


def in_turn(
    runs: dict[str, Prepared], budget: float
) -> tuple[dict[str, list[float]], dict[str, Result]]:
    """CPU seconds of every round, A B C A B C ...; one untimed run first, or only it if it takes long."""
    seconds: dict[str, list[float]] = {}
    results: dict[str, Result] = {}
    rounds: dict[str, int] = {}
    for name, prepared in runs.items():
        spent, results[name] = clocked(prepared.run)
        once = spent > max(1.0, 2 * budget)
        seconds[name] = [spent] if once else []
        rounds[name] = 0 if once else min(15, max(3, int(budget / max(spent, 1e-9))))
    for number in range(max(rounds.values(), default=0)):
        for name, prepared in runs.items():
            if number < rounds[name]:
                seconds[name].append(clocked(prepared.run)[0])
    return seconds, results


def clocked(run: Callable[[], Result]) -> tuple[float, Result]:
    """CPU seconds and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


# -- memory, in a process of its own -------------------------------------------------------------------
def peak_of(setting: Setting, states: int, form: str, name: str) -> int | None:
    """Bytes of one contestant; None if its process failed or took too long."""
    order = json.dumps(
        {"setting": asdict(setting), "states": states, "form": form, "contestant": name}
    )
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    command = [sys.executable, "-m", "experiments.structured.chain_race", order]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHILD_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else int(done.stdout.strip().splitlines()[-1])


def in_child(order: dict) -> int:
    """How far the peak rises: the contestant has run on a small problem before."""
    torch.set_num_threads(1)
    contestant = next(c for c in CONTESTANTS if c.name == order["contestant"])
    setting, form = Setting(**order["setting"]), order["form"]
    small = Setting(steps=16, num_features=16, dim=setting.dim)
    contestant.prepare(Problem(small, 64), form).run()
    made = Problem(setting, order["states"])
    made.features, made.embeddings, made.unaries  # noqa: B018 - inputs are not counted
    forget_peak()
    before = resident_bytes()
    contestant.prepare(made, form).run()
    return peak_bytes() - before


if __name__ == "__main__":
    print(in_child(json.loads(sys.argv[1])))
