"""The shape of a rooted tree, or of several: who is whose parent, by levels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Forest:
    """Nodes 0 .. T-1 by their parents, in any order; -1 marks a root, and there may be several.

    Every node but the roots has an edge to its parent. Edges are numbered in the order of the children:
    where node 0 is the only root, edge t-1 leads to node t, as in a chain.

    Shapes:     parents [T] of integers, or a list.
    Raises:     ValueError for a parent that does not exist, for a circle, or without a root.
    Example:
        >>> tree = Forest([-1, 0, 0, 1])
        >>> tree.num_edges, [level.tolist() for level in tree.levels]
        (3, [[0], [1, 2], [3]])
    """

    def __init__(self, parents: Tensor | Sequence[int]) -> None:
        self.parents = _checked(parents)
        self.children = (self.parents >= 0).nonzero().squeeze(-1)
        self._depths = _depths(self.parents.tolist())

    @property
    def num_nodes(self) -> int:
        """T."""
        return len(self.parents)

    @property
    def num_edges(self) -> int:
        """E = T minus the number of roots."""
        return len(self.children)

    @cached_property
    def levels(self) -> list[Tensor]:
        """Nodes by depth, the roots first."""
        depths = torch.tensor(self._depths)
        return [(depths == d).nonzero().squeeze(-1) for d in range(max(self._depths) + 1)]

    @cached_property
    def parent_places(self) -> list[Tensor]:
        """For every level but the first: where, in the level above, the parents of its nodes are."""
        place = torch.zeros(self.num_nodes, dtype=torch.long)
        for level in self.levels:
            place[level] = torch.arange(len(level))
        return [place[self.parents[level]] for level in self.levels[1:]]

    @cached_property
    def edge_of(self) -> Tensor:
        """The number of the edge from each node to its parent, [T]; -1 for a root."""
        edges = torch.full((self.num_nodes,), -1)
        edges[self.children] = torch.arange(self.num_edges)
        return edges

    def __repr__(self) -> str:
        return f"Forest({self.num_nodes} nodes, {len(self.levels[0])} roots, depth {len(self.levels) - 1})"


def _checked(parents: Tensor | Sequence[int]) -> Tensor:
    if not isinstance(parents, Tensor) and any(parent is None for parent in parents):
        raise TypeError("parents holds None; expected integers, -1 for a root.")
    found = torch.as_tensor(parents)
    if found.is_floating_point() or found.dtype == torch.bool or found.ndim != 1 or len(found) == 0:
        raise ValueError(
            f"parents has shape {list(found.shape)} and dtype {found.dtype}; expected integers [T] with"
            " T >= 1: the parent of every node, -1 for a root."
        )
    found = found.long().cpu()
    bad = ((found < -1) | (found >= len(found))).nonzero()
    if len(bad):
        node = int(bad[0])
        raise ValueError(
            f"parents[{node}]={int(found[node])} is no node; expected 0 to {len(found) - 1}, or -1"
            " for a root."
        )
    return found


def _depths(parents: list[int]) -> list[int]:
    depths = [0 if parent < 0 else -1 for parent in parents]
    for start in range(len(parents)):
        path = []
        node = start
        while depths[node] < 0:
            path.append(node)
            node = parents[node]
            if len(path) > len(parents):
                raise ValueError(
                    f"parents has a circle through node {node}: following parents from node {start} never"
                    " ends at a root; mark one node of every tree with -1."
                )
        for below, found in enumerate(reversed(path), start=depths[node] + 1):
            depths[found] = below
    return depths
