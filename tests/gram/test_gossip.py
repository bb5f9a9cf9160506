"""Agents on a graph: against the formula, against descent on all rows, and on gloo bit for bit."""

from itertools import islice

import numpy as np
import pytest
import torch.distributed as dist

from bochner.gram.descent import GradientPath
from bochner.gram.gossip import gossip, gossip_rank
from bochner.gram.graphs import complete, grid, metropolis_weights, ring
from bochner.gram.statistics import GramStatistics
from tests.attention.processes import Raised


def agents(count=3, rows=40, features=5, seed=0):
    """(features, targets) of each agent."""
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(rows, features)) / features**0.5, rng.normal(size=(rows, 2)))
        for _ in range(count)
    ]


def statistics(parts):
    return [GramStatistics.of(phi, y) for phi, y in parts]


def after(steps, iterator):
    return next(islice(iterator, steps, None))


def test_equals_the_formula_row_by_row():
    parts, weights = agents(4), metropolis_weights(ring(4))
    w = [np.zeros((5, 2))] * 4
    for _ in range(6):
        moved = [
            w[u]
            - 0.4 / len(phi) * sum(np.outer(p, p @ w[u] - t) for p, t in zip(phi, y, strict=True))
            for u, (phi, y) in enumerate(parts)
        ]
        w = [sum(weights[v, u] * moved[u] for u in range(4)) for v in range(4)]
    found = after(6, gossip(statistics(parts), weights, step_size=0.4))
    np.testing.assert_allclose(found, np.stack(w), rtol=1e-11)


def test_a_complete_graph_descends_on_all_rows():
    parts = agents(6)
    own = statistics(parts)
    found = after(20, gossip(own, metropolis_weights(complete(6)), step_size=0.5))
    path = GradientPath(sum(own[1:], own[0]), step_size=0.5)
    np.testing.assert_allclose(found, np.stack([path.coefficients([20])[0]] * 6), rtol=1e-10)


def test_the_mean_follows_descent_and_agents_agree_in_the_end():
    """Equal Hessians: the mean over agents is the path itself on any graph; the spread shrinks."""
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(40, 5)) / 5**0.5
    own = [GramStatistics.of(phi, rng.normal(size=(40, 1))) for _ in range(9)]
    steps = gossip(own, metropolis_weights(grid(3, 3)), step_size=0.5)
    at = {t: w for t, w in enumerate(islice(steps, 61)) if t in (1, 10, 60)}
    path = GradientPath(sum(own[1:], own[0]), step_size=0.5)
    for t, w in at.items():
        np.testing.assert_allclose(w.mean(axis=0), path.coefficients([t])[0], rtol=1e-9, atol=1e-12)


def test_refusals():
    own = statistics(agents(3))
    with pytest.raises(ValueError, match="weights are of 4 agents, statistics of 3"):
        next(gossip(own, metropolis_weights(ring(4)), step_size=0.1))
    with pytest.raises(ValueError, match="step_size=100"):
        next(gossip(own, metropolis_weights(ring(3)), step_size=100))
    with pytest.raises(ValueError, match="some rows"):
        next(gossip([GramStatistics.zeros(5, 2)], np.ones((1, 1)), step_size=1))
    with pytest.raises(ValueError, match="sum to 1"):
        next(gossip(own, np.ones((3, 3)), step_size=0.1))


def test_without_a_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        next(gossip_rank(statistics(agents(1))[0], np.ones((1, 1)), step_size=0.1))


# -- on gloo ------------------------------------------------------------------------------------------
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


def descend(rank, own, weights, steps):
    return after(steps, gossip_rank(own, weights, step_size=0.4))


def descend_in_a_subgroup(rank, own, weights, steps):
    group = dist.new_group([1, 2])
    if rank == 0:
        return None
    return after(steps, gossip_rank(own, weights, step_size=0.4, group=group))


@pytest.mark.parametrize("graph", [grid(1, 3), complete(3)], ids=["path", "complete"])
def test_on_gloo_bit_for_bit(three, graph):
    own, weights = statistics(agents(3)), metropolis_weights(graph)
    found = three.run(descend, [(s, weights, 25) for s in own])
    expected = after(25, gossip(own, weights, step_size=0.4))
    for rank in range(3):
        assert np.array_equal(found[rank], expected[rank])
    assert not np.array_equal(found[0], found[2]) or graph.all()


def test_in_a_group_of_some_ranks(three):
    own, weights = statistics(agents(2)), metropolis_weights(complete(2))
    found = three.run(descend_in_a_subgroup, [(s, weights, 5) for s in (own[0], *own)])
    assert np.array_equal(found[1:], after(5, gossip(own, weights, step_size=0.4)))


def test_a_graph_of_another_size(three):
    own, weights = statistics(agents(3)), metropolis_weights(ring(4))
    answers = three.answers(descend, [(s, weights, 1) for s in own])
    assert all(isinstance(a, Raised) and "the group has 3 ranks" in a.message for a in answers)
