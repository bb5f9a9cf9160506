"""RankHMM against the sum over all states and ranks, one by one."""

import itertools

import pytest
import torch

from bochner.structured import CategoricalEmissions, RankHMM
from tests.structured.models.test_emissions import table as emission_table


@pytest.fixture
def hmm(generator):
    made = RankHMM(3, CategoricalEmissions(2, 4, dim=3, generator=generator), generator=generator)
    with torch.no_grad():
        made.start_logits.copy_(torch.randn(3, generator=generator))
    return made.double()


def evidence(hmm: RankHMM, words: list[int]) -> torch.Tensor:
    """Over all paths x_0, j_1, x_1, j_2, ..., of the docstring."""
    start = hmm.start_logits.softmax(-1)
    leave, enter = hmm.transitions.left.softmax(-1), hmm.transitions.right.softmax(-1)
    emits = emission_table(hmm.emissions).exp()
    total = start.new_zeros(())
    for states in itertools.product(range(3), repeat=len(words)):
        for ranks in itertools.product(range(2), repeat=len(words)):
            weight = start[states[0]]
            for t, word in enumerate(words):
                weight = weight * leave[states[t], ranks[t]] * emits[ranks[t], word]
                if t + 1 < len(words):
                    weight = weight * enter[ranks[t], states[t + 1]]
            total = total + weight
    return total


def test_evidence_and_gradients_are_the_sum_over_all_paths(generator, hmm):
    observed, lengths = torch.randint(4, (3, 4), generator=generator), torch.tensor([4, 1, 3])
    found = hmm.log_prob(observed, lengths=lengths)
    rows = [words[:n] for words, n in zip(observed.tolist(), lengths.tolist(), strict=True)]
    expected = torch.stack([evidence(hmm, words).log() for words in rows])
    assert torch.allclose(found, expected, rtol=1e-12)
    parameters = list(hmm.parameters())
    ours = torch.autograd.grad(found.sum(), parameters)
    theirs = torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_all_sentences_together_have_probability_one(hmm):
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert float(hmm.log_prob(every).exp().sum().detach()) == pytest.approx(1.0, abs=1e-12)


def test_the_recursion_never_sees_the_states(generator):
    """A million states, and messages over two ranks."""
    hmm = RankHMM(1_000_000, CategoricalEmissions(2, 4, generator=generator), generator=generator)
    chain = hmm.chain(torch.zeros(3, 5, dtype=torch.long))
    assert chain.marginals.shape == (3, 5, 2)
    states, words = hmm.sample(5, (8,), generator=generator)
    assert int(states.max()) < 2
    assert words.shape == (8, 5)


def test_emissions_are_checked():
    with pytest.raises(TypeError, match="emissions is int; expected an Emissions"):
        RankHMM(3, 4)
