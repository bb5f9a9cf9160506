"""Decentralised gradient descent: agents that talk to neighbours only, against everybody's rows in one place.

    w_{t+1}^v = sum_u P_vu ( w_t^u - eta (G_u w_t^u - h_u) / n ),     w_0 = 0

All agents share random features, exchange m numbers a step with each neighbour, and stop early instead
of paying a penalty. Four questions:

    path        smooth function of four inputs, 16 agents: error along the steps on a ring, a grid, a complete
                graph, against descent on all rows, one agent alone, and ridge regression on all rows
    rate        the circle, whose rate is known: does the excess risk fall like (rows of all agents)^(-2/3)?
    network     as many rows, more and more agents: when does the graph cost accuracy?
    gloo        the same over processes, bit for bit, and what a step costs
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import bochner
from bochner.gram import BlockFeatures, GramStatistics, Spectrum
from bochner.gram.descent import GradientPath
from bochner.gram.gossip import gossip
from bochner.gram.graphs import complete, grid, metropolis_weights, ring, spectral_gap
from bochner.gram.threads import one_thread
from bochner.reproduce import Cell, Experiment, Row
from experiments.kernel_machines.decentralised_circle import (
    Circle,
    features_of_theory,
    steps_of_theory,
)
from experiments.kernel_machines.decentralised_report import draw, measured, summary

GRAPHS: dict[str, Callable[[int], np.ndarray]] = {
    "ring": ring,
    "grid": lambda agents: grid(round(agents**0.5), round(agents**0.5)),
    "complete": complete,
}
AGENTS, ROWS, DIM, FEATURES, NOISE = 16, 250, 4, 300, 0.5
WAVES, TEST_ROWS = 1500, 2000
AT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
RATES = (256, 512, 1024, 2048, 4096, 8192, 16384)  # rows of all agents
NETWORKS, NETWORK_ROWS = (4, 16, 64, 256), 4096
SEEDS = {"path": 5, "rate": 8, "network": 5}
SCRIPT = Path(__file__).with_name("decentralised_ranks.py")


def smooth(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A draw of a Gaussian process with lengthscale 1.5: a function of rows [n, 4]."""
    rng = np.random.default_rng([seed, 1])
    directions = rng.standard_normal((DIM, WAVES)) / 1.5
    phases, weights = rng.uniform(0, 2 * np.pi, WAVES), rng.standard_normal(WAVES)
    return lambda x: np.cos(x @ directions + phases) @ weights * (2 / WAVES) ** 0.5


def features_of(seed: int) -> BlockFeatures:
    """The random features that all agents share: one seed."""
    generator = torch.Generator().manual_seed(seed)
    phi = bochner.make(
        "trigonometric",
        dim=DIM,
        num_features=FEATURES,
        kernel="gaussian",
        projection="orthogonal",
        generator=generator,
    )
    return BlockFeatures(phi, inverse_lengthscales=1 / 1.5, dtype=np.float64)


def agents_of(seed: int, agents: int) -> list[GramStatistics]:
    """Each agent's sums over its own rows."""
    function, phi = smooth(seed), features_of(seed)
    found = []
    for number in range(agents):
        rng = np.random.default_rng([seed, 2, number])
        x = rng.standard_normal((ROWS, DIM))
        y = function(x) + NOISE * rng.standard_normal(ROWS)
        found.append(GramStatistics.of(phi(x), y[:, None]))
    return found


def total_of(parts: Sequence[GramStatistics]) -> GramStatistics:
    """All rows together."""
    return sum(parts[1:], parts[0])


def path_rows(cell: Cell) -> list[Row]:
    """Root mean square error of the mean function along the steps."""
    seed, agents = int(cell["seed"]), int(cell["agents"])
    at = [t for t in AT if t <= int(cell["steps"])]
    parts = agents_of(seed, agents)
    x = np.random.default_rng([seed, 3]).standard_normal((TEST_ROWS, DIM))
    phi, truth = features_of(seed)(x), smooth(seed)(x)

    def errors(coefficients: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(phi @ coefficients[..., 0].T - truth[:, None]).mean(axis=0))

    whole = GradientPath(total_of(parts), step_size=1.0)
    together = errors(whole.coefficients(at))
    alone = np.stack([errors(GradientPath(p, step_size=1.0).coefficients(at)) for p in parts])
    spectrum = Spectrum.of(total_of(parts), fit_intercept=False)
    penalties = np.geomspace(1e-3, 1e3, 61)
    chosen = penalties[spectrum.gcv(penalties)[:, 0].argmin()]
    ridge = float(errors(spectrum.coef([chosen]))[0])
    rows: list[Row] = []
    for name, graph in GRAPHS.items():
        weights = metropolis_weights(graph(agents))
        steps = islice(enumerate(gossip(parts, weights, step_size=1.0)), at[-1] + 1)
        kept = {t: w for t, w in steps if t in at}
        away = max(
            float(abs(kept[t] - w).max()) for t, w in zip(at, whole.coefficients(at), strict=True)
        )
        for place, t in enumerate(at):
            found = errors(kept[t])
            rows.append(
                {
                    "part": "path",
                    "graph": name,
                    "seed": seed,
                    "gap": spectral_gap(weights),
                    "step": t,
                    "mean": float(found.mean()),
                    "worst": float(found.max()),
                    "together": float(together[place]),
                    "alone": float(alone[:, place].mean()),
                    "ridge": ridge,
                    "away": away,
                }
            )
    return rows


