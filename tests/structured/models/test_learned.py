"""Learned transitions: what they stand for, dense, and what every row sums to."""

import copy

import pytest
import torch

from bochner.structured import (
    FeatureTransitions,
    LearnedTransitions,
    LowRankTransitions,
    RankTransitions,
    SoftmaxTransitions,
)


def parts(generator):
    return {
        "softmax": SoftmaxTransitions(5, 3, generator=generator),
        "features": FeatureTransitions(5, 4, generator=generator),
        "features of embeddings": FeatureTransitions(5, 4, dim=3, generator=generator),
        "low rank": LowRankTransitions(5, 4, generator=generator),
        "low rank of embeddings": LowRankTransitions(5, 4, dim=2, generator=generator),
        "ranks": RankTransitions(5, 7, generator=generator),
    }


KINDS = tuple(parts(torch.Generator()))


def dense(transitions: LearnedTransitions) -> torch.Tensor:
    """K [X, X], by log-potentials of all pairs of states."""
    size = transitions.num_states
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    chain = transitions.double().chain(torch.zeros(2, size, dtype=torch.float64))
    logs = chain.transitions.log_potential(pairs[:, :1], pairs[:, 1:])
    return logs.exp().reshape(size, size)


def by_hand(name: str, part: LearnedTransitions) -> torch.Tensor:
    """K as the docstrings define it."""
    if name == "softmax":
        return (part.before @ part.after.T / 3**0.5).softmax(-1)
    if name == "ranks":
        return part.right.softmax(-1) @ part.left.softmax(-1)
    left, right = part.before, part.after
    if part.dim is not None:
        left = left @ part.project_before / part.dim**0.5
        right = right @ part.project_after / part.dim**0.5
    found = left.exp() @ right.exp().T
    return found / found.sum(-1, keepdim=True) if part.stochastic else found


@pytest.mark.parametrize("name", KINDS)
def test_the_matrix_is_the_one_of_the_docstring(generator, name):
    part = parts(generator)[name].double()
    expected = by_hand(name, part)
    assert torch.allclose(dense(part), expected, rtol=1e-12)
    sums = expected.sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), rtol=1e-12) == part.stochastic


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_has_a_gradient(generator, name):
    part = parts(generator)[name].double()
    unaries = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    chain = part.chain(unaries, lengths=torch.tensor([4, 1, 2]))
    chain.log_partition.sum().backward()
    weights = torch.ones(5, dtype=torch.float64)
    for index, parameter in enumerate(part.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, index
    # the same derivative by the dense matrix, with respect to the first parameter
    first = next(part.parameters())
    ours, first.grad = first.grad, None
    table = by_hand(name, part)
    total = unaries[1, 0].logsumexp(-1)
    for b, length in ((0, 4), (2, 2)):
        message = unaries[b, 0].exp()
        for step in range(1, length):
            message = (message @ table) * unaries[b, step].exp()
        total = total + (message @ weights).log()
    assert chain.log_partition.sum().item() == pytest.approx(total.item(), rel=1e-12)
    total.backward()
    assert torch.allclose(ours, first.grad, rtol=1e-9, atol=1e-12)


def test_a_generator_decides_the_initial_values():
    first, again = (parts(torch.Generator().manual_seed(7)) for _ in range(2))
    for name in KINDS:
        for one, other in zip(first[name].parameters(), again[name].parameters(), strict=True):
            assert torch.equal(one, other)


def test_features_of_any_size_still_sum_to_one(generator):
    part = FeatureTransitions(50, 6, generator=generator)
    with torch.no_grad():
        part.before.mul_(200)
        part.after.mul_(200)
    chain = part.chain(torch.zeros(6, 50))
    assert chain.log_partition.item() == pytest.approx(torch.tensor(50.0).log().item(), abs=1e-4)


def test_rare_ranks_are_not_impossible_ones(generator):
    """Probabilities below the range of float32, as peaked logits make them."""
    part = RankTransitions(4, 20, generator=generator)
    with torch.no_grad():
        part.left.mul_(150)
        part.right.mul_(150)
    exact = dense(copy.deepcopy(part).double()).log()
    assert exact.min() < -110
    found = part.chain(torch.zeros(2, 4)).transitions.log_block(0, slice(None))
    assert torch.allclose(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_unaries_in_half_precision(generator, name):
    part, unaries = parts(generator)[name], torch.randn(3, 5, generator=generator)
    found = part.chain(unaries.bfloat16()).log_partition
    assert found.dtype == torch.float32
    assert torch.equal(found, part.chain(unaries.bfloat16().float()).log_partition)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SoftmaxTransitions(0, 3),
        lambda: SoftmaxTransitions(3, 0),
        lambda: LowRankTransitions(3, 0),
        lambda: FeatureTransitions(3, 2, dim=0),
        lambda: RankTransitions(3, -1),
    ],
)
def test_sizes_are_checked(make):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        make()
