"""The fast log Z against the recursion over semirings, and that it says where it cannot know."""

import math

import pytest
import torch

from bochner.structured import Chain, Dense, LogSum, LowRank
from bochner.structured.chains.recursion import recorded_log_partition
from bochner.structured.chains.scaled_products import _laid, scaled_log_partition


def random_transitions(kind, states, blocks, scale, generator, dtype=torch.float64):
    if kind == "dense":
        logs = scale * torch.randn(blocks, states, states, generator=generator, dtype=dtype)
        return Dense(logs)
    left, right = scale * torch.randn(2, blocks, states, 4, generator=generator, dtype=dtype)
    return LowRank(left, right)


@pytest.mark.parametrize("kind", ["dense", "low rank"])
@pytest.mark.parametrize(("steps", "blocks"), [(1, 1), (2, 1), (7, 1), (7, 3), (3, 5)])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_it_is_the_recursion(kind, steps, blocks, scale, monkeypatch):
    monkeypatch.setattr(
        "bochner.structured.chains.scaled_products._ELEMENTS", 2 * 3 * 6
    )  # two steps at once
    g = torch.Generator().manual_seed(blocks)
    transitions = random_transitions(kind, 6, blocks, scale, g)
    u = scale * torch.randn(3, steps, 6, generator=g, dtype=torch.float64)
    u[0, 0, 2] = -math.inf
    found, sure = scaled_log_partition(transitions, u)
    expected = recorded_log_partition(LogSum(), transitions, u, torch.full((3,), steps))
    assert bool(sure.all())
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_float32(kind, generator):
    transitions = random_transitions(kind, 50, 1, 3.0, generator, torch.float32)
    u = 3 * torch.randn(2, 40, 50, generator=generator)
    found, sure = scaled_log_partition(transitions, u)
    double = transitions.double(), u.double(), torch.tensor([40, 40])
    assert bool(sure.all())
    assert torch.allclose(found, recorded_log_partition(LogSum(), *double), rtol=1e-5)


@pytest.mark.parametrize("excess", [0.0, 1000.0, -1000.0])
def test_scales_of_rows_columns_and_features_cancel(excess, generator):
    left, right = torch.randn(2, 1, 5, 3, generator=generator)
    u = torch.randn(1, 6, 5, generator=generator)
    plain, _ = scaled_log_partition(LowRank(left, right), u)
    shift = excess * torch.tensor([1.0, -1.0, 0.5])
    rows = excess * torch.arange(5.0).unsqueeze(-1)
    moved = LowRank(left + shift + rows, right - shift)
    given = u.clone()
    given[:, :-1] -= rows.squeeze(-1)
    found, sure = scaled_log_partition(moved, given)
    assert bool(sure.all())
    assert float(found) == pytest.approx(float(plain), abs=2e-3)  # numbers of 5,000 in float32


def test_what_float32_loses_is_not_sure_and_rescued():
    """The only path takes a transition of e^-100, which float32 has no number for."""
    logs = torch.tensor([[[0.0, -100.0], [-100.0, 0.0]]])
    u = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert scaled_log_partition(Dense(logs), u.unsqueeze(0)) is None
    assert float(Chain(Dense(logs), u).log_partition) == pytest.approx(-100.0)


def test_what_is_small_but_held_is_not_sure_where_later_weights_could_matter():
    """e^-60 is a float32, but what else was lost beside it could be as large: asked again."""
    logs = torch.tensor([[[0.0, -60.0], [-60.0, 0.0]]])
    u = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    _, sure = scaled_log_partition(Dense(logs), u.unsqueeze(0))
    assert not bool(sure)
    assert float(Chain(Dense(logs), u).log_partition) == pytest.approx(-60.0)


def test_no_path_is_minus_infinity():
    u = torch.full((3, 2), -math.inf)
    assert float(Chain(Dense(torch.zeros(1, 2, 2)), u).log_partition) == -math.inf


def test_transitions_with_a_batch_have_no_factors(generator):
    batched = LowRank(*torch.randn(2, 3, 1, 5, 2, generator=generator))
    assert batched.factors(0) is None
    assert scaled_log_partition(batched, torch.zeros(3, 4, 5)) is None


def test_the_chain_takes_it_without_a_gradient_only(generator, monkeypatch):
    calls = []

    def spy(transitions, unaries):
        calls.append(1)
        return scaled_log_partition(transitions, unaries)

    monkeypatch.setattr("bochner.structured.chains.recursion.scaled_log_partition", spy)
    u = torch.randn(4, 6, generator=generator)
    transitions = LowRank(*torch.randn(2, 1, 6, 3, generator=generator))
    plain = Chain(transitions, u).log_partition
    assert calls == [1]
    leaf = u.clone().requires_grad_()
    value = Chain(transitions, leaf).log_partition
    assert calls == [1]
    assert float(value.detach()) == pytest.approx(float(plain), rel=1e-6)
    Chain(transitions, torch.stack([u, u]), lengths=torch.tensor([4, 2])).log_partition  # noqa: B018
    assert calls == [1]


def test_a_message_may_fall_for_any_number_of_steps():
    """By e^-20 a step: what was lost can gain no more on it than e^20, once."""
    logs = torch.tensor([[[0.0, -20.0], [-20.0, 0.0]]])
    u = torch.full((1, 40, 2), -math.inf)
    u[0, range(40), [step % 2 for step in range(40)]] = 0.0
    found, sure = scaled_log_partition(Dense(logs), u)
    assert bool(sure)
    assert float(found) == pytest.approx(-20.0 * 39)


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_what_is_lost_and_then_favoured_a_little_at_every_step_is_found(kind):
    """One path switches at e^-150, flushed to 0, and gains e^10 a step: no single step looks suspicious."""
    logs = torch.tensor([[[0.0, -150.0], [-150.0, 0.0]]])
    k = Dense(logs) if kind == "dense" else LowRank(logs / 2, logs / 2)
    u = torch.tensor([[0.0, -300.0]] + [[0.0, 10.0]] * 20)
    found = scaled_log_partition(k, u.unsqueeze(0))
    assert found is None or not bool(found[1])
    double = k.double(), u.double(), torch.tensor(21)
    expected = float(recorded_log_partition(LogSum(), *double))
    assert float(Chain(k, u).log_partition) == pytest.approx(expected)


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("steps", [5, 40])
def test_layouts(batch, steps, generator, monkeypatch):
    """Few sequences and many steps take another layout of the factors, and give the same log Z."""
    laid = []

    def spy(matrix, long_rows):
        found = _laid(matrix, long_rows)
        laid.append(max(range(2), key=lambda dim: found.shape[dim]) == found.stride().index(1))
        return found

    monkeypatch.setattr("bochner.structured.chains.scaled_products._laid", spy)
    transitions = random_transitions("low rank", 9, 1, 1.0, generator)
    before = [t.clone() for t in transitions.tensors()]
    u = torch.randn(batch, steps, 9, generator=generator, dtype=torch.float64)
    found, sure = scaled_log_partition(transitions, u)
    expected = recorded_log_partition(LogSum(), transitions, u, torch.full((batch,), steps))
    assert bool(sure.all())
    assert torch.allclose(found, expected, rtol=1e-12)
    assert laid == [batch < 4 and steps > 16] * 2
    assert all(torch.equal(t, b) for t, b in zip(transitions.tensors(), before, strict=True))
