"""Decentralised gradient descent: agents on a graph, each with its own rows, none with all of them.

    w_0^v = 0,    w_{t+1}^v = sum_u P_vu ( w_t^u - eta (G_u w_t^u - h_u) / n_u )

All agents use the same random features (one seed), so that what they exchange are m numbers a target, never
rows. There is no penalty and no coordinator: the number of steps regularises. Where an all-reduce is to be
had, `bochner.gram.distributed` gives the exact sums, and with them ridge regression, in one exchange.

Reference:  Richards, Rebeschini, Rosasco, Decentralised Learning with Random Features and Distributed
            Gradient Descent, 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from bochner.gram.descent import checked_step
from bochner.gram.graphs import checked_weights
from bochner.gram.statistics import GramStatistics

Float = NDArray[np.float64]


def gossip(
    statistics: Sequence[GramStatistics], weights: Float, *, step_size: float
) -> Iterator[Float]:
    """The agents' coefficients after 0, 1, 2, ... steps, simulated in one process; it never ends.

    Shapes:     yields [V, m, k], one array for each step; agent v's own in row v.
    Arguments:  statistics: one of each agent, of the same features; weights: P [V, V], symmetric, doubly
                stochastic, as `metropolis_weights` gives; step_size: eta, at most 1 / |phi|^2.
    Error:      every agent counts the same, whatever its number of rows. On a complete graph P is the
                mean and each step is a step of `GradientPath` on all agents together.
    Cost:       V m^2 k for each step.
    Raises:     ValueError if the numbers of agents differ or a step would diverge.
    Example:
        >>> from itertools import islice
        >>> from bochner.gram.graphs import complete, metropolis_weights
        >>> agents = [GramStatistics.of(np.ones((4, 1)), np.full((4, 1), y)) for y in (1.0, 3.0)]
        >>> steps = gossip(agents, metropolis_weights(complete(2)), step_size=0.5)
        >>> [w.ravel().tolist() for w in islice(steps, 4)]
        [[0.0, 0.0], [1.0, 1.0], [1.5, 1.5], [1.75, 1.75]]
    """
    weights = checked_weights(weights)
    if len(weights) != len(statistics):
        raise ValueError(f"weights are of {len(weights)} agents, statistics of {len(statistics)}.")
    agents = [_Agent(own, step_size) for own in statistics]
    coefficients = np.stack([agent.start for agent in agents])
    while True:
        yield coefficients
        total = np.zeros_like(coefficients)
        for agent, w, column in zip(agents, coefficients, weights.T, strict=True):
            total += column[:, None, None] * agent.moved(w)
        coefficients = total


def gossip_rank(
    statistics: GramStatistics,
    weights: Float,
    *,
    step_size: float,
    group: dist.ProcessGroup | None = None,
) -> Iterator[Float]:
    """This rank's coefficients after 0, 1, 2, ... steps; agents are the ranks of a process group.

    Every rank of the group must go the same number of steps. Messages go to neighbours only: m k float64
    numbers along each edge and direction in a step.

    Shapes:     yields [m, k], the same bits as row `rank` of `gossip`.
    Arguments:  statistics: of this rank's rows; weights: P [V, V], the same on all ranks; group:
                torch.distributed's, the default one if None, of a backend that sends CPU tensors (gloo).
    Raises:     ValueError if the group has another size than P, or a step would diverge; RuntimeError
                without a process group. A rank that stops early is noticed by the group's timeout.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "torch.distributed is not initialised: call torch.distributed.init_process_group first;"
            " bochner.gram.gossip simulates all agents in one process."
        )
    weights = checked_weights(weights)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if len(weights) != size:
        raise ValueError(f"weights are of {len(weights)} agents; the group has {size} ranks.")
    agent = _Agent(statistics, step_size)
    row = weights[rank]
    neighbours = [int(u) for u in np.flatnonzero(row) if u != rank]
    own = agent.start
    while True:
        yield own
        parts = _exchanged(agent.moved(own), rank, neighbours, group)
        own = _mixed(row, parts)


class _Agent:
    """The gradient step on one agent's rows."""

    def __init__(self, statistics: GramStatistics, step_size: float) -> None:
        rows = float(statistics.weight)
        if not rows > 0:
            raise ValueError(f"an agent's statistics have weight {rows}; expected some rows.")
        self._hessian = statistics.gram / rows
        self._target = statistics.cross / rows
        largest = float(np.linalg.eigvalsh(self._hessian)[-1])
        self._step = checked_step(step_size, largest)
        self.start = np.zeros_like(self._target)

    def moved(self, own: Float) -> Float:
        """One step down."""
        return own - self._step * (self._hessian @ own - self._target)


def _mixed(row: Float, parts: Sequence[Float | None]) -> Float:
    """sum_u P_vu part_u in the order of the agents: the same bits on a rank and in the simulation, whose
    zeros change nothing."""
    total: Float = np.array(0.0)
    for weight, part in zip(row, parts, strict=True):
        if part is not None:
            total = total + weight * part
    return total


def _exchanged(
    own: Float, rank: int, neighbours: Sequence[int], group: dist.ProcessGroup | None
) -> list[Float | None]:
    """What each agent of the group has, None for those that are no neighbours."""
    parts: list[Float | None] = [None] * dist.get_world_size(group)
    parts[rank] = own
    message = torch.from_numpy(own)
    received = [torch.empty_like(message) for _ in neighbours]
    waiting = []
    for other, place in zip(neighbours, received, strict=True):
        peer = other if group is None else dist.get_global_rank(group, other)
        waiting.append(dist.P2POp(dist.isend, message, peer, group))
        waiting.append(dist.P2POp(dist.irecv, place, peer, group))
    for request in dist.batch_isend_irecv(waiting) if waiting else []:
        request.wait()
    for other, place in zip(neighbours, received, strict=True):
        parts[other] = place.numpy()
    return parts
