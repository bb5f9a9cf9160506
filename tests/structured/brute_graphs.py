"""Enumeration of every configuration of a small graph and of every segmentation of a short sequence.

Slow on purpose, in float64, with nothing in common with the recursions that it judges.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """Every configuration of N nodes: unaries [N, X], edges (i, j), their log-potentials [E, X, X]."""

    unaries: Tensor
    edges: list[tuple[int, int]]
    potentials: Tensor

    @cached_property
    def configurations(self) -> Tensor:
        nodes, states = self.unaries.shape
        every = torch.arange(states).repeat(nodes, 1)
        return torch.cartesian_prod(*every).reshape(-1, nodes)

    def score(self, states: Tensor) -> Tensor:
        """[..., N] -> [...]."""
        total = self.unaries.double().gather(1, states.reshape(-1, len(self.unaries)).T).sum(0)
        total = total.reshape(states.shape[:-1])
        for (i, j), table in zip(self.edges, self.potentials.double(), strict=True):
            total = total + table[states[..., i], states[..., j]]
        return total

    @cached_property
    def scores(self) -> Tensor:
        return self.score(self.configurations)

    @property
    def log_partition(self) -> Tensor:
        return torch.logsumexp(self.scores, 0)

    @property
    def probabilities(self) -> Tensor:
        return torch.softmax(self.scores, 0)

    @property
    def marginals(self) -> Tensor:
        """[N, X]."""
        one_hot = torch.nn.functional.one_hot(self.configurations, self.unaries.shape[1])
        return torch.einsum("c,cnx->nx", self.probabilities, one_hot.double())

    def pair(self, i: int, j: int) -> Tensor:
        """P(x_i, x_j), [X, X]."""
        size = self.unaries.shape[1]
        found = torch.zeros(size * size, dtype=torch.float64)
        index = self.configurations[:, i] * size + self.configurations[:, j]
        return found.index_add(0, index, self.probabilities).reshape(size, size)

    @property
    def entropy(self) -> Tensor:
        return torch.special.entr(self.probabilities).sum()

    @property
    def best(self) -> Tensor:
        """The largest score."""
        return self.scores.max()


def tree_graph(unaries: Tensor, parents: list[int], potentials: Tensor) -> Graph:
    """The nodes of a forest; potentials [E, X, X] (parent's state first) in the order of the children."""
    edges = [(parent, child) for child, parent in enumerate(parents) if parent >= 0]
    return Graph(unaries, edges, potentials)


@dataclass(frozen=True)
class Segmentations:
    """Every segmentation of T steps with its labels.

    unaries [T, X], transitions [T-1, X, X] (the boundary after step t uses t), log_durations [X, K].
    A configuration is a list of (label, duration).
    """

    unaries: Tensor
    transitions: Tensor
    log_durations: Tensor

    @cached_property
    def configurations(self) -> list[tuple[tuple[int, int], ...]]:
        steps, states = self.unaries.shape
        longest = self.log_durations.shape[1]

        def splits(left: int) -> list[tuple[int, ...]]:
            if left == 0:
                return [()]
            return [
                (k, *rest) for k in range(1, min(left, longest) + 1) for rest in splits(left - k)
            ]

        return [
            tuple(zip(labels, durations, strict=True))
            for durations in splits(steps)
            for labels in itertools.product(range(states), repeat=len(durations))
        ]

    def score(self, segments: tuple[tuple[int, int], ...]) -> float:
        total, at, before = 0.0, 0, None
        for label, duration in segments:
            if before is not None:
                total += float(self.transitions[at - 1, before, label])
            total += float(self.log_durations[label, duration - 1])
            total += float(self.unaries[at : at + duration, label].double().sum())
            at, before = at + duration, label
        assert at == len(self.unaries)
        return total

    @cached_property
    def scores(self) -> Tensor:
        scores = [self.score(c) for c in self.configurations]
        # no segmentation at all (longest duration 0 cannot occur): an empty sum is -inf
        return torch.tensor(scores or [-math.inf], dtype=torch.float64)

    @property
    def log_partition(self) -> Tensor:
        return torch.logsumexp(self.scores, 0)

    @property
    def probabilities(self) -> Tensor:
        return torch.softmax(self.scores, 0)

    def _expected(self, shape: tuple[int, ...], indices) -> Tensor:
        found = torch.zeros(shape, dtype=torch.float64)
        for p, segments in zip(self.probabilities, self.configurations, strict=True):
            for index in indices(segments):
                found[index] += p
        return found

    @property
    def marginals(self) -> Tensor:
        """P(step t has label x), [T, X]."""

        def indices(segments):
            labels = [label for label, duration in segments for _ in range(duration)]
            return list(enumerate(labels))

        return self._expected(tuple(self.unaries.shape), indices)

    @property
    def begins(self) -> Tensor:
        """P(a segment of label x begins at t), [T, X]."""

        def indices(segments):
            ends = list(itertools.accumulate(duration for _, duration in segments))
            return [
                (end - duration, label)
                for end, (label, duration) in zip(ends, segments, strict=True)
            ]

        return self._expected(tuple(self.unaries.shape), indices)

    @property
    def ends(self) -> Tensor:
        """P(a segment of label x has t as its last step), [T, X]."""

        def indices(segments):
            ends = itertools.accumulate(duration for _, duration in segments)
            return [(end - 1, label) for end, (label, _) in zip(ends, segments, strict=True)]

        return self._expected(tuple(self.unaries.shape), indices)

    @property
    def durations(self) -> Tensor:
        """Expected number of segments of label x and duration k, [X, K]."""

        def indices(segments):
            return [(label, duration - 1) for label, duration in segments]

        return self._expected(tuple(self.log_durations.shape), indices)

    @property
    def entropy(self) -> Tensor:
        return torch.special.entr(self.probabilities).sum()

    @property
    def best(self) -> Tensor:
        return self.scores.max()
