"""Pairwise marginals, never laid out, against the table of all paths."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bochner.structured import LowRankChain
from bochner.structured.chains import pairwise as file
from tests.structured.chain_cases import Case, cases, close, make_case, possible

MOST = settings(max_examples=40, deadline=None)
ANY = cases(sizes=(0.0, 1.0, 5.0, 1000.0))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def usable(case: Case) -> bool:
    return possible(case) and case.unaries.shape[-2] > 1


@MOST
@given(case=ANY)
def test_dense_and_rows(case: Case) -> None:
    if not usable(case):
        return
    pair, table, batch = case.chain.pairwise, case.of("pairwise"), case.unaries.shape[:-2]
    states = torch.randint(0, case.unaries.shape[-1], (3, *batch), generator=torch.Generator())
    for edge in range(case.unaries.shape[-2] - 1):
        close(pair.dense(edge), table[..., edge, :, :])
        wide = table[..., edge, :, :].expand(3, *table[..., edge, :, :].shape)
        index = states[..., None, None].expand(*states.shape, 1, wide.shape[-1])
        close(pair.row(edge, states), wide.gather(-2, index).squeeze(-2))
        close(pair.row(edge, states[0]), wide.gather(-2, index).squeeze(-2)[0])


@MOST
@given(case=ANY)
def test_products_with_vectors(case: Case) -> None:
    if not usable(case):
        return
    pair, table = case.chain.pairwise, case.of("pairwise")
    vectors = numbers(3, *case.unaries.shape[:-2], case.unaries.shape[-1])
    vectors[0] = 0.0
    for edge in range(case.unaries.shape[-2] - 1):
        p = table[..., edge, :, :]
        close(pair.matvec(edge, vectors), (p @ vectors.unsqueeze(-1)).squeeze(-1))
        close(pair.rmatvec(edge, vectors), (vectors.unsqueeze(-2) @ p).squeeze(-2))
        close(pair.matvec(edge, vectors[1]), (p @ vectors[1].unsqueeze(-1)).squeeze(-1))


@MOST
@given(case=ANY)
def test_expectations(case: Case) -> None:
    if not usable(case):
        return
    pair, table = case.chain.pairwise, case.of("pairwise")
    f, g = (numbers(case.unaries.shape[-1], 4, seed=s) for s in (1, 2))
    close(pair.expectation(f, g), torch.einsum("...xy,xi,yi->...", table, f, g))
    batch = case.unaries.shape[:-2]
    many, one = numbers(*batch, *f.shape, seed=3), f.new_ones(f.shape)
    means = torch.einsum("...txy,...xi->...t", table, many)  # also E[f(x_t)] itself
    close(pair.expectation(many, one), means)


@MOST
@given(case=cases(sizes=(1.0, 5.0)))
def test_float32(case: Case) -> None:
    if not usable(case):
        return
    pair = case.to(torch.float32).chain.pairwise
    close(pair.dense(0), case.of("pairwise")[..., 0, :, :], tolerance=1e-4)
    vector = numbers(case.unaries.shape[-1])
    found = pair.matvec(0, vector.float())
    assert found.dtype == torch.float32
    close(found, case.of("pairwise")[..., 0, :, :] @ vector, tolerance=1e-4)


def test_expectations_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(1, shape=(4, 3, 2, 2), batches=((2,), ()))
    f, g = numbers(3, 7), numbers(3, 7, seed=1)
    whole = case.chain.pairwise.expectation(f, g)
    monkeypatch.setattr(file, "_ELEMENTS", 1)
    close(case.chain.pairwise.expectation(f, g), whole)


def test_sums_are_the_marginals_of_a_large_chain() -> None:
    case = make_case(2, shape=(20, 300, 8, 3), batches=((2,), ()))
    chain = case.chain
    pair, marginals = chain.pairwise, chain.marginals
    ones = torch.ones(300, dtype=torch.float64)
    close(pair.matvec(7, ones), marginals[..., 7, :])
    close(pair.rmatvec(7, ones), marginals[..., 8, :])


def test_nothing_is_recorded() -> None:
    pair = make_case(3, shape=(3, 3, 2, 1)).detached().chain.pairwise
    assert not pair.dense(0).requires_grad
    assert not pair.expectation(numbers(3, 1), numbers(3, 1)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.long])
def test_vectors_of_another_dtype_are_computed_in_that_of_the_chain(dtype: torch.dtype) -> None:
    chain = make_case(3, shape=(3, 3, 2, 1)).detached().to(torch.float32).chain
    vectors = (8 * numbers(3, 2)).to(dtype)
    pair, table = chain.pairwise, chain.pairwise.dense(0)
    found = pair.matvec(0, vectors[:, 0])
    assert found.dtype == torch.float32
    close(found, table @ vectors[:, 0].float(), tolerance=1e-5)
    expected = (vectors.float() * (table @ vectors.float())).sum()
    close(pair.expectation(vectors, vectors)[..., 0], expected, tolerance=1e-5)


def test_rows_of_a_batch_with_more_dimensions_than_the_states() -> None:
    unaries, left = numbers(2, 3, 4, 3, 5), numbers(5, 2)
    pair = LowRankChain(left, left, unaries).pairwise
    states = torch.arange(12).view(3, 4) % 5
    wide = pair.row(1, states.expand(2, 3, 4))
    close(pair.row(1, states), wide)
    close(pair.row(1, states.to(torch.uint8)), wide)


def test_errors() -> None:
    case = make_case(4, shape=(3, 3, 2, 1))
    pair = case.chain.pairwise
    for edge in (-1, 2):
        with pytest.raises(
            IndexError, match=f"edge={edge} of a chain of 3 steps; edges are 0 to 1"
        ):
            pair.dense(edge)
    with pytest.raises(ValueError, match=r"f has shape \[3\]; expected \[\*batch, 3, 3\]"):
        pair.expectation(numbers(3), numbers(3))
    with pytest.raises(ValueError, match=r"g has shape \[3, 2\]; expected \[\*batch, 3, 1\]"):
        pair.expectation(numbers(3, 1), numbers(3, 2))
    with pytest.raises(ValueError, match=r"vectors has shape \[2\]; expected .* 3\]"):
        pair.matvec(0, numbers(2))
    with pytest.raises(ValueError, match=r"states holds values from -1 to -1; expected 0..2"):
        pair.row(0, torch.tensor(-1))
    with pytest.raises(TypeError, match="states must be a torch.Tensor of integers, got int"):
        pair.row(0, 1)  # type: ignore[arg-type]
    alone = make_case(4, shape=(1, 3, 2, 1)).chain.pairwise
    assert alone.expectation(numbers(3, 1), numbers(3, 1)).shape == (0,)
    nothing = Case(case.tensors, torch.full((3, 3), -torch.inf).double(), None)
    with pytest.raises(ValueError, match="allow nothing at all"):
        nothing.chain.pairwise.dense(0)
