"""Entropies and divergences against all paths."""

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bochner.structured import Chain, Dense, Estimate
from bochner.structured.chains import information
from bochner.structured.chains.information import log_probs
from tests.structured.chain_cases import Case, cases, close, make_case, possible

MOST = settings(max_examples=50, deadline=None)


def largest(*of: Case) -> float:
    """The size of the numbers that cancel in an entropy."""
    return max(float(t[torch.isfinite(t)].abs().sum()) for case in of for t in case.leaves)


def between(name: str, one: Case, other: Case) -> Tensor:
    found = [getattr(p, name)(q) for p, q in zip(one.paths, other.paths, strict=True)]
    return torch.stack(found).reshape(one.unaries.shape[:-2])


@MOST
@given(case=cases(sizes=(0.0, 1.0, 5.0, 100.0, 1000.0)))
def test_entropy(case: Case) -> None:
    if not possible(case):
        with pytest.raises(ValueError, match="allow nothing at all"):
            case.chain.entropy()
        return
    close(case.chain.entropy(), case.of("entropy"), unit=largest(case))


@MOST
@given(case=cases(sizes=(0.0, 1.0, 5.0, 100.0)))
def test_cross_entropy_and_kl(case: Case) -> None:
    other = case.nearby()
    if not possible(case):
        return
    unit = largest(case, other)
    close(case.chain.cross_entropy(other.chain), between("cross_entropy", case, other), unit=unit)
    close(case.chain.kl(other.chain), between("kl", case, other), unit=unit)
    assert float(case.chain.kl(case.chain).abs().max()) == 0.0
    single, twin = case.to(torch.float32), other.to(torch.float32)
    found = single.chain.kl(twin.chain)
    assert found.dtype == torch.float32
    close(found, between("kl", single, twin), tolerance=1e-4, unit=unit)


def test_between_transitions_of_two_kinds_and_blocks() -> None:
    one = make_case(1, shape=(4, 3, 2, 3), batches=((2,), ()))
    other = make_case(1, kind="dense", shape=(4, 3, 2, 2), batches=((2,), (2,)))
    other = Case(other.tensors, other.unaries, one.lengths)
    close(one.chain.kl(other.chain), between("kl", one, other))
    close(other.chain.cross_entropy(one.chain), between("cross_entropy", other, one))


def test_what_the_other_forbids_is_infinite() -> None:
    case = make_case(2, kind="dense", shape=(3, 3, 1, 1))
    for leaf in range(2):
        tensors, unaries = [case.tensors[0].clone()], case.unaries.clone()
        (unaries[1] if leaf == 0 else tensors[0][0, 0])[2] = -torch.inf
        other = Case((tensors[0],), unaries, None)
        assert float(case.chain.kl(other.chain)) == math.inf
        assert float(case.chain.cross_entropy(other.chain)) == math.inf
        close(other.chain.kl(case.chain), between("kl", other, case))
        g = torch.Generator().manual_seed(0)
        sampled = case.chain.kl_sampled(other.chain, 200, generator=g)
        assert float(sampled.value) == float(sampled.high) == math.inf


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(3, shape=(5, 40, 3, 2), batches=((2,), ()))
    whole = case.chain.entropy()
    monkeypatch.setattr("bochner.structured.chains.expected._ELEMENTS", 7 * 40)
    close(case.chain.entropy(), whole)


@MOST
@given(case=cases(sizes=(0.0, 1.0, 5.0, 100.0, 1000.0)))
def test_bracket_holds_the_entropy(case: Case) -> None:
    if not possible(case):
        return
    bracket, exact = case.chain.entropy_bracket(), case.of("entropy")
    slack = 1e-10 * (1.0 + largest(case))
    assert bool((bracket.low <= exact + slack).all())
    assert bool((bracket.high >= exact - slack).all())
    assert bool((bracket.low >= 0).all())
    width = (case.chain.lengths - 1) * math.log(case.transitions.num_terms)
    assert bool((bracket.high - bracket.low <= width + slack).all())


