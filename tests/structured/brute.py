"""All paths of a small chain, one by one, in float64: the oracle of every structured test.

paths = enumerate_paths(log_potentials [E, X, X], unaries [T, X], length=None)   # one chain
paths.log_partition, .marginals, .pairwise, .entropy, .mode ...                  # differentiable
log_partition(log_potentials, unaries, lengths), marginals(...)                  # a batch of chains
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Paths:
    """Every path of one chain of L steps over X states, with its log-weight (-inf: forbidden).

    states [P, L] int64 and scores [P] float64, P = X^L; T >= L is the length that tensors are padded to.
    """

    states: Tensor
    scores: Tensor
    num_states: int
    num_steps: int

    @property
    def length(self) -> int:
        return self.states.shape[1]

    @property
    def log_partition(self) -> Tensor:
        """A scalar; -inf where every path is forbidden (then without a gradient, not with NaN)."""
        if bool((self.scores == -torch.inf).all()):
            return self.scores.new_full((), -torch.inf)
        return self.scores.logsumexp(0)

    @property
    def log_probs(self) -> Tensor:
        """[P]; the order of `states`."""
        return self.scores - self.log_partition

    @property
    def probs(self) -> Tensor:
        return self.log_probs.exp()

    @property
    def marginals(self) -> Tensor:
        """p(x_t), [T, X], zero beyond the length."""
        result = self.scores.new_zeros(self.num_steps, self.num_states)
        for t in range(self.length):
            result = result.index_put((torch.tensor(t), self.states[:, t]), self.probs, True)
        return result

    @property
    def pairwise(self) -> Tensor:
        """p(x_t, x_{t+1}), [T-1, X, X], zero beyond the length."""
        size = self.num_states
        result = self.scores.new_zeros(max(self.num_steps - 1, 0), size, size)
        for t in range(self.length - 1):
            where = (torch.tensor(t), self.states[:, t], self.states[:, t + 1])
            result = result.index_put(where, self.probs, True)
        return result

    def mean(self, values: Tensor) -> Tensor:
        """E[values] of numbers [P], one per path; what has probability zero does not count."""
        return torch.where(self.probs > 0, self.probs * values, 0.0).sum()

    @property
    def entropy(self) -> Tensor:
        """-E[log p]."""
        return -self.mean(self.log_probs)

    def cross_entropy(self, other: Paths) -> Tensor:
        """-E_self[log p_other]."""
        return -self.mean(other.log_probs)

    def kl(self, other: Paths) -> Tensor:
        """E_self[log p_self - log p_other]."""
        return self.cross_entropy(other) - self.entropy

    @property
    def mode(self) -> tuple[Tensor, Tensor]:
        """The states [L] of a best path, and its score."""
        best = self.scores.argmax()
        return self.states[best], self.scores[best]

    def index(self, states: Tensor) -> Tensor:
        """The place of given paths [*s, >= L] in the enumeration, [*s]: what a sampled law is counted by."""
        place = states.new_zeros(states.shape[:-1])
        for t in range(self.length):
            place = place * self.num_states + states[..., t]
        return place


def enumerate_paths(log_potentials: Tensor, unaries: Tensor, length: int | None = None) -> Paths:
    """All X^L paths of one chain: log_potentials [E, X, X] (E >= L-1; edge e joins e and e+1; or [X, X],
    the same on every edge), unaries [T, X], -inf allowed in both, length L <= T (T)."""
    log_potentials, unaries = log_potentials.double(), unaries.double()
    num_steps, num_states = unaries.shape
    length = num_steps if length is None else int(length)
    assert num_states**length <= 200_000, f"{num_states}^{length} paths are too many to enumerate"
    if log_potentials.ndim == 2:
        log_potentials = log_potentials.expand(max(length - 1, 0), -1, -1)
    paths = torch.tensor(list(itertools.product(range(num_states), repeat=length)))
    scores = unaries[0, paths[:, 0]]
    for t in range(1, length):
        before, after = paths[:, t - 1], paths[:, t]
        scores = scores + log_potentials[t - 1, before, after] + unaries[t, after]
    return Paths(paths, scores, num_states, num_steps)


def enumerate_batch(
    log_potentials: Tensor, unaries: Tensor, lengths: Tensor | None = None
) -> list[Paths]:
    """One `Paths` per chain of a batch, in row-major order: log_potentials [*b, E, X, X] (or without, or
    broadcasting to, the batch), unaries [*b, T, X], lengths [*b]."""
    batch, (num_steps, num_states) = unaries.shape[:-2], unaries.shape[-2:]
    dense = log_potentials.shape[-3:]
    edges = log_potentials.expand(*batch, *dense).reshape(math.prod(batch), *dense)
    flat = unaries.reshape(math.prod(batch), num_steps, num_states)
    sizes = [None] * len(flat) if lengths is None else lengths.expand(batch).reshape(-1).tolist()
    return [enumerate_paths(*of) for of in zip(edges, flat, sizes, strict=True)]


def log_partition(log_potentials: Tensor, unaries: Tensor, lengths: Tensor | None = None) -> Tensor:
    """log Z of a batch of chains, [*b]; differentiable."""
    every = enumerate_batch(log_potentials, unaries, lengths)
    return torch.stack([paths.log_partition for paths in every]).reshape(unaries.shape[:-2])


def marginals(log_potentials: Tensor, unaries: Tensor, lengths: Tensor | None = None) -> Tensor:
    """p(x_t) of a batch of chains, [*b, T, X], zero beyond the lengths; differentiable."""
    every = enumerate_batch(log_potentials, unaries, lengths)
    return torch.stack([paths.marginals for paths in every]).reshape(unaries.shape)


def dense_from_features(log_left: Tensor, log_right: Tensor, num_edges: int) -> Tensor:
    """log K_e(x, y) = log sum_j exp(log_left[x, j] + log_right[y, j]) of blocks of features, block e mod B
    on edge e: [*b, B, X, m] -> [*b, num_edges, X, X]."""
    left, right = log_left.double(), log_right.double()
    terms = left.unsqueeze(-2) + right.unsqueeze(-3)
    none = (terms == -torch.inf).all(dim=-1)  # logsumexp's gradient is NaN there
    blocks = torch.logsumexp(terms.masked_fill(none.unsqueeze(-1), 0.0), dim=-1)
    blocks = blocks.masked_fill(none, -torch.inf)
    edges = torch.arange(num_edges) % blocks.shape[-3]
    return blocks.index_select(-3, edges)
