"""Belief propagation: exact on trees, near on grids, stationary where it has converged, and never silent."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bochner.structured import (
    Dense,
    LowRank,
    NotConvergedWarning,
    PairwiseGraph,
    Sweeps,
    Tree,
    belief_propagation,
)
from tests.structured.brute_graphs import Graph
from tests.structured.graph_cases import (
    forbidding,
    in_single,
    kinds,
    normal,
    potentials_of,
    precisions,
    random_parents,
    seeded,
    seeds,
    spreads,
    transitions_of,
)

FINE = Sweeps(tolerance=1e-12)


def close(found, expected, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=False
    )


def brute(graph: PairwiseGraph, unaries, transitions) -> Graph:
    edges = [tuple(edge) for edge in graph.edges.tolist()]
    return Graph(unaries.detach(), edges, potentials_of(transitions, graph.num_edges).detach())


@settings(max_examples=30, deadline=None)
@given(
    seeds,
    kinds,
    spreads,
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([0.0, 0.3]),
    precisions,
)
def test_exact_on_trees(seed, kind, spread, nodes, states, gone, damping, dtype) -> None:
    g = seeded(seed)
    parents = random_parents(nodes, g)
    edges = [
        # either direction: K is read in the order of the pair
        (child, parent) if torch.rand((), generator=g) < 0.5 else (parent, child)
        for child, parent in enumerate(parents)
        if parent >= 0
    ]
    graph = PairwiseGraph(nodes, edges)
    transitions = transitions_of(kind, states, len(edges), g, spread=spread)
    unaries = forbidding(normal(nodes, states, generator=g, spread=2.0), g, gone)
    smallest, tolerance = 1e-13, 1e-10
    if dtype == torch.float32:
        transitions, unaries = in_single(transitions), unaries.float()
        smallest, tolerance = 2e-6, 1e-4
    every = brute(graph, unaries, transitions)
    sweeps = Sweeps(tolerance=smallest, damping=damping)
    found = belief_propagation(graph, unaries, transitions, sweeps=sweeps)
    assert bool(found.converged)
    assert found.residual <= smallest
    if damping == 0:
        assert found.iterations <= nodes + 1
    close(found.log_partition, every.log_partition, tolerance)
    close(found.marginals, every.marginals, tolerance)
    for number, (i, j) in enumerate(edges):
        close(found.pairwise(number).dense(), every.pair(i, j), tolerance)


@pytest.mark.parametrize("kind", ["dense", "dense per edge", "low rank, two blocks"])
def test_weakly_coupled_grids_are_nearly_exact_and_stationary(kind: str) -> None:
    g = seeded(1)
    graph = PairwiseGraph.grid(2, 3)
    transitions = transitions_of(kind, 3, graph.num_edges, g, spread=0.3)
    unaries = normal(2, 6, 3, generator=g).requires_grad_()
    found = belief_propagation(graph, unaries, transitions, sweeps=FINE)
    assert bool(found.converged.all())
    assert found.residual.shape == (2,)
    (gradient,) = torch.autograd.grad(found.log_partition.sum(), unaries)
    close(gradient, found.marginals)  # at a fixed point Bethe's log Z is stationary in the messages
    for b in range(2):
        every = brute(graph, unaries[b], transitions)
        close(found.log_partition[b], every.log_partition, 2e-3)
        close(found.marginals[b], every.marginals, 1e-2)
        # beliefs of edges agree with those of their nodes
        pair = found.pairwise(2).dense()[b]
        i, j = graph.edges[2].tolist()
        close(pair.sum(-1), found.marginals[b, i])
        close(pair.sum(-2), found.marginals[b, j])


def test_the_gradient_by_features_is_the_edges_beliefs() -> None:
    g = seeded(2)
    graph = PairwiseGraph.grid(2, 2)
    table = normal(1, 3, 3, generator=g, spread=0.5).requires_grad_()
    found = belief_propagation(graph, normal(4, 3, generator=g), Dense(table), sweeps=FINE)
    (gradient,) = torch.autograd.grad(found.log_partition, table)
    beliefs = sum(found.pairwise(edge).dense() for edge in range(graph.num_edges))
    close(gradient[0], beliefs)


def test_bethe_is_the_closed_form_of_a_ring() -> None:
    # uniform messages are the fixed point: 3 log 2 + 3 log((1 + e) / 2)
    ring = PairwiseGraph(3, [(0, 1), (1, 2), (2, 0)])
    table = torch.eye(2, dtype=torch.float64)[None]
    found = belief_propagation(ring, torch.zeros(3, 2, dtype=torch.float64), Dense(table))
    close(found.log_partition, torch.tensor(3 * math.log(1 + math.e), dtype=torch.float64))


def test_damping_settles_what_swings() -> None:
    # four nodes that all repel each other: parallel updates swing for ever
    table = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]], dtype=torch.float64)
    unaries = normal(4, 2, generator=seeded(3), spread=0.5)
    graph = PairwiseGraph(4, [(i, j) for j in range(4) for i in range(j)])
    with pytest.warns(NotConvergedWarning, match="has not converged in 200 sweeps for 1 of 1"):
        swinging = belief_propagation(graph, unaries, Dense(table))
    assert not bool(swinging.converged)
    assert swinging.iterations == 200
    assert swinging.residual > 0.1
    damped = belief_propagation(graph, unaries, Dense(table), sweeps=Sweeps(damping=0.5))
    assert bool(damped.converged)
    assert damped.residual <= 1e-5


def test_the_warning_points_at_the_caller() -> None:
    graph = PairwiseGraph.grid(2, 2)
    transitions = transitions_of("dense", 3, 1, seeded(4))
    with pytest.warns(NotConvergedWarning) as caught:
        belief_propagation(
            graph, normal(4, 3, generator=seeded(5)), transitions, sweeps=Sweeps(limit=1)
        )
    assert caught[0].filename == __file__


def test_elements_of_a_batch_and_of_batched_transitions() -> None:
    g = seeded(5)
    graph = PairwiseGraph.grid(2, 2)
    left, right = normal(2, 3, 1, 4, 2, generator=g, spread=0.3)
    unaries = normal(3, 4, 4, generator=g)
    found = belief_propagation(graph, unaries, LowRank(left, right), sweeps=FINE)
    for b in range(3):
        one = belief_propagation(graph, unaries[b], LowRank(left[b], right[b]), sweeps=FINE)
        close(found.log_partition[b], one.log_partition, 1e-9)
        close(found.marginals[b], one.marginals, 1e-9)


def test_float32_and_messages_beyond_its_range() -> None:
    same = torch.full((1, 2, 2), -400.0)
    same[0].fill_diagonal_(0.0)
    unaries = torch.tensor([[0.0, -90.0], [0.0, 0.0], [-91.0, 0.0]])
    path = PairwiseGraph(3, [(0, 1), (1, 2)])
    found = belief_propagation(path, unaries, Dense(same))
    tree = Tree(Dense(same.double()), unaries.double(), parents=[-1, 0, 1])
    close(found.log_partition, tree.log_partition, 1e-4)
    close(found.marginals, tree.marginals, 1e-4)
    # one edge: a message and the node's own unaries meet at exp(-110)
    two = torch.tensor([[0.0, -1000.0], [-110.0, 0.0]])
    found = belief_propagation(PairwiseGraph(2, [(0, 1)]), two, Dense(same))
    close(found.log_partition, torch.tensor(-110.0), 1e-4)


def test_nothing_allowed_and_errors() -> None:
    path = PairwiseGraph(2, [(0, 1)])
    apart = torch.full((1, 2, 2), -math.inf)
    with pytest.raises(ValueError, match="allow nothing at all"):
        belief_propagation(path, torch.zeros(2, 2), Dense(apart))
    with pytest.raises(ValueError, match="unaries has 3 nodes, the graph 2"):
        belief_propagation(path, torch.zeros(3, 2), Dense(torch.zeros(1, 2, 2)))
    found = belief_propagation(path, torch.zeros(2, 2), Dense(torch.zeros(1, 2, 2)))
    with pytest.raises(ValueError, match="edge=1 is none of the 1 edges"):
        found.pairwise(1)


@pytest.mark.parametrize("damping", [0.0, 0.3, 0.9])
def test_it_has_not_converged_where_only_the_certain_beliefs_stand_still(damping: float) -> None:
    # damped messages approach log-odds of thousands, long next to certain, and only then outweigh others
    g = seeded(9)
    settings = Sweeps(damping=damping, limit=2000, tolerance=1e-9)
    for _ in range(40):
        parents = random_parents(5, g)
        path = PairwiseGraph(5, [(parents[c], c) for c in range(5) if parents[c] >= 0])
        transitions = LowRank(*normal(2, 1, 2, 3, generator=g, spread=100.0))
        unaries = normal(5, 2, generator=g, spread=100.0)
        found = belief_propagation(path, unaries, transitions, sweeps=settings)
        assert bool(found.converged)
        tree = Tree(transitions, unaries, parents=parents)
        close(found.log_partition, tree.log_partition, 1e-6)
        close(found.marginals, tree.marginals, 1e-6)


def test_states_that_are_forbidden_far_away_are_waited_for() -> None:
    # the message (0, -inf) arrives after four sweeps; until then the nodes at the end stand still
    chain = PairwiseGraph(5, [(t, t + 1) for t in range(4)])
    unaries = torch.zeros(5, 2)
    unaries[0, 1] = -math.inf
    same = torch.full((2, 2), -math.inf).fill_diagonal_(0.0)[None]
    found = belief_propagation(chain, unaries, Dense(same))
    close(found.marginals, torch.tensor([1.0, 0.0]).expand(5, 2))


def test_transitions_are_read_anew() -> None:
    left = normal(1, 3, 2, generator=seeded(10)).float().requires_grad_()
    transitions, path = LowRank(left, left), PairwiseGraph(2, [(0, 1)])
    unaries = normal(2, 3, generator=seeded(11)).float()
    before = belief_propagation(path, unaries, transitions)
    before.log_partition.backward()
    with torch.no_grad():
        left += 1.0
    after = belief_propagation(path, unaries, transitions)
    after.log_partition.backward()
    close(after.log_partition - before.log_partition, torch.tensor(2.0), 1e-5)