def test_the_upper_bound_is_the_entropy_of_states_and_indices() -> None:
    """All paths over (x, j), one by one: a chain whose states between the steps are the indices."""
    case = make_case(4, shape=(3, 3, 2, 2))
    left, right = case.tensors
    scores = torch.zeros(3, 2, 3, 2, 3, dtype=torch.float64)
    for axis, step in ((0, 0), (2, 1), (4, 2)):
        scores = scores + case.unaries[step].view([3 if a == axis else 1 for a in range(5)])
    scores = scores + left[0].view(3, 2, 1, 1, 1) + right[0].T.reshape(1, 2, 3, 1, 1)
    scores = scores + left[1].view(1, 1, 3, 2, 1) + right[1].T.reshape(1, 1, 1, 2, 3)
    log_probs = scores.flatten().log_softmax(0)
    close(case.chain.entropy_bracket().high, -(log_probs.exp() * log_probs).sum())


def test_bracket_of_one_index_is_the_entropy() -> None:
    for kind in ("dense", "low-rank"):
        case = make_case(5, kind=kind, shape=(4, 3, 1, 1), batches=((2,), ()))
        bracket = case.chain.entropy_bracket()
        close(bracket.low, case.of("entropy"))
        close(bracket.high, case.of("entropy"))


# -- estimates ----------------------------------------------------------------------------------------------
def test_intervals_hold_the_truth_as_often_as_they_say(generator: torch.Generator) -> None:
    """300 intervals of 95 % each: 264 to 300 hold but for a chance of 1e-7, if 95 % do."""
    case = make_case(6, shape=(4, 3, 2, 1))
    other = case.nearby()
    p, q = (Chain(c.transitions, c.unaries.expand(300, 4, 3)) for c in (case, other))
    pairs = [
        (case.of("entropy"), lambda n: p.entropy_sampled(n, generator=generator)),
        (
            between("cross_entropy", case, other),
            lambda n: p.cross_entropy_sampled(q, n, generator=generator),
        ),
        (between("kl", case, other), lambda n: p.kl_sampled(q, n, generator=generator)),
    ]
    for truth, sampled in pairs:
        found = sampled(100)
        assert found.num_samples == 100
        held = ((found.low <= truth) & (truth <= found.high)).sum()
        assert 264 <= int(held) < 300, held
        width = found.high - found.low
        assert abs(float(found.value.mean() - truth)) < 6 * float(width.mean()) / 4 / 300**0.5
        assert 0.45 < float((sampled(400).high - sampled(400).low).mean() / width.mean()) < 0.55


def test_log_probs_in_pieces(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    case = make_case(7, shape=(4, 3, 2, 1), batches=((2,), ()))
    states = case.chain.sample((9,), generator=generator)
    monkeypatch.setattr(information, "_ELEMENTS", 1)
    close(log_probs(case.chain, states), case.chain.log_prob(states))


def test_one_sample_says_that_it_knows_nothing(generator: torch.Generator) -> None:
    found = make_case(8).chain.entropy_sampled(1, generator=generator)
    assert (float(found.low), float(found.high)) == (-math.inf, math.inf)
    assert Estimate.over(torch.tensor([2.0, 2.0, 2.0])).low == 2.0


def test_errors(generator: torch.Generator) -> None:
    case = make_case(9, shape=(4, 3, 2, 1))
    short = Chain(case.transitions, case.unaries[:3])
    with pytest.raises(ValueError, match=r"unaries are \[3, 3\], this one's \[4, 3\]"):
        case.chain.kl(short)
    other = Chain(case.transitions, case.unaries, lengths=torch.tensor(2))
    full = Chain(case.transitions, case.unaries)
    with pytest.raises(ValueError, match="other lengths"):
        full.cross_entropy(other)
    with pytest.raises(ValueError, match="num_samples=0"):
        full.entropy_sampled(0, generator=generator)
    nothing = Chain(Dense(torch.full((1, 3, 3), -torch.inf).double()), case.unaries)
    for call in (nothing.entropy, nothing.entropy_bracket, lambda: full.kl(nothing)):
        with pytest.raises(ValueError, match="allow nothing at all"):
            call()
