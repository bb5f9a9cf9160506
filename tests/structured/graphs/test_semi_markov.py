"""Semi-Markov chains against enumeration of every segmentation, and against chains."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.structured import Chain, Dense, LowRank, Segmentation, SemiMarkov
from tests.structured.brute_graphs import Segmentations
from tests.structured.graph_cases import (
    forbidding,
    in_single,
    kinds,
    normal,
    potentials_of,
    precisions,
    seeded,
    seeds,
    spreads,
    transitions_of,
)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=False
    )


def segmentation_of(segments: tuple[tuple[int, int], ...]) -> Segmentation:
    labels = [label for label, duration in segments for _ in range(duration)]
    begins = [at == 0 for _, duration in segments for at in range(duration)]
    return Segmentation(torch.tensor(labels), torch.tensor(begins))


def check_against(model: SemiMarkov, every: Segmentations, tolerance: float = 1e-10) -> None:
    close(model.log_partition, every.log_partition, tolerance)
    close(model.marginals, every.marginals, tolerance)
    close(model.begins, every.begins, tolerance)
    close(model.ends, every.ends, tolerance)
    close(model.durations, every.durations, tolerance)
    close(model.entropy(), every.entropy, tolerance)
    best, score = model.mode()
    close(score, every.best, tolerance)
    close(model.score(best), every.best, tolerance)
    likely = every.marginals.gather(-1, model.posterior_decode().unsqueeze(-1)).squeeze(-1)
    close(likely, every.marginals.amax(-1), tolerance)
    chosen = range(0, len(every.configurations), max(1, len(every.configurations) // 20))
    parts = [segmentation_of(every.configurations[c]) for c in chosen]
    found = model.log_prob(
        Segmentation(torch.stack([p.labels for p in parts]), torch.stack([p.begins for p in parts]))
    )
    close(found, every.scores[list(chosen)] - every.log_partition, tolerance)


@settings(max_examples=30, deadline=None)
@given(
    seeds,
    kinds,
    spreads,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.4]),
    precisions,
)
def test_every_query_against_enumeration(
    seed, kind, spread, steps, states, longest, gone, dtype
) -> None:
    g = seeded(seed)
    transitions = transitions_of(kind, states, steps - 1, g, spread=spread)
    unaries = forbidding(normal(steps, states, generator=g, spread=2.0), g, gone)
    durations = forbidding(normal(states, longest, generator=g, spread=spread), g, gone)
    tolerance = 1e-10
    if dtype == torch.float32:
        transitions, tolerance = in_single(transitions), 1e-4
        unaries, durations = unaries.float(), durations.float()
    potentials = potentials_of(transitions, steps - 1)
    model = SemiMarkov(transitions, unaries, log_durations=durations)
    check_against(model, Segmentations(unaries, potentials, durations), tolerance)


@pytest.mark.parametrize("kind", ["dense", "dense per edge", "low rank, two blocks"])
@pytest.mark.parametrize("shared", [True, False])
def test_lengths_and_batches_against_single_sequences(kind: str, shared: bool) -> None:
    g = seeded(1)
    transitions = transitions_of(kind, 3, 5, g)
    unaries, lengths = normal(2, 3, 6, 3, generator=g), torch.tensor([[6, 1, 4], [3, 5, 2]])
    unaries[0, 2, 4:] = -math.inf  # beyond its length: not read
    durations = normal(*(() if shared else (2, 3)), 3, 4, generator=g)
    model = SemiMarkov(transitions, unaries, log_durations=durations, lengths=lengths)
    drawn = model.sample((5,), generator=g)
    found = model.log_prob(drawn)
    _, score = model.mode()
    for b in [(i, j) for i in range(2) for j in range(3)]:
        n = int(lengths[b])
        own = durations if shared else durations[b]
        one = SemiMarkov(transitions, unaries[b][:n], log_durations=own)
        close(model.log_partition[b], one.log_partition)
        for name in ("marginals", "begins", "ends"):
            close(getattr(model, name)[b][:n], getattr(one, name))
            assert not getattr(model, name)[b][n:].any()
        close(model.durations[b], one.durations)
        close(model.entropy()[b], one.entropy())
        close(score[b], one.mode()[1])
        assert not drawn.labels[(slice(None), *b)][:, n:].any()
        part = Segmentation(*(x[(slice(None), *b)][:, :n] for x in drawn))
        close(found[(slice(None), *b)], one.log_prob(part))


def test_batched_transitions() -> None:
    g = seeded(2)
    left, right = normal(2, 3, 1, 4, 2, generator=g)
    unaries, durations = normal(3, 5, 4, generator=g), normal(4, 3, generator=g)
    model = SemiMarkov(LowRank(left, right), unaries, log_durations=durations)
    drawn = model.sample((2,), generator=g)
    assert drawn.labels.shape == drawn.begins.shape == (2, 3, 5)
    assert bool(torch.isfinite(model.log_prob(drawn)).all())
    for b in range(3):
        one = SemiMarkov(LowRank(left[b], right[b]), unaries[b], log_durations=durations)
        close(model.log_partition[b], one.log_partition)
        close(model.marginals[b], one.marginals)
        close(model.mode()[1][b], one.mode()[1])


def test_segments_of_one_step_are_a_chain() -> None:
    g = seeded(3)
    transitions = transitions_of("low rank, two blocks", 5, 7, g)
    unaries, lengths = normal(2, 8, 5, generator=g), torch.tensor([8, 5])
    model = SemiMarkov(transitions, unaries, log_durations=torch.zeros(5, 1), lengths=lengths)
    chain = Chain(transitions, unaries, lengths=lengths)
    close(model.log_partition, chain.log_partition)
    close(model.marginals, chain.marginals)
    close(model.mode()[1], chain.mode().log_score)


def test_gradients_are_expected_counts_and_differentiable() -> None:
    g = seeded(4)
    left, right = normal(2, 1, 3, 2, generator=g)
    unaries = normal(4, 3, generator=g).requires_grad_()
    durations = normal(3, 3, generator=g).requires_grad_()
    left.requires_grad_()

    def value(u: Tensor, d: Tensor, features: Tensor) -> Tensor:
        return SemiMarkov(LowRank(features, right), u, log_durations=d).log_partition

    by_unaries, by_durations = torch.autograd.grad(
        value(unaries, durations, left), (unaries, durations)
    )
    model = SemiMarkov(LowRank(left, right), unaries, log_durations=durations)
    close(by_unaries, model.marginals)
    close(by_durations, model.durations)
    assert torch.autograd.gradcheck(value, (unaries, durations, left))
    assert torch.autograd.gradgradcheck(value, (unaries, durations, left))


def test_a_gradient_keeps_nothing_of_the_size_of_all_durations() -> None:
    g = seeded(7)
    states, steps, longest = 50, 40, 30
    unaries = normal(steps, states, generator=g).requires_grad_()
    durations = normal(states, longest, generator=g).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        transitions = transitions_of("low rank", states, steps - 1, g)
        value = SemiMarkov(transitions, unaries, log_durations=durations).log_partition
    assert value.requires_grad
    assert sum(kept.values()) < 8 * unaries.nbytes  # all durations are 30 times the unaries


def test_samples_follow_the_model() -> None:
    g = seeded(5)
    transitions = transitions_of("low rank", 2, 3, g)
    unaries, durations = normal(4, 2, generator=g), normal(2, 3, generator=g)
    every = Segmentations(unaries, potentials_of(transitions, 3), durations)
    count = 4000
    drawn = SemiMarkov(transitions, unaries, log_durations=durations).sample((count,), generator=g)
    names = {
        (tuple(s.labels.tolist()), tuple(s.begins.tolist())): number
        for number, s in enumerate(map(segmentation_of, every.configurations))
    }
    seen = torch.zeros(len(names), dtype=torch.float64)
    for labels, begins in zip(drawn.labels.tolist(), drawn.begins.tolist(), strict=True):
        seen[names[tuple(labels), tuple(begins)]] += 1
    expected = count * every.probabilities
    statistic = float(((seen - expected) ** 2 / expected).sum())
    # Wilson-Hilferty: chi-squared beyond 5.5 standard deviations, a probability of 2e-8
    freedom = len(names) - 1
    assert (statistic / freedom) ** (1 / 3) < 1 - 2 / (9 * freedom) + 5.5 * math.sqrt(
        2 / (9 * freedom)
    )


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_float32_and_extreme_ranges(kind: str) -> None:
    g = seeded(6)
    single = in_single(transitions_of(kind, 3, 4, g, spread=40.0))
    unaries = normal(4, 3, generator=g, spread=30.0).float()
    durations = normal(3, 3, generator=g, spread=30.0).float()
    every = Segmentations(unaries, potentials_of(single, 3), durations)
    check_against(SemiMarkov(single, unaries, log_durations=durations), every, 1e-4)


def test_messages_that_do_not_meet_in_float32() -> None:
    # what comes from the start and from the end favours different labels by exp(120) each
    same = torch.full((1, 2, 2), -400.0)
    same[0].fill_diagonal_(0.0)
    unaries = torch.tensor([[0.0, -120.0], [0.0, 0.0], [-121.0, 0.0]])
    durations = torch.tensor([[0.0, -300.0], [0.0, -300.0]])
    every = Segmentations(unaries, same.expand(2, 2, 2), durations)
    check_against(SemiMarkov(Dense(same), unaries, log_durations=durations), every, 1e-4)


def test_long_forbidden_stretches_leave_no_nan() -> None:
    # label 1 may stand at the ends alone: cumulative sums would take infinities from each other
    unaries = torch.zeros(30, 2, dtype=torch.float64)
    unaries[5:25, 1] = -math.inf
    unaries.requires_grad_()
    durations = torch.zeros(2, 30, dtype=torch.float64, requires_grad=True)
    table = torch.tensor([[[-math.inf, 0.0], [0.0, -math.inf]]], dtype=torch.float64)
    model = SemiMarkov(Dense(table), unaries, log_durations=durations)
    found = torch.autograd.grad(model.log_partition, (unaries, durations))
    assert all(bool(torch.isfinite(f).all()) for f in found)
    close(found[0], model.marginals)
    # labels alternate, so that the stretch is one segment of label 0; each of the 5 boundaries before it
    # and of the 5 behind it is a cut or not, which decides all labels
    close(model.log_partition, torch.tensor(math.log(2.0**10), dtype=torch.float64))


def test_nothing_allowed() -> None:
    unaries = torch.zeros(2, 3, 2)
    unaries[1, 2] = -math.inf
    durations = torch.zeros(2, 2)
    model = SemiMarkov(Dense(torch.zeros(1, 2, 2)), unaries, log_durations=durations)
    assert model.log_partition[1] == -math.inf
    for query in (lambda: model.marginals, model.mode):
        with pytest.raises(ValueError, match="1 of 2 elements of the batch allow nothing"):
            query()


def test_segments_that_are_too_long_have_probability_zero() -> None:
    model = SemiMarkov(
        Dense(torch.zeros(1, 2, 2)), torch.zeros(3, 2), log_durations=torch.zeros(2, 2)
    )
    long = Segmentation(torch.zeros(3).long(), torch.tensor([True, False, False]))
    assert model.log_prob(long) == -math.inf


@pytest.mark.parametrize(
    ("labels", "begins", "error", "message"),
    [
        ([0, 1, 1], [True, False, False], ValueError, "labels change at step 1"),
        ([0, 0, 0], [False, True, False], ValueError, "begins must be True at step 0"),
        ([0, 0, 0], [1, 0, 0], TypeError, "begins must be a bool"),
        ([0, 0, 2], [True, True, True], ValueError, "labels holds values from 0 to 2"),
        ([0, 0, 0], [True], ValueError, "begins has shape"),
    ],
)
def test_errors_of_segmentations(labels, begins, error, message) -> None:
    model = SemiMarkov(
        Dense(torch.zeros(1, 2, 2)), torch.zeros(3, 2), log_durations=torch.zeros(2, 2)
    )
    with pytest.raises(error, match=message):
        model.log_prob(Segmentation(torch.tensor(labels), torch.tensor(begins)))


@pytest.mark.parametrize(
    ("durations", "error", "message"),
    [
        (torch.zeros(3, 2), ValueError, r"expected \[\*batch, 2, K\]"),
        (torch.zeros(2, 0), ValueError, "K >= 1"),
        (torch.full((2, 2), torch.nan), ValueError, "NaN or"),
        (torch.zeros(2, 2, dtype=torch.long), TypeError, "floating-point"),
        (torch.zeros(5, 2, 2), ValueError, "do not broadcast"),
    ],
)
def test_errors_of_durations(durations, error, message) -> None:
    with pytest.raises(error, match=message):
        SemiMarkov(Dense(torch.zeros(1, 2, 2)), torch.zeros(4, 3, 2), log_durations=durations)


def test_sampled_entropy_and_probabilities_of_at_most_one() -> None:
    g = seeded(15)
    model = SemiMarkov(
        transitions_of("low rank", 3, 1, g),
        normal(2, 5, 3, generator=g),
        log_durations=normal(3, 4, generator=g),
        lengths=torch.tensor([5, 3]),
    )
    found = model.entropy_sampled(4000, generator=g)
    assert found.value.shape == (2,)
    # 95 % intervals: 2.8 times as wide, 5.5 standard errors, false alarm below 1e-7
    width = 2.8 * (found.high - found.low) / 2
    assert ((found.value - model.entropy()).abs() < width).all()
    assert (width < 0.2).all()
    one = Segmentation(torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool))
    for _ in range(40):
        table, weights = normal(1, 1, 1, generator=g), normal(4, 1, generator=g)
        certain = SemiMarkov(Dense(table), weights, log_durations=normal(1, 1, generator=g))
        assert certain.log_prob(one) <= 0
        assert certain.log_prob(one) > -1e-12


def test_transitions_are_read_anew() -> None:
    left = normal(1, 3, 2, generator=seeded(16)).requires_grad_()
    transitions, unaries = LowRank(left, left), normal(3, 3, generator=seeded(17))
    durations = torch.zeros(3, 1, dtype=torch.float64)

    def value() -> Tensor:
        return SemiMarkov(transitions, unaries, log_durations=durations).log_partition

    before = value()
    before.backward()
    with torch.no_grad():
        left += 1.0
    after = value()
    after.backward()
    close(after - before, torch.tensor(4.0))