def circle_rows(cell: Cell) -> list[Row]:
    """Excess risk at the theory's number of steps and of features."""
    rows, agents, seed = int(cell["rows"]), int(cell["agents"]), int(cell["seed"])
    steps = steps_of_theory(rows)
    circle = Circle(features_of_theory(rows), np.random.default_rng([seed, rows, agents]))
    parts = [circle.agent(rows // agents) for _ in range(agents)]
    whole = total_of(parts)
    fields = {"part": str(cell["part"]), "rows": rows, "agents": agents, "seed": seed}
    last = GradientPath(whole, step_size=1.0).coefficients([steps])[0]
    penalty = np.array([rows / steps])
    of_ridge = Spectrum.of(whole, fit_intercept=False).coef(penalty)[0]
    alone = np.stack([_alone(part, steps)[:, 0] for part in parts])
    found: list[Row] = []
    for graph, coefficients in {"all rows": last, "ridge": of_ridge}.items():
        risk = float(circle.excess_risk(coefficients[:, 0]))
        found.append({**fields, "graph": graph, "gap": 1.0, "mean": risk, "worst": risk})
    risks = circle.excess_risk(alone)
    found.append(
        {**fields, "graph": "alone", "gap": 0.0, "mean": risks.mean(), "worst": risks.max()}
    )
    for name, graph in GRAPHS.items():
        weights = metropolis_weights(graph(agents))
        final = next(islice(gossip(parts, weights, step_size=1.0), steps, None))
        risks, gap = circle.excess_risk(final[..., 0]), spectral_gap(weights)
        found.append(
            {**fields, "graph": name, "gap": gap, "mean": risks.mean(), "worst": risks.max()}
        )
    return [{k: float(v) if k in ("mean", "worst") else v for k, v in row.items()} for row in found]


def _alone(part: GramStatistics, steps: int) -> np.ndarray:
    """One agent that talks to nobody and stops when its own rows say so."""
    own = steps_of_theory(part.num_rows)
    return GradientPath(part, step_size=1.0).coefficients([min(own, steps)])[0]


def gloo_rows(cell: Cell) -> list[Row]:
    """The same steps over processes: where they end, and how long they take."""
    agents, steps, name = int(cell["agents"]), int(cell["steps"]), str(cell["graph"])
    parts = agents_of(0, agents)
    weights = metropolis_weights(GRAPHS[name](agents))
    simulated = next(islice(gossip(parts, weights, step_size=1.0), steps, None))
    with tempfile.TemporaryDirectory() as folder:
        problem, answer = Path(folder) / "problem.npz", Path(folder) / "answer.npz"
        np.savez(
            problem,
            gram=np.stack([p.gram for p in parts]),
            cross=np.stack([p.cross for p in parts]),
            rows=[p.num_rows for p in parts],
            weights=weights,
            step_size=1.0,
            steps=steps,
        )
        command = [sys.executable, str(SCRIPT), str(problem), str(answer)]
        subprocess.run(command, check=True, timeout=600)
        with np.load(answer) as stored:
            found, seconds = stored["coefficients"], float(stored["seconds"])
    neighbours = int(GRAPHS[name](agents).sum(axis=1).max())
    return [
        {
            "part": "gloo",
            "graph": name,
            "agents": agents,
            "steps": steps,
            "difference": float(abs(found - simulated).max()),
            "milliseconds": round(1e3 * seconds / steps, 2),
            "bytes": 8 * found[0].size * neighbours,
        }
    ]


def cells(quick: bool) -> list[Cell]:
    """One for each part, problem and seed."""
    agents, steps = (9, 50) if quick else (AGENTS, AT[-1])
    rates = RATES[:3] if quick else RATES
    networks, rows = (NETWORKS[:2], 512) if quick else (NETWORKS, NETWORK_ROWS)
    seeds = {part: 2 if quick else count for part, count in SEEDS.items()}
    processes, exchanged = (4, 20) if quick else (AGENTS, 500)
    found: list[Cell] = [
        {"part": "path", "agents": agents, "steps": steps, "seed": s} for s in range(seeds["path"])
    ]
    for n in rates:
        found += [
            {"part": "rate", "rows": n, "agents": AGENTS, "seed": s} for s in range(seeds["rate"])
        ]
    for v in networks:
        found += [
            {"part": "network", "rows": rows, "agents": v, "seed": s}
            for s in range(seeds["network"])
        ]
    for graph in ("ring",) if quick else GRAPHS:
        found.append({"part": "gloo", "graph": graph, "agents": processes, "steps": exchanged})
    return found


def run(cell: Cell, folder: Path) -> list[Row]:
    """One part, one seed."""
    parts = {"path": path_rows, "rate": circle_rows, "network": circle_rows, "gloo": gloo_rows}
    with one_thread():
        return parts[str(cell["part"])](cell)


EXPERIMENT = Experiment(
    name="kernel-decentralised",
    title="Decentralised gradient descent on shared random features",
    paper="Richards, Rebeschini and Rosasco, Decentralised Learning with Random Features and Distributed"
    " Gradient Descent, 2020",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib",),
)
