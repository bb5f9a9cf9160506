"""HMMs against all paths one by one, hmmlearn, and themselves in another order."""

import itertools
import math

import pytest
import torch

from bochner.structured import (
    HMM,
    CategoricalEmissions,
    Emissions,
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


class TableEmissions(Emissions):
    """A table that is returned as it is, or a softmax, whose gradient reads what it has returned."""

    def __init__(self, table, *, softmax):
        super().__init__()
        self.num_states, self.table, self.softmax = table.shape[-1], table, softmax

    def log_prob(self, observations):
        return self.table.log_softmax(-1) if self.softmax else self.table

    def sample(self, states, *, generator):
        return states


@pytest.mark.parametrize("softmax", [False, True])
def test_emissions_keep_what_they_return(generator, softmax):
    table = torch.randn(6, 4, generator=generator, requires_grad=softmax)
    before = table.detach().clone()
    hmm = HMM(FeatureTransitions(4, 2), TableEmissions(table, softmax=softmax))
    observed = torch.zeros(6, dtype=torch.long)
    first = hmm.log_prob(observed)
    assert torch.equal(hmm.log_prob(observed), first)
    assert torch.equal(table.detach(), before)
    first.backward()
    assert not softmax or table.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_any_integers_are_words(generator, dtype):
    hmm = low_rank_hmm(generator)
    observed = torch.randint(5, (3, 4), generator=generator)
    assert torch.equal(hmm.log_prob(observed.to(dtype)), hmm.log_prob(observed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision(generator, kind, dtype):
    hmm = kind(generator)
    observed = torch.randint(5, (2, 4), generator=generator)
    exact = hmm.log_prob(observed).float()
    found = hmm.to(dtype).log_prob(observed)
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, atol=0.3)
    found.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.abs().max() > 0 for p in hmm.parameters())


def test_parts_that_do_not_fit(generator):
    with pytest.raises(ValueError, match="num_steps=0 must be an integer of at least 1"):
        low_rank_hmm(generator).prior(0)
    emissions = CategoricalEmissions(3, 5)
    with pytest.raises(ValueError, match="LowRankTransitions has rows that do not sum to one"):
        HMM(LowRankTransitions(3, 2), emissions)
    with pytest.raises(ValueError, match=r"num_states=4, emissions\s+3"):
        HMM(FeatureTransitions(4, 2), emissions)
    with pytest.raises(TypeError, match="transitions is CategoricalEmissions; expected"):
        HMM(emissions, emissions)
    with pytest.raises(TypeError, match="emissions is FeatureTransitions; expected an? Emissions"):
        HMM(FeatureTransitions(3, 2), FeatureTransitions(3, 2))


class Gaussians(Emissions):
    """Vectors around a mean of each state."""

    def __init__(self, num_states: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_states = num_states
        self.mean = torch.nn.Parameter(torch.randn(num_states, dim, generator=generator).double())

    def log_prob(self, observations):
        normal = torch.distributions.Normal(self.mean, 1.0)
        return normal.log_prob(observations.unsqueeze(-2)).sum(-1)

    def sample(self, states, *, generator):
        return self.mean[states] + torch.randn(*states.shape, 2, generator=generator).double()


def test_observations_may_be_vectors() -> None:
    g = torch.Generator().manual_seed(5)
    hmm = HMM(SoftmaxTransitions(3, 2, generator=g).double(), Gaussians(3, 2, g)).double()
    observed = torch.randn(3, 4, 2, generator=g).double()
    whole = hmm.log_prob(observed)
    padded = observed.clone()
    padded[1, 1:] = padded[2, 3:] = math.nan
    found = hmm.log_prob(padded, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(found[b], hmm.log_prob(observed[b, :length]))
    start, moves = hmm.start_logits.softmax(-1), dense(hmm.transitions)
    alpha = start
    for t in range(4):
        alpha = (alpha if t == 0 else alpha @ moves) * hmm.emissions.log_prob(observed)[0, t].exp()
    torch.testing.assert_close(whole[0], alpha.sum().log())
    torch.testing.assert_close(hmm.perplexity(observed), torch.exp(-whole.sum() / 12))
    assert hmm.sample(5, (2,), generator=g)[1].shape == (2, 5, 2)


def test_errors_of_lengths() -> None:
    hmm = low_rank_hmm(torch.Generator().manual_seed(6))
    words = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(TypeError, match="lengths is list"):
        hmm.log_prob(words, lengths=[4, 1])
    with pytest.raises(ValueError, match=r"lengths has shape \[3\], observations \[2, 4\]"):
        hmm.log_prob(words, lengths=LENGTHS)
    with pytest.raises(TypeError, match="observations is list"):
        hmm.log_prob([0, 1])
