"""The transitions of a trained softmax HMM replaced, after training, by approximations of low rank.

    K(x, y) = softmax_y(a_x . b_y)        ->        K^(x, y) = phi(a_x) . phi(b_y) / sum_y (the same)

Start and emissions stay as trained. A row of K^ sums to one, so that the perplexity is that of a proper
HMM. Positive features need nothing else. Signed ones (trigonometric, truncated SVD) have entries below
zero, which are no probabilities: every entry below FLOOR / states is set to that, and the share of
entries so replaced is reported.
"""

from __future__ import annotations

import torch
from torch import Tensor

import bochner
from bochner.features import Features, log_inner
from bochner.fitting import UnfittedMap
from bochner.reproduce import Row
from bochner.statistics import Moments
from bochner.structured import HMM, Chain, Dense, LearnedTransitions, SoftmaxTransitions
from bochner.transforms import Centring, Composed, LinearPair
from experiments.structured.kjv_corpus import Corpus
from experiments.structured.language_training import perplexity

FLOOR = 1e-3
PLAIN, CENTRED, FITTED = "positive", "positive, centred and balanced", "GERF, centred and balanced"
SIGNED, SVD = "trigonometric, centred and balanced", "truncated SVD"
METHODS = (PLAIN, CENTRED, FITTED, SIGNED, SVD)


class FixedTransitions(LearnedTransitions):
    """A given table of log-probabilities, [X, X]."""

    stochastic = True

    def __init__(self, table: Tensor) -> None:
        super().__init__(len(table))
        self.table = torch.nn.Parameter(table, requires_grad=False)

    def chain(self, unaries: Tensor, *, lengths: Tensor | None = None) -> Chain:
        """A chain over the table."""
        return Chain(Dense(self.table.unsqueeze(0)), unaries, lengths=lengths)


@torch.no_grad()
def approximated(
    hmm: HMM, corpus: Corpus, method: str, size: int, *, generator: torch.Generator
) -> Row:
    """Perplexity and row divergence where `size` features (or singular vectors) stand for the table."""
    before, after = scaled_embeddings(hmm)
    logits = before @ after.T
    exact = torch.log_softmax(logits, dim=-1)
    if method == SVD:
        left, values, right = torch.linalg.svd(exact.exp().double())
        estimate = (left[:, :size] * values[:size]) @ right[:size]
        table, replaced = floored(estimate)
    else:
        log_abs, sign = estimated(before, after, method, size, generator)
        if method == SIGNED:
            table, replaced = floored(sign * torch.exp(log_abs - log_abs.amax(-1, keepdim=True)))
        else:
            table, replaced = torch.log_softmax(log_abs, dim=-1), 0.0
    other = HMM(FixedTransitions(table.float()), hmm.emissions)
    other.start_logits.copy_(hmm.start_logits)
    divergence = (exact.exp() * (exact - table)).sum(-1)
    return {
        "perplexity": perplexity(other, corpus),
        "row_kl": float(divergence.mean()),
        "replaced": replaced,
    }


def scaled_embeddings(hmm: HMM) -> tuple[Tensor, Tensor]:
    """a and b in float64 with logits a . b: each takes half of the model's 1/sqrt(dim)."""
    transitions = hmm.transitions
    assert isinstance(transitions, SoftmaxTransitions)
    root = transitions.before.shape[-1] ** 0.25
    return transitions.before.detach().double() / root, transitions.after.detach().double() / root


def estimated(
    before: Tensor, after: Tensor, method: str, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """log |estimate of exp(a . b)| and its sign, [X, X], from one draw of features."""
    left, right = before, after
    factors: tuple[Tensor | None, Tensor | None] = (None, None)
    if method != PLAIN:
        moments = Moments.of(before, after)
        transform = Composed(Centring.fit(moments), LinearPair.balancing(moments))
        (left, first), (right, second) = transform.queries(before), transform.keys(after)
        factors = first, second
    name = {FITTED: "gerf", SIGNED: "trigonometric"}.get(method, "positive")
    phi = bochner.make(
        name, dim=before.shape[-1], num_features=size, generator=generator, dtype=before.dtype
    )
    if isinstance(phi, UnfittedMap):
        phi = phi.fit(left, right)
    sides = (phi.query(left), phi.key(right))
    scaled = [_scaled(side, factor) for side, factor in zip(sides, factors, strict=True)]
    found = log_inner(*scaled)
    return found.log_abs, found.sign


def _scaled(features: Features, factor: Tensor | None) -> Features:
    return features if factor is None else features.scaled(factor)


def floored(table: Tensor) -> tuple[Tensor, float]:
    """Logarithms of the rows made probabilities, and the share of entries that were floored.

    Rows are divided by the sum of their positive entries, floored at FLOOR / states, and made to sum to
    one again.
    """
    rows = table / table.clamp_min(0).sum(-1, keepdim=True)
    least = FLOOR / table.shape[-1]
    replaced = float((rows < least).double().mean())
    rows = rows.clamp_min(least)
    return (rows / rows.sum(-1, keepdim=True)).log(), replaced


def row_entropy(hmm: HMM) -> float:
    """Mean entropy of a row of the trained transitions, in nats."""
    before, after = scaled_embeddings(hmm)
    exact = torch.log_softmax(before @ after.T, dim=-1)
    return float(-(exact.exp() * exact).sum(-1).mean())
