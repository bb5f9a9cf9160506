"""Random small models of every kind for hypothesis: sizes down to 1, forbidden states, several blocks."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from bochner.structured import Dense, LowRank, Transitions

seeds = st.integers(0, 2**31 - 1)
kinds = st.sampled_from(
    ["dense", "dense per edge", "dense with zeros per edge", "low rank", "low rank, two blocks"]
)
spreads = st.sampled_from([0.0, 1.0, 6.0])
precisions = st.sampled_from([torch.float64, torch.float64, torch.float32])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, generator: torch.Generator, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)


def transitions_of(
    kind: str, states: int, edges: int, generator: torch.Generator, *, spread: float = 1.0
) -> Transitions:
    if kind.startswith("dense"):
        blocks = max(1, edges) if "edge" in kind else 1
        table = normal(blocks, states, states, generator=generator, spread=spread)
        # state 0 always has a way to go on: `forbidding` leaves it everywhere
        return Dense(forbidding(table, generator, 0.5) if "zeros" in kind else table)
    blocks = 2 if "blocks" in kind else 1
    left, right = normal(2, blocks, states, 2, generator=generator, spread=spread)
    return LowRank(left, right)


def in_single(transitions: Transitions) -> Transitions:
    return transitions.with_tensors([tensor.float() for tensor in transitions.tensors()])


def potentials_of(transitions: Transitions, edges: int) -> Tensor:
    """log K of every edge, [E, X, X], in float64."""
    every, exact = slice(0, transitions.num_states), transitions.double()
    tables = [exact.log_block(edge, every) for edge in range(edges)]
    return torch.stack(tables) if tables else torch.zeros(0, 1, 1)


def forbidding(unaries: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Some states forbidden, never all of a row."""
    gone = torch.rand(unaries.shape, generator=generator) < share
    gone[..., 0] = False
    return unaries.masked_fill(gone, -math.inf)


def random_parents(nodes: int, generator: torch.Generator, *, ordered: bool = True) -> list[int]:
    """A random forest; parents before their children if ordered, else in any order."""
    parents = [-1]
    for node in range(1, nodes):
        # -1 with probability 1 / (node + 3): mostly one tree, sometimes several
        drawn = int(torch.randint(-1, node + 2, (), generator=generator))
        parents.append(drawn if drawn < node else node - 1)
    if ordered:
        return parents
    order = torch.randperm(nodes, generator=generator).tolist()
    moved = [-1] * nodes
    for node, parent in enumerate(parents):
        moved[order[node]] = -1 if parent < 0 else order[parent]
    return moved
