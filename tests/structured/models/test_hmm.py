"""HMMs against all paths one by one, hmmlearn, and themselves in another order."""

import itertools
import math

import pytest
import torch

from bochner.structured import (
    HMM,
    CategoricalEmissions,
    FeatureTransitions,
    LowRankTransitions,
    SoftmaxTransitions,
)
from bochner.structured.models import emissions
from tests.structured.allocations import largest_tensor
from tests.structured.models.test_emissions import table as emission_table
from tests.structured.models.test_learned import dense

LENGTHS = torch.tensor([4, 1, 3])


def softmax_hmm(generator, states=3, words=5) -> HMM:
    return _randomised(SoftmaxTransitions(states, 3, generator=generator), words, generator)


def low_rank_hmm(generator, states=3, words=5) -> HMM:
    return _randomised(FeatureTransitions(states, 2, generator=generator), words, generator)


def _randomised(transitions, words, generator) -> HMM:
    emissions = CategoricalEmissions(transitions.num_states, words, dim=3, generator=generator)
    hmm = HMM(transitions, emissions).double()
    with torch.no_grad():
        hmm.start_logits.copy_(torch.randn(hmm.num_states, generator=generator))
    return hmm


KINDS = [softmax_hmm, low_rank_hmm]


def tables(hmm: HMM):
    """start [X], transitions [X, X], emissions [X, V], as probabilities."""
    return (
        hmm.start_logits.softmax(-1),
        dense(hmm.transitions),
        emission_table(hmm.emissions).exp(),
    )


def evidence(hmm: HMM, words: list[int]) -> torch.Tensor:
    """The probability of the words, summed over all paths one by one."""
    start, moves, emits = tables(hmm)
    total = start.new_zeros(())
    for path in itertools.product(range(hmm.num_states), repeat=len(words)):
        weight = start[path[0]] * emits[path[0], words[0]]
        for t in range(1, len(words)):
            weight = weight * moves[path[t - 1], path[t]] * emits[path[t], words[t]]
        total = total + weight
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_and_gradients_are_the_sum_over_all_paths(generator, kind):
    hmm = kind(generator)
    observed = torch.randint(5, (3, 4), generator=generator)
    hidden = torch.arange(4) >= LENGTHS.unsqueeze(-1)
    found = hmm.log_prob(observed.masked_fill(hidden, -100), lengths=LENGTHS)
    rows = [words[:n] for words, n in zip(observed.tolist(), LENGTHS.tolist(), strict=True)]
    expected = torch.stack([evidence(hmm, words).log() for words in rows])
    assert torch.allclose(found, expected, rtol=1e-12)
    parameters = list(hmm.parameters())
    ours = torch.autograd.grad(found.sum(), parameters)
    theirs = torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)
    perplexity = hmm.perplexity(observed.masked_fill(hidden, 77), lengths=LENGTHS)
    assert perplexity.item() == pytest.approx(math.exp(-expected.sum().item() / 8))
    assert torch.equal(hmm(observed, lengths=LENGTHS), hmm.log_prob(observed, lengths=LENGTHS))


