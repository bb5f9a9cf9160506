"""Samples against the law of all paths, by Pearson's test at a false-alarm rate of 1e-7."""

import pytest
import torch
from hypothesis import given, settings

from bochner.structured import Chain, Dense, LowRank
from bochner.structured.edges import low_rank
from tests.structured.chain_cases import Case, cases, make_case, possible
from tests.structured.test_draws import misfit

COUNT = 20_000


def law(case: Case, states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Counts and probabilities of the paths of every sequence; paths expected less than 10 times as one."""
    flat = states.reshape(len(states), -1, states.shape[-1])
    result = []
    for element, paths in enumerate(case.paths):
        counts = torch.bincount(paths.index(flat[:, element]), minlength=len(paths.probs)).double()
        rare = paths.probs * len(states) < 10
        merged = [torch.cat([v[~rare], v[rare].sum()[None]]) for v in (counts, paths.probs)]
        keep = merged[1] > 0
        assert float(merged[0][~keep].sum()) == 0
        result.append((merged[0][keep], merged[1][keep]))
    return result


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
@pytest.mark.parametrize("batches", [((), ()), ((2,), ()), ((2,), (2,))])
def test_samples_have_the_law_of_the_chain(
    kind: str, batches: tuple[tuple[int, ...], tuple[int, ...]], generator: torch.Generator
) -> None:
    """With lengths, two blocks and forbidden states. A total variation of 0.05 would be seen."""
    case = make_case(5, kind=kind, shape=(4, 3, 2, 2), batches=batches, forbidden=0.1)
    assert possible(case)
    states = case.chain.sample((COUNT,), generator=generator)
    for counts, probs in law(case, states):
        assert misfit(counts, probs) < 1
    if not batches[0]:
        flat = torch.full_like(probs, 1 / len(probs))
        assert misfit(counts, flat) > 1  # the test can fail


def test_few_and_many_samples_have_one_law(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Piece by piece, and where an index must be found in the log domain."""
    monkeypatch.setattr("bochner.structured.draws._ELEMENTS", 1)
    case = make_case(6, shape=(3, 3, 2, 1))
    counts, probs = law(case, case.chain.sample((COUNT,), generator=generator))[0]
    assert misfit(counts, probs) < 1


@settings(max_examples=50, deadline=None)
@given(case=cases(sizes=(1.0, 30.0, 1000.0)))
def test_a_sample_is_always_an_allowed_path(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    if not possible(case):
        with pytest.raises(ValueError, match="allow nothing at all"):
            case.chain.sample((2,), generator=generator)
        return
    for chosen in (case, case.to(torch.float32)):
        chain = chosen.chain
        states = chain.sample((3, 2), generator=generator)
        assert states.shape == (3, 2, *chain.unaries.shape[:-1])
        assert states.dtype == torch.long
        assert bool(torch.isfinite(chain.log_prob(states)).all())
        assert bool((states[:, :, ~chain.there] == 0).all())


def test_a_state_whose_only_index_is_rare_elsewhere(generator: torch.Generator) -> None:
    """State 0 leads on through index 0 alone, whose weight is exp(-3000) of index 1's."""
    left = torch.tensor([[[0.0, -torch.inf], [-torch.inf, 0.0]]])
    right = torch.tensor([[[-torch.inf, 0.0], [0.0, -torch.inf]]])
    unaries = torch.tensor([[6000.0, 0.0], [0.0, -3000.0]])
    states = Chain(LowRank(left, right), unaries).sample((5,), generator=generator)
    assert states.tolist() == [[0, 1]] * 5


def test_low_rank_draws_make_no_row_of_the_matrix(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    case = make_case(8, shape=(4, 3, 2, 1))
    monkeypatch.setattr(low_rank, "log_inner", None)
    case.chain.sample((4,), generator=generator)


def test_the_generator_is_the_only_randomness() -> None:
    case = make_case(8, shape=(4, 3, 2, 1))
    twice = [case.chain.sample((5,), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[0], twice[2])


def test_one_sample_has_no_sample_dimension(generator: torch.Generator) -> None:
    chain = Chain(Dense(torch.zeros(1, 3, 3)), torch.zeros(2, 4, 3))
    assert chain.sample(generator=generator).shape == (2, 4)
