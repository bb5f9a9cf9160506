"""Modes and their bounds against the heaviest of all paths."""

import math

import pytest
import torch
from hypothesis import given, settings

from bochner.structured import Chain, Decoding, Dense, LowRank
from bochner.structured.chains import decoding
from tests.structured.chain_cases import Case, cases, close, make_case, possible

MOST = settings(max_examples=50, deadline=None)
ANY = cases(sizes=(0.0, 1.0, 5.0, 1000.0))


def heaviest(case: Case) -> torch.Tensor:
    return torch.stack([p.mode[1] for p in case.paths]).reshape(case.unaries.shape[:-2])


def check_bound(case: Case, found: Decoding) -> None:
    """The score is that of the states, and the mode is between it and the bound."""
    close(found.log_score, case.chain.score(found.states))
    best = heaviest(case)
    slack = 1e-9 * best.abs().clamp(min=1.0)
    assert bool((found.log_score <= best + slack).all())
    assert bool((found.log_score + found.gap >= best - slack).all())
    assert bool((found.gap >= 0).all())
    assert bool((found.states[~case.chain.there] == 0).all())


@MOST
@given(case=ANY)
def test_mode(case: Case) -> None:
    if not possible(case):
        with pytest.raises(ValueError, match="allow nothing at all"):
            case.chain.mode()
        return
    found = case.chain.mode()
    check_bound(case, found)
    close(found.log_score, heaviest(case))
    assert float(found.gap.max()) == 0.0


def test_mode_of_a_long_chain_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Viterbi over the whole table, and against itself with a table that is not kept."""
    case = make_case(1, shape=(30, 25, 4, 3), batches=((2,), ()))
    best = case.unaries[:, 0]
    for step in range(1, 30):
        moved = (best.unsqueeze(-1) + case.dense[:, step - 1]).amax(dim=-2) + case.unaries[:, step]
        best = torch.where((case.chain.lengths > step)[:, None], moved, best)
    whole = case.chain.mode()
    close(whole.log_score, best.amax(-1))
    monkeypatch.setattr(decoding, "_ELEMENTS", 3 * 25)
    assert torch.equal(case.chain.mode().states, whole.states)
    monkeypatch.setattr(decoding, "_KEPT", 0)
    assert torch.equal(case.chain.mode().states, whole.states)


@MOST
@given(case=ANY)
def test_pruned(case: Case) -> None:
    if not possible(case):
        return
    for beam in (1, 2, 3, 10):
        found = case.chain.mode_pruned(beam)
        check_bound(case, found)
        if beam >= case.unaries.shape[-1]:
            close(found.log_score, heaviest(case))


def test_pruned_certifies_a_mode_where_states_are_clear() -> None:
    case = make_case(3, size=4.0, shape=(5, 4, 2, 1))
    found = case.chain.mode_pruned(2)
    assert float(found.gap) == 0.0
    close(found.log_score, heaviest(case))
    flat = Chain(Dense(torch.zeros(1, 4, 4)), torch.zeros(5, 4)).mode_pruned(2)
    assert 0.0 < float(flat.gap) < math.inf


@MOST
@given(case=ANY)
def test_augmented(case: Case) -> None:
    if not possible(case):
        return
    found = case.chain.mode_augmented()
    check_bound(case, found)
    width = (case.chain.lengths - 1) * math.log(case.transitions.num_terms)
    assert bool((found.gap <= width + 1e-6).all())


def test_augmented_is_a_mode_of_states_and_indices() -> None:
    """Eight indices that agree, against one that is larger than each: the two modes differ."""
    left = torch.zeros(1, 2, 9)
    right = torch.full((1, 2, 9), -torch.inf)
    right[0, 0, :8], right[0, 1, 8] = 0.0, 1.0  # K(., 0) = 8, K(., 1) = e
    chain = Chain(LowRank(left, right), torch.zeros(2, 2))
    assert chain.mode().states[1] == 0
    found = chain.mode_augmented()
    assert found.states[1] == 1
    close(found.log_score, torch.tensor(1.0))
    close(found.gap, torch.tensor(math.log(9.0)), tolerance=1e-6)


def test_augmented_of_a_dense_chain_is_the_mode() -> None:
    case = make_case(5, kind="dense", shape=(5, 4, 1, 2), batches=((2,), ()))
    close(case.chain.mode_augmented().log_score, heaviest(case))
    assert float(case.chain.mode_augmented().gap.max()) < 1e-9


@MOST
@given(case=ANY)
def test_posterior(case: Case) -> None:
    if not possible(case):
        return
    found = case.chain.posterior_decode()
    check_bound(case, found)
    marginals = case.of("marginals")
    chosen = marginals.gather(-1, found.states.unsqueeze(-1)).squeeze(-1)
    close(torch.where(case.chain.there, chosen, 0.0), marginals.amax(dim=-1))


def test_the_bound_of_posterior_decoding() -> None:
    """Paths (0, 0), (1, 1), (1, 2) of weights 4, 3, 3 make (1, 0), of weight 0.01, the likeliest states."""
    rows = [[4.0, 0.0, 0.0], [0.01, 3.0, 3.0], [0.0, 0.0, 0.0]]
    table = torch.tensor(rows, dtype=torch.float64).log()
    found = Chain(Dense(table[None]), torch.zeros(2, 3).double()).posterior_decode()
    assert found.states.tolist() == [1, 0]
    close(found.gap, torch.tensor(401.0).double().log())  # p(x) <= p(x_2 = 0) ~ 4.01


def test_posterior_may_be_a_forbidden_path_and_says_so() -> None:
    table = torch.zeros(1, 4, 4)
    table[0, 0, 0] = -torch.inf  # 0 is likeliest at both steps (6 of 21), but never at both at once
    unaries = torch.tensor([2.0, 1.0, 1.0, 1.0]).log().expand(2, 4)
    found = Chain(Dense(table), unaries).posterior_decode()
    assert found.states.tolist() == [0, 0]
    assert (float(found.log_score), float(found.gap)) == (-math.inf, math.inf)


def test_float32_and_gradients() -> None:
    case = make_case(7, shape=(4, 3, 2, 1), batches=((2,), ()))
    single = case.to(torch.float32).detached().chain
    for name in ("mode", "posterior_decode", "mode_augmented"):
        found, expected = getattr(single, name)(), getattr(case.chain, name)()
        assert torch.equal(found.states, expected.states)
        assert found.log_score.dtype == found.gap.dtype == torch.float32
        assert not found.log_score.requires_grad
        close(found.log_score, expected.log_score, tolerance=1e-5)
    with pytest.raises(ValueError, match="beam=0"):
        single.mode_pruned(0)
