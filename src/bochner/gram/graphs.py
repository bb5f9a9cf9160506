"""Graphs of agents, and the weights with which neighbours average.

    P_vu = 1 / (1 + max(deg_v, deg_u))   for an edge,     P_vv = 1 - sum_u P_vu        (Metropolis)

P is symmetric and doubly stochastic: averaging with it keeps the mean over agents, and after t rounds what
is left of their disagreement is at most sigma^t of it, sigma = max(|lambda_2|, |lambda_V|), which is below 1
on a connected graph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Adjacency = NDArray[np.bool_]
"""[V, V], symmetric, no agent its own neighbour."""
Float = NDArray[np.float64]


def ring(agents: int) -> Adjacency:
    """Each agent knows the one before and the one after.

    Example:
        >>> ring(4).sum(axis=1)
        array([2, 2, 2, 2])
    """
    _check_agents(agents)
    number = np.arange(agents)
    after = (number[:, None] + 1) % agents == number
    return _without_self(after | after.T)


def grid(rows: int, columns: int) -> Adjacency:
    """Agents in a rectangle, row by row; up to four neighbours.

    Example:
        >>> grid(3, 3).sum(axis=1)
        array([2, 3, 2, 3, 4, 3, 2, 3, 2])
    """
    _check_agents(min(rows, columns))
    row, column = np.divmod(np.arange(rows * columns), columns)
    distance = abs(row[:, None] - row) + abs(column[:, None] - column)
    return distance == 1


def complete(agents: int) -> Adjacency:
    """Everybody knows everybody.

    Example:
        >>> complete(4).sum(axis=1)
        array([3, 3, 3, 3])
    """
    _check_agents(agents)
    return _without_self(np.ones((agents, agents), dtype=bool))


def metropolis_weights(adjacency: Adjacency) -> Float:
    """P of a graph, by what neighbours can tell each other: their degrees.

    Shapes:     adjacency [V, V] of bool -> [V, V], symmetric, rows and columns sum to 1.
    Raises:     ValueError if the graph is not square, not symmetric, has loops or is not connected.
    Example:
        >>> metropolis_weights(grid(1, 3)).round(3).tolist()
        [[0.667, 0.333, 0.0], [0.333, 0.333, 0.333], [0.0, 0.333, 0.667]]
    """
    adjacency = checked_graph(adjacency)
    degree = adjacency.sum(axis=1)
    weights = adjacency / (1.0 + np.maximum(degree[:, None], degree))
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def spectral_gap(weights: Float) -> float:
    """1 - max(|lambda_2|, |lambda_V|): the rate at which averaging forgets who said what.

    Shapes:     weights [V, V], symmetric and doubly stochastic.
    Raises:     ValueError for other weights.
    Example:
        >>> [round(spectral_gap(metropolis_weights(g)), 3) for g in (ring(16), grid(4, 4), complete(16))]
        [0.051, 0.131, 1.0]
    """
    weights = checked_weights(weights)
    sizes = np.sort(abs(np.linalg.eigvalsh(weights)))
    return float(1.0 - sizes[-2]) if len(sizes) > 1 else 1.0


def checked_graph(adjacency: Adjacency) -> Adjacency:
    """The graph as bool [V, V].

    Raises:     ValueError as `metropolis_weights` says.
    """
    graph = np.asarray(adjacency)
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or graph.shape[0] < 1:
        raise ValueError(f"adjacency has shape {list(graph.shape)}; expected [V, V].")
    graph = graph.astype(bool)
    if np.any(graph != graph.T):
        raise ValueError("adjacency is not symmetric; an edge is known to both of its agents.")
    if graph.diagonal().any():
        raise ValueError("adjacency has agents that are their own neighbours; clear its diagonal.")
    reached = np.zeros(len(graph), dtype=bool)
    reached[0] = True
    for _ in range(len(graph)):
        reached = reached | graph[reached].any(axis=0)
    if not reached.all():
        raise ValueError(
            f"adjacency is not connected: agents {np.flatnonzero(~reached).tolist()} never hear from"
            " agent 0 and could not agree with it; add edges."
        )
    return graph


def checked_weights(weights: Float) -> Float:
    """Weights as float64 [V, V].

    Raises:     ValueError unless they are symmetric and doubly stochastic.
    """
    found = np.asarray(weights, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1]:
        raise ValueError(f"weights have shape {list(found.shape)}; expected [V, V].")
    rounding = 8 * len(found) * np.finfo(np.float64).eps
    apart = max(abs(found - found.T).max(), abs(found.sum(axis=1) - 1).max())
    if not apart <= rounding:  # NaN too
        raise ValueError(
            "weights must be symmetric with rows that sum to 1; metropolis_weights(graph) gives such."
        )
    return found


def _without_self(adjacency: Adjacency) -> Adjacency:
    return adjacency & ~np.eye(len(adjacency), dtype=bool)


def _check_agents(agents: int) -> None:
    if agents < 1:
        raise ValueError(f"a graph of {agents} agents; expected at least one.")
