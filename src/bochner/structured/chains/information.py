"""Entropies and divergences of chains: exactly, from samples, and between bounds.

    H(p)    = log Z - sum_t E[u_t(x_t)] - sum_t E[log K_t(x_t, x_{t+1})]
    H(p, q) = log Z_q - the same expectations, under p, of q's weights,      KL(p, q) = H(p, q) - H(p)

Expectations of log K need every pair of states where K is a sum: `entropy`, `cross_entropy` and `kl` go
through K in blocks of rows, O(T X^2) time and no more memory than a block. The `_sampled` forms cost what
samples cost and come with an interval. `entropy_bracket` costs a few passes of messages:

    H(x) <= H(x, j) <= H(x) + (T - 1) log m,       j the hidden indices of low-rank transitions

Reference:  docs/theory.md 15.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import scipy.stats
import torch
from torch import Tensor

from bochner.structured.arguments import check_possible
from bochner.structured.chains.expected import expected_log_ratio, expected_log_weight
from bochner.structured.chains.messages import both_messages
from bochner.structured.chains.recursion import log_partition
from bochner.structured.chains.sampling import sample
from bochner.structured.leaves import constant, constant_transitions
from bochner.validation import check_count

if TYPE_CHECKING:
    from bochner.structured.chains.chain import Chain

_ELEMENTS = 1 << 22  # of the features of sampled states that are held at once: 16 MB in float32


class Estimate(NamedTuple):
    """Mean over independent samples, with a 95 % Student-t confidence interval for it, per chain.

    Shapes:     value, low, high [*b]; num_samples is how many. Of one sample the interval is all numbers.
    Example:
        >>> Estimate.over(torch.tensor([1.0, 1.2, 0.8, 1.0])).high
        tensor(1.2598)
    """

    value: Tensor
    low: Tensor
    high: Tensor
    num_samples: int

    @classmethod
    def over(cls, samples: Tensor, *, level: float = 0.95) -> Estimate:
        """From one number per sample, [samples, *b]; an infinite one makes value and high infinite."""
        count = len(samples)
        value = samples.double().mean(dim=0)
        if count < 2:
            half = torch.full_like(value, math.inf)
        else:
            quantile = float(scipy.stats.t.ppf(0.5 + level / 2, count - 1))
            half = quantile * samples.double().std(dim=0) / math.sqrt(count)
        low = torch.where(torch.isfinite(value), value - half, samples.double().amin(dim=0))
        high = torch.where(torch.isfinite(value), value + half, value)
        dtype = samples.dtype
        return cls(value.to(dtype), low.to(dtype), high.to(dtype), count)


class Bracket(NamedTuple):
    """Bounds [*b] that hold with certainty."""

    low: Tensor
    high: Tensor


# -- exact ------------------------------------------------------------------------------------------------
def entropy(chain: Chain) -> Tensor:
    """H(p) >= 0 in nats, [*b], exactly; a constant to autograd.

    Cost:       O(T X^2) time (and O(B X^2 m) for B low-rank blocks), a block of rows of memory.
    Raises:     ValueError if no path of some sequence is allowed.
    """
    return cross_entropy(chain, chain)


@torch.no_grad()
def cross_entropy(chain: Chain, other: Chain) -> Tensor:
    """-E_p[log q] of two chains over the same steps and states, [*b]; inf where q forbids what p allows.

    Raises:     ValueError if the chains differ in shapes or lengths, or if one allows no path.
    """
    check_comparable(chain, other)
    value = _log_partition(other) - expected_log_weight(chain, other)
    return value.to(chain.unaries.dtype)


@torch.no_grad()
def kl(chain: Chain, other: Chain) -> Tensor:
    """E_p[log p - log q] >= 0, [*b], exactly; inf where q forbids what p allows.

    Summed as the expectation of one difference, so that chains that are close lose nothing.

    Raises:     ValueError if the chains differ in shapes or lengths, or if one allows no path.
    """
    check_comparable(chain, other)
    value = expected_log_ratio(chain, other) + _log_partition(other) - _log_partition(chain)
    return value.to(chain.unaries.dtype)


def _log_partition(chain: Chain) -> Tensor:
    """log Z [*b] in float64."""
    value = log_partition(*chain.flat()).view(chain.batch_shape)
    check_possible(value)
    return value


def check_comparable(chain: Chain, other: Chain) -> None:
    """Raise unless two chains have the same steps, states, batch and lengths."""
    ours, theirs = chain.unaries.shape, other.unaries.shape
    if ours != theirs:
        raise ValueError(
            f"the other chain's unaries are {list(theirs)}, this one's {list(ours)}; both chains must be"
            " over the same steps and states."
        )
    if not torch.equal(chain.lengths, other.lengths):
        raise ValueError("the other chain has other lengths: its sequences are never these.")


# -- from samples -------------------------------------------------------------------------------------------
@torch.no_grad()
def entropy_sampled(chain: Chain, num_samples: int, *, generator: torch.Generator) -> Estimate:
    """H(p) from exact samples, unbiased, [*b]; O(T (m + X)) a sample for low-rank transitions."""
    return cross_entropy_sampled(chain, chain, num_samples, generator=generator)


@torch.no_grad()
def cross_entropy_sampled(
    chain: Chain, other: Chain, num_samples: int, *, generator: torch.Generator
) -> Estimate:
    """-E_p[log q] from exact samples of p."""
    check_comparable(chain, other)
    states = sample(chain, (check_count("num_samples", num_samples),), generator=generator)
    return Estimate.over(-log_probs(other, states))


@torch.no_grad()
def kl_sampled(
    chain: Chain, other: Chain, num_samples: int, *, generator: torch.Generator
) -> Estimate:
    """E_p[log p - log q] from exact samples of p; the interval is that of the difference."""
    check_comparable(chain, other)
    states = sample(chain, (check_count("num_samples", num_samples),), generator=generator)
    return Estimate.over(log_probs(chain, states) - log_probs(other, states))


def log_probs(chain: Chain, states: Tensor) -> Tensor:
    """log p(states), [samples, *b], without the features of all samples at once."""
    per_sample = chain.unaries[..., 0].numel() * chain.transitions.num_terms
    parts = states.split(max(1, _ELEMENTS // per_sample))
    value = torch.cat([chain.score(part) for part in parts]) - _log_partition(chain)
    return value.to(chain.unaries.dtype)


# -- between bounds -----------------------------------------------------------------------------------------
@torch.no_grad()
def entropy_bracket(chain: Chain) -> Bracket:
    """Bounds on H(p) from the joint entropy of the states and the hidden indices: H(x, j) is the upper one.

        H(x, j) = log Z - sum_t E[u_t] - sum_t E[log_left(x_t, j_t) + log_right(x_{t+1}, j_t)]

    No pair of states is visited. The bounds are (length - 1) log m apart, or nearer where 0 is between.

    Cost:       a few passes of messages: O(T X m).
    Raises:     ValueError if no path is allowed, or if the transitions have no hidden index.
    """
    transitions, unaries, lengths = chain.flat()
    bare, unaries = transitions.double(), unaries.double()
    m = both_messages(bare, unaries, lengths)
    check_possible(m.log_partition)
    there = chain.there.reshape(unaries.shape[:2])
    logs = m.alpha + m.beta + (m.alpha_scale + m.beta_scale - m.log_partition[:, None])[..., None]
    probs = torch.where(there.unsqueeze(-1), torch.exp(logs), 0.0)
    value = m.log_partition - torch.where(probs > 0, probs * unaries, 0.0).sum(dim=(-1, -2))
    if unaries.shape[1] > 1:
        later = there[:, 1:].unsqueeze(-1)  # what does not exist may forbid everything
        left = torch.where(later, m.alpha[:, :-1], 0.0)
        right = torch.where(later, unaries[:, 1:] + m.beta[:, 1:], 0.0)
        with torch.inference_mode(False), torch.no_grad():
            sides = constant(left), constant(right)
            terms = constant_transitions(bare).expected_log_terms(*sides)
        value = value - torch.where(there[:, 1:], terms, 0.0).sum(-1)
    value = value.view(chain.batch_shape)
    width = (chain.lengths - 1) * math.log(transitions.num_terms)
    low = (value - width).clamp(min=0.0)  # states are discrete: H >= 0
    return Bracket(low.to(chain.unaries.dtype), value.to(chain.unaries.dtype))
