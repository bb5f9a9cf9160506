"""Graphs: edges of a grid, colours without inner edges, and errors that say what is wrong."""

import pytest
import torch

from bochner.structured import Forest, PairwiseGraph, Sweeps
from tests.structured.graph_cases import seeded


def test_grids() -> None:
    grid = PairwiseGraph.grid(3, 4)
    assert (grid.num_nodes, grid.num_edges) == (12, 3 * 3 + 2 * 4)
    assert {abs(i - j) for i, j in grid.edges.tolist()} == {1, 4}
    assert (3, 4) not in [tuple(edge) for edge in grid.edges.tolist()]
    assert PairwiseGraph.grid(1, 1).num_edges == 0


@pytest.mark.parametrize("nodes", [1, 5, 12])
def test_colours_partition_the_nodes_and_hold_no_edge(nodes: int) -> None:
    g = seeded(nodes)
    pairs = [(i, j) for j in range(nodes) for i in range(j) if torch.rand((), generator=g) < 0.4]
    graph = PairwiseGraph(nodes, pairs)
    assert torch.cat(graph.colours).sort().values.tolist() == list(range(nodes))
    for colour in graph.colours:
        inside = torch.isin(graph.edges, colour).all(dim=1)
        assert not inside.any()


def test_even_cycles_and_trees_need_two_colours() -> None:
    ring = PairwiseGraph(6, [(0, 1), (2, 1), (2, 3), (4, 3), (4, 5), (0, 5)])
    assert len(ring.colours) == 2
    assert len(PairwiseGraph.grid(4, 5).colours) == 2
    assert len(PairwiseGraph(4, [(0, 3), (3, 1), (1, 2)]).colours) == 2
    assert len(PairwiseGraph(3, [(0, 1), (1, 2), (2, 0)]).colours) == 3


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 3)], "holds the node 3"),
        ([(0, -1)], "holds the node -1"),
        ([(1, 1)], "joins node 1 with itself"),
        ([(0, 1), (1, 0)], "a pair of nodes twice"),
        (torch.zeros(2, 3).long(), r"expected integers \[E, 2\]"),
        (torch.zeros(2, 2), r"expected integers \[E, 2\]"),
        ([(0.5, 1)], r"expected integers \[E, 2\]"),
    ],
)
def test_errors_of_edges(edges, message) -> None:
    with pytest.raises(ValueError, match=message):
        PairwiseGraph(3, edges)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit=0"),
        ({"tolerance": 0.0}, "must be a positive number"),
        ({"tolerance": float("nan")}, "must be a positive number"),
        ({"damping": 1.0}, "damping=1.0 must be at least 0 and below 1"),
        ({"damping": -0.1}, "damping=-0.1"),
    ],
)
def test_errors_of_sweeps(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Sweeps(**settings)


def test_levels_of_a_forest() -> None:
    forest = Forest([2, -1, 1, -1, 0])
    assert [level.tolist() for level in forest.levels] == [[1, 3], [2], [0], [4]]
    assert forest.children.tolist() == [0, 2, 4]
    assert forest.edge_of.tolist() == [0, -1, 1, -1, 2]
    assert repr(forest) == "Forest(5 nodes, 2 roots, depth 3)"
