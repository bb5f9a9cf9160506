"""Kernel ridge regression on 100,000 to 5,000,000 rows by bochner and its peers: time, memory, R2.

    python -m benchmarks.kernel_machines [--quick]

Correct first: the weights of a fit in float32 against a direct solution in float64. Then every contestant in
turn, each time in a process of its own, whose peak memory beyond the rows and CPU and wall time of `fit`
are reported; medians of the rounds. One contestant is nothing but the matrix products (SYRK): the floor.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.attention import FORMAT, FULL, QUICK
from benchmarks.measuring.contestants import Missing
from benchmarks.measuring.machine_tables import gates, machine_tables
from benchmarks.measuring.machines import (
    ALPHA,
    DIM,
    GAMMA,
    LENGTHSCALE,
    MACHINES,
    NOISE,
    Machine,
    in_file,
    load,
    make_problem,
    r2,
)
from benchmarks.measuring.peers import KERNEL_MACHINES, versions
from benchmarks.measuring.turns import Predictor, too_much
from bochner.report.results import environment, to_json, write_text
from bochner.reproduce.peak import forget_peak, peak_bytes, resident_bytes

LONGEST = 300.0
"""Seconds for one fit: what is predicted to take longer is not started."""
ROUND_OFF = 8 * 2.0**-24  # of features: that of float32, and of the arguments of their cosines


@dataclass(frozen=True)
class Size:
    """Rows, features, threads, and how often everything is measured."""

    rows: int
    features: int
    threads: int
    rounds: int


SIZES = (
    Size(100_000, 1024, 1, 3),
    Size(100_000, 1024, 2, 3),
    Size(1_000_000, 2048, 2, 2),
    Size(5_000_000, 1024, 2, 1),
)
SMALL = (Size(20_000, 128, 2, 1),)


def in_child(order: dict[str, Any]) -> dict[str, Any]:
    """Times and memory of one fit, in this process."""
    import torch

    torch.set_num_threads(order["threads"])
    machine = next(m for m in MACHINES if m.label == order["label"])
    problem = load(Path(order["folder"]))
    x, y = (array.astype(machine.dtype, copy=False) for array in (problem.x, problem.y))
    try:
        machine.fit(x[:500], y[:500], 16)  # imports, thread pools, library buffers
    except Missing as missing:
        return {"reason": f"missing: {missing}"}
    forget_peak()
    before, cpu, wall = resident_bytes(), time.process_time(), time.perf_counter()
    predict = machine.fit(x, y, order["features"])
    found = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "bytes": peak_bytes() - before,
        "reason": None,
    }
    return found | {"r2": None if predict is None else r2(problem, predict)}


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Run one child; its report, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.kernel_machines", "--child", json.dumps(order)]
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(order["threads"])
    )
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=2 * LONGEST,
            check=False,
            env={**os.environ, **threads},
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"took more than {2 * LONGEST:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"reason": last[0]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def race(size: Size, machines: list[Machine], known: Predictor, folder: Path) -> list[dict]:
    """Every contestant in turn, round after round; a row for each."""
    found: dict[str, list[dict[str, Any]]] = {machine.label: [] for machine in machines}
    out: dict[str, str] = {}
    work = size.rows * size.features**2
    for machine in machines:
        needed = machine.needed_bytes(size.rows, size.features)
        reason = too_much(known.predict(machine.label, work), needed, longest=LONGEST)
        if reason:
            out[machine.label] = reason
    for _ in range(size.rounds):
        for machine in machines:
            if machine.label in out:
                continue
            order = {"label": machine.label, "folder": str(folder)}
            report = measure(order | {"features": size.features, "threads": size.threads})
            if report["reason"]:
                out[machine.label] = report["reason"]
            else:
                found[machine.label].append(report)
    rows = []
    for machine in machines:
        reports = [] if machine.label in out else found[machine.label]
        row = {"contestant": machine.name, "dtype": machine.dtype, **asdict(size)}
        row |= {"ours": machine.ours, "reason": out.get(machine.label)}
        for name in ("cpu", "wall", "bytes", "r2"):
            values = [r[name] for r in reports if r[name] is not None]
            row[name] = statistics.median(values) if values else None
        if reports:
            known.learn(machine.label, work, row["wall"])
        rows.append(row)
    return rows


def agreement(rows: int, features: int) -> dict[str, float]:
    """A fit in float32 blocks against a direct solution in float64 of the same features.

    In (G + alpha I) w = h a relative error e of G and h changes w by up to cond(G + alpha I) e: that is what
    is allowed, with e = ROUND_OFF.
    """
    from bochner.sklearn import KernelRidge

    problem = make_problem(rows)
    model = KernelRidge(
        alpha=ALPHA, n_components=features, gamma=GAMMA, precision="single", random_state=0
    ).fit(problem.x, problem.y)
    phi = model.features_.with_dtype(np.float64)(problem.x)
    phi -= phi.mean(0)
    matrix = phi.T @ phi + ALPHA * np.eye(features)
    weights = np.linalg.solve(matrix, phi.T @ (problem.y - problem.y.mean(dtype=np.float64)))
    error = np.linalg.norm(model.coef_ - weights) / np.linalg.norm(weights)
    test = model.features_.with_dtype(np.float64)(problem.x_test)
    ours, direct = test @ model.coef_, test @ weights
    apart = np.linalg.norm((ours - ours.mean()) - (direct - direct.mean()))
    condition = float(np.linalg.cond(matrix))
    return {
        "rows": rows,
        "features": features,
        "condition": condition,
        "allowed": condition * ROUND_OFF,
        "weights": float(error),
        "predictions": float(apart / np.linalg.norm(direct - direct.mean())),
    }


@click.command()
@click.option("--only", default="", help="Contestants whose label contains this.")
@click.option("--size", "numbers", default="", help="Numbers of the sizes, from 0, with commas.")
@click.option("--quick", is_flag=True, help=f"A small version; writes to {QUICK}.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--child", hidden=True)
def main(only: str, numbers: str, quick: bool, out: Path | None, child: str | None) -> None:
    """Time kernel ridge regression, 20 columns, a million rows and more."""
    if child is not None:
        print(json.dumps(in_child(json.loads(child))))
        return
    out = out or (QUICK if quick else FULL)
    sizes = SMALL if quick else SIZES
    sizes = [sizes[int(i)] for i in numbers.split(",")] if numbers else list(sizes)
    machines = [m for m in MACHINES if only in m.label]
    checked = agreement(20_000, 128 if quick else 2048)
    if not checked["weights"] < checked["allowed"]:
        raise SystemExit(f"correctness gate: {checked}; nothing is timed")
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": {**environment(), "peers": versions(KERNEL_MACHINES)},
        "problem": {
            "dim": DIM,
            "lengthscale": LENGTHSCALE,
            "noise": NOISE,
            "alpha": ALPHA,
        },
        "agreement": checked,
        "quick": quick,
        "complete": False,
        "rows": rows,
    }

    def write() -> None:
        write_text(out / "kernel_machines.json", to_json(result) + "\n")

    known: dict[int, Predictor] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder, in_file(Path(folder), size.rows):
            found = race(size, machines, known.setdefault(size.threads, Predictor()), Path(folder))
        rows += found
        write()
        for row in found:
            what = row["reason"] or (
                f"{row['cpu']:.2f} CPU s, {row['wall']:.2f} s, {row['bytes'] / 1e6:.0f} MB, R2 {row['r2']}"
            )
            print(
                f"{size.rows:9,} x {size.features}, {size.threads} threads {row['contestant']}: {what}"
            )
    result["complete"] = True
    result["gates"] = gates(result)
    result["tables"] = machine_tables(result)
    write()
    print(*result["tables"].values(), sep="\n\n")


if __name__ == "__main__":
    main()
