"""Emissions of the tagger, and transitions of low rank counted from the labels.

    u_t(l) = s log p(l | word_t) + h_t . U_l + c_l,    h_t = network of the word, its neighbours, its verse

The counted term has no gradient but that of s; for training verses it is counted on other verses, so that the
network learns from what a count says of a word that it has not seen in this place.

    K(x, y) = sum_j p(j | x) p(y | j) / p(y)           Saul and Pereira's aggregate Markov model, by EM

is where the learned transitions start: their features are parameters from there on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.structured.tagger_corpus import CONTEXT, FOLDS, Corpus, LabelCounts

DIM, HIDDEN, WIDTH = 32, 160, 64
DROPOUT = 0.2
EM_STEPS, EM_CHUNK = 40, 50_000
EM_PRIOR = (3.0, 200.0)  # pseudo-counts of p(j | x) at every x, of p(y | j) at every j
FIT_RATE, FIT_ROWS, FIT_PENALTY = 0.05, 1024, 0.5
FLOOR = (-14.0, -8.0)  # of the two log-features at the start: a zero would never be left


class Emissions(nn.Module):
    """u [n, labels] of words in their verses."""

    def __init__(self, made: Corpus, generator: torch.Generator) -> None:
        super().__init__()
        words = (2 * CONTEXT + 2) * DIM  # neighbours, and the mean of the verse

        def drawn(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator))

        self.embedding = drawn(made.num_words, DIM, scale=0.3)
        self.hidden = drawn(words, HIDDEN, scale=words**-0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.out = drawn(HIDDEN, WIDTH, scale=HIDDEN**-0.5)
        self.labels = nn.Parameter(torch.zeros(made.num_labels, WIDTH))
        self.bias = nn.Parameter(torch.zeros(made.num_labels))
        self.scale = nn.Parameter(torch.ones(()))
        self.generator = generator
        self.counts = [
            LabelCounts(made, made.train[made.train % FOLDS != fold]) for fold in range(FOLDS)
        ]
        self.counts.append(LabelCounts(made, made.train))
        self.made = made

    def forward(self, verses: Tensor, fold: int = FOLDS) -> Tensor:
        """Of all words of some verses, one after another; `fold`: the part that is not counted."""
        made, tokens = self.made, self.made.tokens(verses)
        rows, _ = made.places(verses)
        embedded = self.embedding[made.context[tokens]]
        own = embedded[:, CONTEXT]
        total = own.new_zeros(len(verses), DIM).index_add(0, rows, own)
        mean = total / made.lengths[verses].unsqueeze(-1)
        inputs = self._dropped(torch.cat([embedded.flatten(1), mean[rows]], dim=-1))
        hidden = torch.relu(inputs @ self.hidden + self.hidden_bias)
        seen = self.counts[fold].log_probabilities(made.words[tokens])
        return (
            torch.addmm(self.bias, self._dropped(hidden @ self.out), self.labels.T)
            + self.scale * seen
        )

    def padded(self, verses: Tensor, fold: int = FOLDS) -> tuple[Tensor, Tensor]:
        """u [b, T, labels] and mask [b, T]."""
        found = self(verses, fold)
        rows, steps = self.made.places(verses)
        size = len(verses), int(self.made.lengths[verses].max())
        mask = torch.zeros(size, dtype=torch.bool)
        mask[rows, steps] = True
        return found.new_zeros(*size, self.made.num_labels).index_put((rows, steps), found), mask

    def _dropped(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        kept = torch.rand(values.shape, generator=self.generator) >= DROPOUT
        return values * kept / (1 - DROPOUT)


def bigrams(made: Corpus) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of neighbouring labels in the training verses: before, after, count."""
    size = made.num_labels
    verse = torch.repeat_interleave(torch.arange(len(made.lengths)), made.lengths)
    inside = (verse[1:] == verse[:-1]) & torch.isin(verse[1:], made.train)
    pairs = made.labels[:-1][inside] * size + made.labels[1:][inside]
    pairs, counts = pairs.unique(return_counts=True)
    return pairs // size, pairs % size, counts.float()


def counted_features(made: Corpus, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """log p(j | x) and log p(y | j) / p(y), [labels, rank] each, from the training labels alone.

    Cost:       O(bigrams rank) for a step of EM: the pairs that occur, never all pairs.
    Reference:  Saul and Pereira, Aggregate and mixed-order Markov models for statistical language
                processing, 1997.
    """
    before, after, counts = bigrams(made)
    size, prior = made.num_labels, LabelCounts(made, made.train).prior
    draws = 0.5 + torch.rand(2, size, rank, generator=generator)
    left = draws[0] / draws[0].sum(1, keepdim=True)
    right = draws[1] * prior.unsqueeze(-1)
    right = right / right.sum(0)
    for _ in range(EM_STEPS):
        new_left, new_right = torch.zeros_like(left), torch.zeros_like(right)
        for x, y, c in zip(*(t.split(EM_CHUNK) for t in (before, after, counts)), strict=True):
            share = left[x] * right[y]
            share = share * (c / share.sum(1)).unsqueeze(-1)
            new_left.index_add_(0, x, share)
            new_right.index_add_(0, y, share)
        left = new_left + EM_PRIOR[0] * new_left.sum(0) / new_left.sum()
        left = left / left.sum(1, keepdim=True)
        right = new_right + EM_PRIOR[1] * prior.unsqueeze(-1)
        right = right / right.sum(0)
    relative = right.log() - prior.log().unsqueeze(-1)
    return left.log().clamp_min(FLOOR[0]), relative.clamp_min(FLOOR[1])


def fitted_embeddings(
    made: Corpus, dim: int, passes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """a, b [labels, dim] with p(y | x) ~ p(y) exp(a_x . b_y) / norm_x: potentials that are given.

    Penalised likelihood of the training labels' bigrams: `passes` over all rows of the table in random order,
    a step of Adam for 1024 rows.
    """
    before, after, counts = bigrams(made)
    size, prior = made.num_labels, LabelCounts(made, made.train).prior.log()
    totals = torch.zeros(size).index_add_(0, before, counts)
    scale = dim**-0.25
    a, b = (nn.Parameter(0.3 * scale * torch.randn(size, dim, generator=generator)) for _ in "ab")
    optimiser = torch.optim.Adam([a, b], lr=FIT_RATE, eps=1e-5)
    for done in range(passes):
        optimiser.param_groups[0]["lr"] = FIT_RATE * (1 - done / passes)
        order = torch.randperm(size, generator=generator)
        place = order.argsort()[before]
        for first in range(0, size, FIT_ROWS):
            rows = order[first : first + FIT_ROWS]
            here = (place >= first) & (place < first + FIT_ROWS)
            logits = a[rows] @ b.T
            chosen = (logits[place[here] - first, after[here]] * counts[here]).sum()
            norms = torch.logsumexp(logits + prior, dim=-1) @ totals[rows]
            share = len(rows) / size
            penalty = FIT_PENALTY * (a[rows].square().sum() + share * b.square().sum())
            optimiser.zero_grad()
            ((norms - chosen + penalty) / (share * counts.sum())).backward()
            optimiser.step()
    return a.detach(), b.detach()
