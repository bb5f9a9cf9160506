"""Metropolis weights and spectral gaps against their closed forms."""

import numpy as np
import pytest

from bochner.gram.graphs import (
    checked_weights,
    complete,
    grid,
    metropolis_weights,
    ring,
    spectral_gap,
)

GRAPHS = [ring(2), ring(3), ring(8), grid(1, 5), grid(3, 4), complete(1), complete(6)]


@pytest.mark.parametrize("graph", GRAPHS, ids=len)
def test_weights_are_symmetric_and_doubly_stochastic_on_the_edges(graph):
    weights = metropolis_weights(graph)
    assert np.array_equal(weights, weights.T)
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(graph)), abs=1e-15)
    assert (weights >= 0).all()
    off = ~np.eye(len(graph), dtype=bool)
    assert np.array_equal(weights[off] > 0, graph[off])


def test_weight_of_an_edge_is_that_of_its_busier_end():
    star = np.zeros((4, 4), dtype=bool)
    star[0, 1:] = star[1:, 0] = True
    weights = metropolis_weights(star)
    assert weights[0, 1:] == pytest.approx(np.full(3, 1 / 4))
    assert weights[1, 1] == pytest.approx(3 / 4)


@pytest.mark.parametrize("agents", [3, 8, 25])
def test_gap_of_a_ring(agents):
    """A circulant: eigenvalues (1 + 2 cos(2 pi j / V)) / 3."""
    eigenvalues = (1 + 2 * np.cos(2 * np.pi * np.arange(1, agents) / agents)) / 3
    expected = 1 - abs(eigenvalues).max()
    assert spectral_gap(metropolis_weights(ring(agents))) == pytest.approx(expected, abs=1e-12)


def test_gap_of_a_complete_graph_is_one():
    assert spectral_gap(metropolis_weights(complete(7))) == pytest.approx(1, abs=1e-12)
    assert spectral_gap(metropolis_weights(complete(1))) == 1


def test_disagreement_shrinks_by_the_gap():
    weights = metropolis_weights(grid(3, 4))
    start = np.random.default_rng(0).normal(size=12)
    spread = start - start.mean()
    factor = 1 - spectral_gap(weights)
    for steps in (1, 5, 40):
        left = np.linalg.matrix_power(weights, steps) @ start
        assert left.mean() == pytest.approx(start.mean())
        assert np.linalg.norm(left - start.mean()) <= factor**steps * np.linalg.norm(spread) * (
            1 + 1e-12
        )
    # tight: after many rounds the slowest mode is all that is left
    late = [np.linalg.norm(np.linalg.matrix_power(weights, t) @ spread) for t in (60, 61)]
    assert late[1] / late[0] == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (np.eye(3), "their own neighbours"),
        (np.triu(np.ones((3, 3)), 1), "not symmetric"),
        (np.ones((2, 3)), r"shape \[2, 3\]"),
        (np.kron(np.eye(2), [[0, 1], [1, 0]]), r"agents \[2, 3\] never hear"),
    ],
)
def test_graphs_that_are_none(graph, message):
    with pytest.raises(ValueError, match=message):
        metropolis_weights(graph)


def test_a_gap_wants_weights():
    with pytest.raises(ValueError, match="sum to 1"):
        spectral_gap(ring(4).astype(float))


def test_a_rectangle_has_sides():
    with pytest.raises(ValueError, match="graph of -3 agents"):
        grid(-2, -3)


def test_weights_that_are_no_numbers():
    with pytest.raises(ValueError, match="rows that sum to 1"):
        checked_weights(np.full((3, 3), np.nan))
