"""log Z, marginals, scores and their gradients against all paths, one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bochner.structured import Chain, Dense, ExactChain, HybridChain, LowRank, LowRankChain
from tests.structured import brute
from tests.structured.allocations import largest_tensor
from tests.structured.chain_cases import Case, cases, close, make_case, possible

EXTREME = (100.0, 1000.0, 10_000.0)  # exp of these leaves float32 and float64


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_log_partition(case: Case) -> None:
    close(case.chain.log_partition, case.of("log_partition"))
    close(case.to(torch.float32).chain.log_partition, case.of("log_partition"), tolerance=1e-5)


@settings(max_examples=60, deadline=None)
@given(case=cases(sizes=EXTREME))
def test_log_partition_of_any_range(case: Case) -> None:
    unit = float(torch.where(torch.isfinite(case.unaries), case.unaries.abs(), 0.0).max())
    close(case.chain.log_partition, case.of("log_partition"), unit=unit)
    single = case.to(torch.float32)
    close(single.chain.log_partition, single.of("log_partition"), tolerance=2e-6, unit=unit)


@settings(max_examples=60, deadline=None)
@given(case=cases(sizes=(0.0, 1.0, 5.0, 1000.0)))
def test_marginals(case: Case) -> None:
    if not possible(case):
        with pytest.raises(ValueError, match="allow nothing at all"):
            _ = case.chain.marginals
        return
    close(case.chain.marginals, case.of("marginals"))
    with torch.no_grad():
        close(case.chain.marginals, case.of("marginals"))
    if float(case.unaries.nan_to_num(0, 0, 0).abs().max()) < 50:
        close(case.to(torch.float32).chain.marginals, case.of("marginals"), tolerance=1e-4)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_log_prob_of_every_path(case: Case) -> None:
    if not possible(case):
        return
    batch = case.unaries.shape[:-2]
    for index, paths in zip(torch.ones(batch).nonzero().tolist(), case.paths, strict=True):
        at = tuple(index)
        states = torch.zeros(len(paths.states), paths.num_steps, dtype=torch.long)
        states[:, : paths.length] = paths.states
        whole = torch.zeros(len(states), *batch, paths.num_steps, dtype=torch.long)
        whole[(slice(None), *at)] = states
        found = case.chain.log_prob(whole)[(slice(None), *at)]
        close(found, paths.log_probs)
        assert float(found.max()) <= 0.0
        close(case.chain.score(whole)[(slice(None), *at)], paths.scores)


@settings(max_examples=60, deadline=None)
@given(case=cases(sizes=(0.0, 1.0, 5.0, 1000.0)))
def test_gradients(case: Case) -> None:
    """By unaries and features; a sequence without a path has none and disturbs none."""
    ours, theirs = case.detached(), case.detached()
    probe = torch.linspace(1.0, 2.0, math.prod(case.unaries.shape[:-2])).double()
    probe = probe.reshape(case.unaries.shape[:-2])
    (ours.chain.log_partition * probe).sum().backward()
    value = brute.log_partition(theirs.dense, theirs.unaries, theirs.lengths)
    value = torch.where(torch.isfinite(value), value, theirs.unaries.sum() * 0.0)
    expected = torch.autograd.grad((value * probe).sum(), theirs.leaves, materialize_grads=True)
    for one, other in zip(ours.leaves, expected, strict=True):
        close(one.grad, other)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["low-rank", "dense"]))
def test_second_derivatives(seed: int, kind: str) -> None:
    """Of log Z: the covariances of states; by unaries and features, mixed."""
    case = make_case(seed, kind=kind, shape=(3, 2, 2, 2), batches=((2,), ()))
    found = []
    for of in (
        lambda c: c.chain.log_partition,
        lambda c: brute.log_partition(c.dense, c.unaries, c.lengths),
    ):
        leaf = case.detached()
        first = torch.autograd.grad(
            of(leaf).sum(), leaf.leaves, create_graph=True, materialize_grads=True
        )
        g = torch.Generator().manual_seed(1)
        along = sum((t * torch.randn(t.shape, generator=g, dtype=t.dtype)).sum() for t in first)
        found.append(torch.autograd.grad(along, leaf.leaves, materialize_grads=True))
    for one, other in zip(*found, strict=True):
        close(one, other)


def test_marginals_can_be_differentiated() -> None:
    case = make_case(4, shape=(3, 3, 2, 1)).detached()
    (ours,) = torch.autograd.grad(case.chain.marginals[1, 0], case.unaries)
    twin = make_case(4, shape=(3, 3, 2, 1)).detached()
    (theirs,) = torch.autograd.grad(twin.paths[0].marginals[1, 0], twin.unaries)
    close(ours, theirs)


def test_gradient_of_a_long_chain_is_made_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(1, shape=(50, 6, 3, 4), batches=((2,), ()))
    whole = case.detached()
    whole.chain.log_partition.sum().backward()
    monkeypatch.setattr(
        "bochner.structured.chains.recursion._SEGMENT_ELEMENTS", 1
    )  # sqrt(T) steps each
    parts = case.detached()
    parts.chain.log_partition.sum().backward()
    for one, other in zip(whole.leaves, parts.leaves, strict=True):
        close(one.grad, other.grad)
    assert float(one.grad.abs().max()) > 0.01


def test_what_lies_beyond_the_lengths_is_not_read() -> None:
    case = make_case(3, shape=(4, 3, 2, 1), batches=((2,), ()))
    lengths = torch.tensor([2, 4])
    one, other = case.unaries.clone(), case.unaries.clone()
    one[0, 2:], other[0, 2:] = -torch.inf, 1e30
    chains = [Chain(case.transitions, u.requires_grad_(), lengths=lengths) for u in (one, other)]
    close(*(c.log_partition for c in chains))
    close(*(c.marginals for c in chains))
    assert torch.equal(chains[0].marginals[0, 2:], torch.zeros(2, 3).double())
    states = torch.tensor([[0, 1, -7, 99], [0, 0, 0, 0]])
    close(*(c.log_prob(states) for c in chains))


def test_a_single_state_and_a_single_step() -> None:
    one = LowRankChain(torch.zeros(1, 1), torch.ones(1, 1), torch.full((5, 1), 2.0))
    assert float(one.log_partition) == 14.0
    assert float(one.log_prob(torch.zeros(5, dtype=torch.long))) == 0.0
    step = LowRankChain(torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([[0.0, 1.0, 2.0]]))
    close(step.marginals[0], torch.tensor([0.0, 1.0, 2.0]).softmax(0), tolerance=1e-6)


def test_a_certain_path_is_never_more_than_certain() -> None:
    """float32 rounds the score of the one path there is above log Z; the gradient stays what it is."""
    g = torch.Generator().manual_seed(0)
    rounded = 0
    for _ in range(10):
        left, right = 2 * torch.randn(2, 1, 16, generator=g)
        unaries = (5 * torch.randn(200, 1, generator=g)).requires_grad_()
        chain, states = LowRankChain(left, right, unaries), torch.zeros(200, dtype=torch.long)
        rounded += int(chain.score(states) > chain.log_partition)
        value = chain.log_prob(states)
        assert -1e-3 < float(value.detach()) <= 0.0
        (slope,) = torch.autograd.grad(value, unaries)
        assert float(slope.abs().max()) < 1e-5
    assert rounded > 0


def test_the_gradient_of_many_samples_is_no_larger_than_the_chain() -> None:
    g = torch.Generator().manual_seed(0)
    left, unaries = torch.randn(300, 4, generator=g), torch.randn(6, 300, generator=g)
    unaries.requires_grad_()
    chain = LowRankChain(left, left, unaries)
    states = chain.sample((100,), generator=g)
    with largest_tensor() as seen:
        chain.log_prob(states).sum().backward()
    assert seen.elements <= 100 * 6 * 4  # samples x steps x rank
    # E[grad log p] = 0, and of the score alone the counts of the states
    counts = torch.zeros(6, 300).index_put(
        (torch.arange(6).expand(100, 6), states), torch.ones(100, 6), accumulate=True
    )
    assert torch.allclose(unaries.grad, counts - 100 * chain.marginals, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    unaries = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    table = torch.zeros(1, 2, 2)
    found = Chain(Dense(table), unaries.to(dtype)).log_partition
    assert found.dtype == torch.float32
    close(found, brute.log_partition(table, unaries), tolerance=1e-6)


@pytest.mark.parametrize("kind", ["low-rank", "hybrid", "exact"])
def test_inference_mode_answers_what_no_grad_does(kind: str) -> None:
    """Marginals and hidden entropies are gradients, which inference mode does not record."""
    make = {
        "low-rank": lambda a, u: LowRankChain(a, a, u),
        "hybrid": lambda a, u: HybridChain.from_embeddings(
            a, a, u, num_features=4, beam=2, generator=torch.Generator().manual_seed(0)
        ),
        "exact": lambda a, u: ExactChain.from_embeddings(a, a, u, stored_elements=0),
    }[kind]
    g = torch.Generator().manual_seed(1)
    a, u = torch.randn(5, 3, generator=g), torch.randn(2, 4, 5, generator=g)
    lengths = torch.tensor([4, 2])

    def answers() -> list[torch.Tensor]:
        chain = make(a.clone(), u.clone())
        chain = Chain(chain.transitions, chain.unaries, lengths=lengths.clone())
        found = [chain.log_partition, chain.marginals, chain.entropy(), chain.pairwise.dense(0)]
        found += [chain.posterior_decode().states, chain.mode_pruned(2).states, chain.mode().states]
        return [*found, *(chain.entropy_bracket() if kind == "low-rank" else ())]

    expected = answers()
    with torch.inference_mode():
        found = answers()
        chain = make(a.clone(), u.clone())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(chain.marginals, make(a, u).marginals)  # made there, asked here


def refused(message: str, *args: object, **options: object) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Chain(*args, **options)  # type: ignore[arg-type]


def test_errors_name_what_came_and_what_was_expected() -> None:
    k, u = Dense(torch.zeros(1, 3, 3)), torch.zeros(2, 4, 3)
    refused(r"unaries must be a floating-point torch.Tensor", k, u.long())
    refused(r"unaries has 2 states in its last dimension, the transitions have 3", k, u[..., :2])
    refused(r"unaries has shape \[3\]", k, u[0, 0])
    refused(r"unaries holds NaN or \+inf", k, u + torch.inf)
    refused(r"unaries holds NaN or \+inf", k, u + torch.nan)
    refused(r"unaries are torch.float64, the transitions torch.float32", k, u.double())
    for bad in (torch.nan, torch.inf):
        features = torch.zeros(1, 3, 2).index_fill(-1, torch.tensor(1), bad)
        refused(r"transitions \(LowRank\) hold NaN", LowRank(features, torch.zeros(1, 3, 2)), u)
        refused(r"transitions \(LowRank\) hold NaN", LowRank(torch.zeros(1, 3, 2), features), u)
        refused(r"transitions \(Dense\) hold NaN", Dense(torch.full((1, 3, 3), bad)), u)
    refused(r"or nothing, in a tensor of shape", LowRank(*torch.zeros(2, 1, 3, 0)), u)
    for wrong in ([0.0], torch.zeros(3), torch.zeros(3, 2, dtype=torch.long)):
        with pytest.raises(TypeError, match="log_left is .*; expected a floating-point tensor"):
            LowRankChain(wrong, torch.zeros(3, 2), u)  # type: ignore[arg-type]
    refused(r"do not broadcast", Dense(torch.zeros(3, 1, 3, 3)), u)
    refused(r"lengths must be a torch.Tensor of integers", k, u, lengths=torch.ones(2))
    refused(r"lengths has shape \[3\]; expected \[2\]", k, u, lengths=torch.tensor([1, 2, 3]))
    refused(r"lengths goes from 0 to 4; expected 1..4", k, u, lengths=torch.tensor([0, 4]))
    chain = Chain(k, u)
    with pytest.raises(TypeError, match="states must be a torch.Tensor of integers"):
        chain.log_prob(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"states has shape \[4\]"):
        chain.log_prob(torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"states holds values from 0 to 3; expected 0..2"):
        chain.log_prob(torch.full((2, 4), 3).triu())
    with pytest.raises(ValueError, match="both must be"):
        LowRank(torch.zeros(1, 3, 2), torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="one block"):
        Dense(torch.zeros(3, 3))


def test_one_impossible_sequence_leaves_the_others_alone() -> None:
    case = make_case(2, shape=(3, 3, 2, 1), batches=((2,), ()))
    unaries = case.unaries.clone()
    unaries[0, 1] = -torch.inf
    broken = Case(case.tensors, unaries, None)
    value = broken.chain.log_partition
    assert float(value[0]) == -math.inf
    close(value[1], case.of("log_partition")[1])
    leaf = broken.detached()
    leaf.chain.log_partition[1].backward()
    assert all(bool(torch.isfinite(t.grad).all()) for t in leaf.leaves)
    with pytest.raises(ValueError, match="1 of 2 elements of the batch allow nothing"):
        _ = broken.chain.marginals


def test_transitions_are_read_anew() -> None:
    # as in a loop that makes the transitions once and whose optimiser writes to their features
    g = torch.Generator().manual_seed(0)
    left = torch.randn(1, 4, 2, generator=g, dtype=torch.float64)
    unaries = torch.randn(3, 4, generator=g, dtype=torch.float64)
    transitions = LowRank(left, left)
    before = Chain(transitions, unaries).log_partition
    left += 1.0
    close(Chain(transitions, unaries).log_partition - before, torch.tensor(4.0))


def test_a_table_is_read_entry_by_entry() -> None:
    # not row by row: many samples would lay out [samples, T, X]
    g = torch.Generator().manual_seed(0)
    chain = Chain(Dense(torch.randn(1, 50, 50, generator=g)), torch.randn(9, 50, generator=g))
    states = chain.sample((300,), generator=g)
    with largest_tensor() as largest:
        pairs = chain.transitions.log_potential(states[:, :-1], states[:, 1:])
    assert largest.elements <= 2 * pairs.numel()
    expected = chain.transitions.log_potentials[0, states[:, :-1], states[:, 1:]]
    assert torch.equal(pairs, expected)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_another_default_dtype_changes_nothing(scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    features, unaries = (scale * torch.randn(*s, generator=g) for s in ((1, 6, 3), (7, 6)))
    expected = Chain(LowRank(features, features), unaries).log_partition
    try:
        torch.set_default_dtype(torch.float64)
        found = Chain(LowRank(features, features), unaries).log_partition
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_devices_must_agree() -> None:
    features = torch.zeros(1, 3, 2)
    with pytest.raises(
        ValueError, match="unaries is on meta, the transitions are on cpu; move one"
    ):
        Chain(LowRank(features, features), torch.zeros(4, 3, device="meta"))
