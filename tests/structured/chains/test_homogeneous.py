"""Products of m x m matrices against the recursion."""

import pytest
import torch
from hypothesis import given, settings

from bochner.structured import Chain, LowRank, repeated_log_partition, scan_log_partition
from bochner.structured.chains.homogeneous import ScaledMatrix, log_matmul, product_tree
from tests.structured.chain_cases import Case, cases, close, make_case


def numbers(*shape: int, size: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return size * torch.randn(shape, generator=g, dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(case=cases(sizes=(0.0, 1.0, 1000.0)))
def test_scan(case: Case) -> None:
    if len(case.tensors) == 1:
        return
    found = scan_log_partition(case.transitions, case.unaries, lengths=case.lengths)
    close(found, case.of("log_partition"), unit=1000.0)


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 9, 16, 31])
def test_scan_of_longer_chains(steps: int) -> None:
    case = make_case(1, shape=(steps, 7, 3, 2), batches=((3,), ()))
    found = scan_log_partition(case.transitions, case.unaries, lengths=case.lengths)
    close(found, case.chain.log_partition)


def test_scan_is_differentiable() -> None:
    case = make_case(1, shape=(7, 5, 3, 2), batches=((2,), ()))
    one, other = case.detached(), case.detached()
    scan_log_partition(one.transitions, one.unaries, lengths=one.lengths).sum().backward()
    other.chain.log_partition.sum().backward()
    for found, expected in zip(one.leaves, other.leaves, strict=True):
        close(found.grad, expected.grad)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 100])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_repeated(steps: int, size: float) -> None:
    k = LowRank(numbers(1, 6, 3, size=size), numbers(1, 6, 3, size=2 * size))
    unaries, start = numbers(2, 6, size=size), numbers(6)
    whole = unaries.unsqueeze(-2).expand(2, steps, 6)
    close(repeated_log_partition(k, unaries, steps), Chain(k, whole).log_partition)
    begun = torch.cat([whole[:, :1] + start, whole[:, 1:]], dim=1)
    found = repeated_log_partition(k, unaries, steps, start=start)
    close(found, Chain(k, begun).log_partition)


def test_a_million_steps_keep_their_digits_in_float32() -> None:
    """log Z a step is the log of the largest eigenvalue, to the digits of float32."""
    k = LowRank(numbers(1, 6, 3), numbers(1, 6, 3))
    single = LowRank(k.log_left.float(), k.log_right.float())
    matrix = torch.exp(k.log_block(0, slice(None)))
    radius = torch.linalg.eigvals(matrix).abs().max().log()
    for steps in (10**4, 10**6):
        found = repeated_log_partition(single, torch.zeros(6), steps).double()
        close(found / steps, radius, tolerance=3.0 / steps + 2e-7)


def test_repeated_is_differentiable() -> None:
    left = numbers(1, 6, 3).requires_grad_()
    unaries = numbers(6).requires_grad_()
    k = LowRank(left, numbers(1, 6, 3))
    ours = torch.autograd.grad(repeated_log_partition(k, unaries, 13), [left, unaries])
    chain = Chain(k, unaries.expand(13, 6))
    theirs = torch.autograd.grad(chain.log_partition, [left, unaries])
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)


def test_matrix_products_of_any_range() -> None:
    one, other = numbers(2, 4, 5, size=2000.0), numbers(2, 5, 3, size=2000.0)
    one[0, 1], other[1, :, 2], one[0, 2, 3] = -torch.inf, -torch.inf, -torch.inf
    terms = one.unsqueeze(-1) + other.unsqueeze(-3)
    close(log_matmul(one, other), terms.logsumexp(dim=-2))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_product_tree_keeps_the_order(count: int) -> None:
    matrices = numbers(count, 3, 3)
    expected = matrices[0]
    for matrix in matrices[1:]:
        expected = log_matmul(expected, matrix)
    found = product_tree(ScaledMatrix.of(matrices))
    close(found.log + found.scale, expected)


def test_repeated_wants_equal_edges() -> None:
    k = LowRank(numbers(2, 6, 3), numbers(2, 6, 3))
    with pytest.raises(ValueError, match="transitions have 2 blocks, but only equal edges"):
        repeated_log_partition(k, torch.zeros(6).double(), 5)
    with pytest.raises(ValueError, match="num_steps=0"):
        repeated_log_partition(k, torch.zeros(6).double(), 0)
