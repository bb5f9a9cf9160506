"""Which nodes of a graph are joined, for mean field and loopy belief propagation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from bochner.validation import check_count


class PairwiseGraph:
    """Nodes 0 .. num_nodes-1 with edges (i, j): a pairwise potential K(x_i, x_j) is read in that order.

    Shapes:     edges [E, 2] of integers, or a list of pairs.
    Raises:     ValueError for an edge that leaves the nodes, joins a node with itself or comes twice
                (in either direction: multiply their potentials into one edge instead).
    Example:
        >>> grid = PairwiseGraph.grid(2, 3)
        >>> grid.num_edges, [len(c) for c in grid.colours]     # a chessboard: no edge within a colour
        (7, [3, 3])
    """

    def __init__(self, num_nodes: int, edges: Tensor | Sequence[tuple[int, int]]) -> None:
        self.num_nodes = check_count("num_nodes", num_nodes)
        self.edges = _checked_edges(edges, num_nodes)

    @classmethod
    def grid(cls, height: int, width: int) -> PairwiseGraph:
        """A grid of height x width nodes, row by row; edges to the right and downwards."""
        check_count("height", height)
        check_count("width", width)
        nodes = torch.arange(height * width).reshape(height, width)
        right = torch.stack([nodes[:, :-1].flatten(), nodes[:, 1:].flatten()], dim=-1)
        down = torch.stack([nodes[:-1].flatten(), nodes[1:].flatten()], dim=-1)
        return cls(height * width, torch.cat([right, down]))

    @property
    def num_edges(self) -> int:
        """E."""
        return len(self.edges)

    @cached_property
    def colours(self) -> list[Tensor]:
        """Groups of nodes without an edge inside a group (greedily; two for a grid, in order)."""
        neighbours: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for i, j in self.edges.tolist():
            neighbours[i].append(j)
            neighbours[j].append(i)
        colour = [-1] * self.num_nodes
        for start in range(self.num_nodes):
            # breadth first, so that every even cycle and tree gets its two colours
            waiting = [start] if colour[start] < 0 else []
            for node in waiting:
                if colour[node] < 0:
                    taken = {colour[other] for other in neighbours[node]}
                    colour[node] = next(c for c in range(len(taken) + 1) if c not in taken)
                    waiting += [other for other in neighbours[node] if colour[other] < 0]
        found = torch.tensor(colour)
        return [(found == c).nonzero().squeeze(-1) for c in range(int(found.max()) + 1)]

    def __repr__(self) -> str:
        return f"PairwiseGraph(num_nodes={self.num_nodes}, num_edges={self.num_edges})"


def _checked_edges(edges: Tensor | Sequence[tuple[int, int]], num_nodes: int) -> Tensor:
    found = torch.as_tensor(edges)
    if found.numel() == 0:
        return torch.zeros(0, 2, dtype=torch.long)
    if found.is_floating_point() or found.ndim != 2 or found.shape[1] != 2:
        raise ValueError(
            f"edges has shape {list(found.shape)} and dtype {found.dtype};"
            " expected integers [E, 2], one row (i, j) per edge."
        )
    found = found.long()
    if int(found.min()) < 0 or int(found.max()) >= num_nodes:
        raise ValueError(
            f"edges holds the node {int(found.max()) if int(found.min()) >= 0 else int(found.min())};"
            f" expected nodes from 0 to {num_nodes - 1} (num_nodes={num_nodes})."
        )
    loops = (found[:, 0] == found[:, 1]).nonzero()
    if len(loops):
        raise ValueError(
            f"edges[{int(loops[0])}] joins node {int(found[loops[0], 0])} with itself; add that"
            " potential's diagonal to the node's unaries."
        )
    ordered = found.sort(dim=1).values
    if len(ordered.unique(dim=0)) < len(found):
        raise ValueError(
            "edges holds a pair of nodes twice; multiply the two potentials into one edge."
        )
    return found
