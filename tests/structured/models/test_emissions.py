"""Categorical emissions: an exact softmax that is never laid out over sequences."""

import pytest
import torch
from scipy import stats

from bochner.structured import CategoricalEmissions
from bochner.structured.models import emissions


@pytest.fixture
def categorical(generator):
    made = CategoricalEmissions(7, 11, dim=3, generator=generator).double()
    with torch.no_grad():
        made.bias.copy_(torch.randn(11, generator=generator))
    return made


def table(made: CategoricalEmissions) -> torch.Tensor:
    """log p(v | x), [X, V]."""
    return (made.states @ made.words.T / 3**0.5 + made.bias).log_softmax(-1)


@pytest.mark.parametrize("elements", [1 << 22, 25, 1])
def test_log_prob_and_its_gradient_are_those_of_the_softmax(
    monkeypatch, generator, categorical, elements
):
    monkeypatch.setattr(emissions, "_ELEMENTS", elements)
    observed = torch.randint(11, (2, 3, 5), generator=generator)
    weights = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    found = categorical.log_prob(observed)
    expected = table(categorical).T[observed]
    assert torch.allclose(found, expected, rtol=1e-12)
    parameters = list(categorical.parameters())
    ours = torch.autograd.grad((found * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(categorical.log_prob(observed), found)


def test_samples_follow_the_softmax(monkeypatch, generator, categorical):
    """Pearson's chi-square for each of the 7 states at a false-alarm rate of 1e-7."""
    monkeypatch.setattr(emissions, "_ELEMENTS", 11_000)
    states = torch.arange(7).repeat_interleave(4000).reshape(70, 400)
    words = categorical.sample(states, generator=generator)
    assert words.shape == states.shape
    for x in range(7):
        counts = words[states == x].bincount(minlength=11).double()
        expected = 4000 * table(categorical)[x].exp().detach()
        statistic = float(((counts - expected).square() / expected).sum())
        assert stats.chi2.sf(statistic, 10) > 1e-7


def test_samples_of_states_in_any_layout(categorical):
    states = torch.arange(6).reshape(2, 3)
    words, again = (
        categorical.sample(s, generator=torch.Generator().manual_seed(0))
        for s in (states.T, states.T.contiguous())
    )
    assert torch.equal(words, again)


@pytest.mark.parametrize(
    ("observed", "error", "message"),
    [
        (torch.tensor([0, 11]), ValueError, "observations holds 11; expected integers in 0..10"),
        (torch.tensor([0, -1]), ValueError, "observations holds -1"),
        (torch.tensor([0.5]), TypeError, "observations is torch.float32"),
        ([1, 2], TypeError, "observations is list"),
        (torch.zeros(0, dtype=torch.long), ValueError, "it is empty"),
    ],
)
def test_what_is_no_word_is_refused(categorical, observed, error, message):
    with pytest.raises(error, match=message):
        categorical.log_prob(observed)
