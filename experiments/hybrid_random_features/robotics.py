"""Attention policies learn to run: exact softmax, random features, hybrids, by evolution strategies.

HalfCheetah-v5 for 150 steps; a transformer-like policy of some 700 parameters (`attention_policy`), which is
trained by an evolution strategy (`evolution`) with the same numbers of episodes, steps and parameters
for every kind of attention. Kinds with the same seed start from the same parameters, perturb them by
the same noise and meet the same initial states: differences are read within seeds.

Signed maps give denominators that are not positive; they are counted and left as they are (the policy
bounds what follows). A linear kind's map is drawn once for a seed and never redrawn.

A policy is judged by episodes that it has not trained on. Three more comparisons: random actions; the
parameters before training; and each trained policy with its attention replaced, by exact softmax or by
a fresh linear map, which says how far it depends on the map that it learned with.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bochner.attention import DenominatorWarning
from bochner.reproduce import Cell, Experiment, Row
from experiments.hybrid_random_features.attention_kinds import (
    LABELS,
    LINEAR,
    Attention,
    Exact,
    Linear,
    attention,
)
from experiments.hybrid_random_features.attention_policy import Policy
from experiments.hybrid_random_features.evolution import EvolutionStrategy
from experiments.hybrid_random_features.locomotion import STEPS, Arena, Normaliser, random_actions
from experiments.hybrid_random_features.robotics_report import draw, measured, summary

SEEDS, GENERATIONS, QUICK_GENERATIONS = 5, 80, 3
QUICK_STEPS = 40
PAIRS = 16  # of mirrored perturbations: 32 episodes, and one of the unperturbed centre
SIGMA, RATE = 0.1, 0.05
EVERY = 10  # steps between two looks at the denominators
# Streams of random numbers; seeds of cells are below 100.
NOISE, MAPS, OTHER_MAPS, EPISODES, JUDGED = (stream * 1_000_000 for stream in range(1, 6))


def cells(quick: bool) -> list[Cell]:
    """One for each kind of attention and seed."""
    size: Cell = {"generations": GENERATIONS, "steps": STEPS}
    if quick:
        size = {"generations": QUICK_GENERATIONS, "steps": QUICK_STEPS}
    return [
        {"kind": kind, "seed": seed, **size}
        for seed in range(1 if quick else SEEDS)
        for kind in LABELS
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Train one policy; a row for each "generation", then one for each policy that is judged ("what")."""
    kind, seed, steps = str(cell["kind"]), int(cell["seed"]), int(cell["steps"])
    learned = attention(kind, MAPS + seed)
    # DenominatorWarning is not shown because every generation counts what it warns of
    with torch.no_grad(), warnings.catch_warnings(), Arena(2 * PAIRS + 1, steps=steps) as arena:
        warnings.simplefilter("ignore", DenominatorWarning)
        policy = Policy(arena.observed, arena.actions)
        start = policy.initial(torch.Generator().manual_seed(seed))
        strategy = EvolutionStrategy(
            start,
            pairs=PAIRS,
            sigma=SIGMA,
            rate=RATE,
            generator=torch.Generator().manual_seed(NOISE + seed),
        )
        normaliser = Normaliser(arena.observed)
        player = Player(policy, learned, normaliser)
        rows = []
        for generation in range(1, int(cell["generations"]) + 1):
            found = _generation(arena, strategy, player, EPISODES + 1_000 * seed + generation)
            env_steps = generation * arena.count * arena.steps
            rows.append({"generation": generation, "env_steps": env_steps, **found})
        sizes: Row = {"steps": steps, "parameters": policy.num_parameters, **_sizes(learned)}
        rows += [
            {**found, **sizes} for found in _judged(arena, player, seed, start, strategy.centre)
        ]
    return [{"kind": kind, "seed": seed, **row} for row in rows]


class Player:
    """Acts for a population, and counts denominators that are not positive."""

    def __init__(self, policy: Policy, attend: Attention, normaliser: Normaliser) -> None:
        self.policy, self.attend, self.normaliser = policy, attend, normaliser
        self.shares: list[float] = []

    def acting(self, parameters: Tensor) -> Callable[[np.ndarray], np.ndarray]:
        """The function from observations [p, n] to actions of policies [p, num_parameters]."""
        parts, self.shares, step = self.policy.parts(parameters), [], 0

        def act(observations: np.ndarray) -> np.ndarray:
            nonlocal step
            z = self.normaliser(observations)
            if isinstance(self.attend, Linear) and step % EVERY == 0:
                q, k, _ = self.policy.attended(parts, z)
                self.shares.append(self.attend.not_positive(q, k))
            step += 1
            return self.policy.act(parts, z, self.attend).numpy()

        return act

    @property
    def not_positive(self) -> float | None:
        """Share of the rows looked at since `acting`; None where there are no estimates."""
        return round(sum(self.shares) / len(self.shares), 5) if self.shares else None


def _generation(arena: Arena, strategy: EvolutionStrategy, player: Player, seed: int) -> Row:
    """All perturbed policies and their centre play one episode from the same initial state."""
    began = time.perf_counter()
    population = torch.cat((strategy.ask(), strategy.centre.unsqueeze(0)))
    played = arena.episodes(player.acting(population), [seed] * arena.count)
    player.normaliser.add(played.observations.reshape(-1, arena.observed))
    *returns, centre = played.returns.tolist()
    strategy.tell(torch.tensor(returns))
    return {
        "mean_return": round(float(np.mean(returns)), 2),
        "best_return": round(max(returns), 2),
        "centre_return": round(centre, 2),
        "seconds": round(time.perf_counter() - began, 3),
        "not_positive": player.not_positive,
    }


def _judged(arena: Arena, player: Player, seed: int, start: Tensor, end: Tensor) -> list[Row]:
    """Episodes that nothing was trained on: random, initial, trained, and with other attention."""

    def judge(what: str, act: Callable[[np.ndarray], np.ndarray]) -> Row:
        seeds = [JUDGED + 100 * seed + i for i in range(arena.count)]
        returns = arena.episodes(act, seeds).returns
        return {
            "what": what,
            "mean_return": round(float(returns.mean()), 2),
            "sd_return": round(float(returns.std(ddof=1)), 2),
            "episodes": arena.count,
        }

    def with_attention(what: str, parameters: Tensor, attend: Attention) -> Row:
        other = Player(player.policy, attend, player.normaliser)
        row = judge(what, other.acting(parameters.expand(arena.count, -1)))
        return {**row, "not_positive": other.not_positive}

    rows = [
        judge("random", random_actions(arena, JUDGED + seed)),
        with_attention("initial", start, player.attend),
        with_attention("trained", end, player.attend),
    ]
    others: dict[str, Attention] = {}
    if isinstance(player.attend, Linear):
        others = {"exact": Exact()}
    elif isinstance(player.attend, Exact):
        others = {kind: attention(kind, OTHER_MAPS + seed) for kind in LINEAR}
    return rows + [
        with_attention(f"replaced by {kind}", end, other) for kind, other in others.items()
    ]


def _sizes(attend: Attention) -> Row:
    if isinstance(attend, Linear):
        found = attend.feature_map
        return {"num_features": found.num_features, "num_projections": found.num_projections}
    return {"num_features": None, "num_projections": None}


EXPERIMENT = Experiment(
    name="hrf-robotics",
    title="Implicit-attention policies for locomotion",
    paper="Choromanski et al., Hybrid Random Features, 2022, downstream robotics applications",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("gymnasium", "mujoco", "matplotlib"),
)