@pytest.mark.parametrize("kind", KINDS)
def test_all_sentences_together_have_probability_one(generator, kind):
    hmm = kind(generator)
    every = torch.cartesian_prod(*[torch.arange(5)] * 3)
    assert float(hmm.log_prob(every).exp().sum().detach()) == pytest.approx(1.0, abs=1e-12)
    assert float(hmm.prior(6).log_partition.detach()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_near(generator, kind):
    hmm = kind(generator, states=30)
    observed = torch.randint(5, (4, 60), generator=generator)
    exact = hmm.log_prob(observed).detach()
    assert torch.allclose(hmm.float().log_prob(observed).double(), exact, rtol=1e-5)


def test_hmmlearn_agrees(generator):
    hmmlearn = pytest.importorskip("hmmlearn.hmm")
    hmm = softmax_hmm(generator, states=6, words=9)
    other = hmmlearn.CategoricalHMM(n_components=6, n_features=9)
    other.startprob_, other.transmat_, other.emissionprob_ = (
        part.detach().numpy() for part in tables(hmm)
    )
    observed = torch.randint(9, (3, 12), generator=generator)
    lengths = torch.tensor([12, 5, 9])
    joined = torch.cat([row[:n] for row, n in zip(observed, lengths, strict=True)]).unsqueeze(-1)
    total = float(hmm.log_prob(observed, lengths=lengths).sum().detach())
    assert total == pytest.approx(other.score(joined.numpy(), lengths.tolist()), rel=1e-10)
    posterior = torch.as_tensor(other.predict_proba(joined.numpy(), lengths.tolist()))
    chain = hmm.chain(observed, lengths=lengths)
    ours = torch.cat([row[:n] for row, n in zip(chain.marginals, lengths, strict=True)])
    assert torch.allclose(ours, posterior, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_model(generator, kind):
    """Words of two letters: all 16 frequencies within 5.5 standard errors (4e-8 each, normal)."""
    hmm = kind(generator, states=3, words=4)
    states, words = hmm.sample(2, (20_000,), generator=generator)
    assert states.shape == words.shape == (20_000, 2)
    counts = (4 * words[:, 0] + words[:, 1]).bincount(minlength=16).double() / 20_000
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    expected = hmm.log_prob(every).exp().detach()
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((counts - expected).abs() < 5.5 * error).all()


def test_training_finds_a_cycle(generator):
    """Words that follow each other in a ring: perplexity 1 is reached from 6 by low-rank transitions."""
    hmm = HMM(
        FeatureTransitions(12, 12, generator=generator),
        CategoricalEmissions(12, 6, dim=8, generator=generator),
    )
    observed = (torch.arange(6).unsqueeze(-1) + torch.arange(10)) % 6
    optimiser = torch.optim.Adam(hmm.parameters(), lr=0.1)
    assert hmm.perplexity(observed).item() > 5
    for _ in range(60):
        optimiser.zero_grad()
        (-hmm.log_prob(observed).mean()).backward()
        optimiser.step()
    assert hmm.perplexity(observed).item() < 1.5  # the first word is one of six: 6^(1/10) = 1.2


def test_nothing_of_states_times_states_or_words_is_made(monkeypatch, generator):
    """600 states, 1,000 words: the largest tensor is a block of logits, or the unaries [4, 10, 600]."""
    monkeypatch.setattr(emissions, "_ELEMENTS", 50_000)
    hmm = HMM(
        FeatureTransitions(600, 4, generator=generator),
        CategoricalEmissions(600, 1000, dim=8, generator=generator),
    )
    observed = torch.randint(1000, (4, 10), generator=generator)
    with largest_tensor() as seen:
        hmm.log_prob(observed, lengths=torch.tensor([10, 3, 7, 1])).sum().backward()
    assert 4 * 10 * 600 <= seen.elements <= 50_000
    monkeypatch.setattr(emissions, "_ELEMENTS", 10**6)
    with largest_tensor() as seen:
        hmm.log_prob(observed)
    assert seen.elements == 600_000, "all words of all states: what the blocks avoid"


def test_autocast_changes_nothing(generator):
    hmm = low_rank_hmm(generator, states=20).float()
    observed = torch.randint(5, (2, 30), generator=generator)
    plain = hmm.log_prob(observed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hmm.log_prob(observed), plain)


def test_parts_that_do_not_fit(generator):
    emissions = CategoricalEmissions(3, 5)
    with pytest.raises(ValueError, match="LowRankTransitions has rows that do not sum to one"):
        HMM(LowRankTransitions(3, 2), emissions)
    with pytest.raises(ValueError, match=r"num_states=4, emissions\s+3"):
        HMM(FeatureTransitions(4, 2), emissions)
    with pytest.raises(TypeError, match="transitions is CategoricalEmissions; expected"):
        HMM(emissions, emissions)
    with pytest.raises(TypeError, match="emissions is FeatureTransitions; expected an? Emissions"):
        HMM(FeatureTransitions(3, 2), FeatureTransitions(3, 2))
