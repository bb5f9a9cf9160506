"""Covariances of two exponential estimators on one w, against Gauss-Hermite quadrature and loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.exponents import shared_covariance
from tests.formula_points import normals
from tests.naive import hermite


def sample(omega: Tensor, s: Tensor, *, even: bool = False) -> Tensor:
    """Re exp(w.s - s^T s / 2) for every row of omega, averaged over ±w if even."""
    s = s.to(torch.complex128)
    u = omega.to(s.dtype) @ s
    f = torch.cosh(u) if even else torch.exp(u)
    return (f * torch.exp(-0.5 * (s * s).sum())).real


def points(generator: torch.Generator, n: int, kind: str, size: float = 0.5) -> Tensor:
    real = size * normals(generator, n, 2)
    return real if kind == "real" else torch.complex(real, size * normals(generator, n, 2))


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("kinds", ["real real", "real complex", "complex complex"])
def test_against_quadrature(kinds: str, even: bool, generator) -> None:
    omega, weights = hermite(60, dim=2)
    first, second = kinds.split()
    a_query, a_key = points(generator, 2, first), points(generator, 3, first)
    b_query, b_key = points(generator, 2, second), points(generator, 3, second)
    found = shared_covariance(a_query, a_key, b_query, b_key, count=4, even=even)
    grid = shared_covariance(a_query, a_key, b_query, b_key, count=4, even=even, grid=True)
    for i in range(2):
        for j in range(3):
            z = sample(omega, a_query[i] + a_key[j], even=even)
            assert float(weights @ z) == pytest.approx(1.0, rel=1e-9)
            for k in range(3):
                # even in both, as antithetic directions are; in one alone it is the same number
                for other_even in {even, False}:
                    other = sample(omega, b_query[i] + b_key[k], even=other_even)
                    truth = (float(weights @ (z * other)) - 1.0) / 4
                    assert float(grid[i, j, k]) == pytest.approx(truth, rel=1e-7, abs=1e-9)
            assert float(found[i, j]) == pytest.approx(float(grid[i, j, j]), rel=1e-12, abs=1e-15)


def test_positive_or_hyperbolic_with_trigonometric(generator) -> None:
    # (cos(|x|^2 - |y|^2) - 1) / m, whether or not the first is averaged over signs
    x, y = normals(generator, 4, 3), normals(generator, 5, 3)
    difference = x.square().sum(-1).unsqueeze(-1) - y.square().sum(-1)
    for even in (False, True):
        found = shared_covariance(x, y, 1j * x, -1j * y, count=7, even=even)
        assert torch.allclose(found, (torch.cos(difference) - 1) / 7, rtol=1e-10, atol=1e-12)


def test_positive_with_itself_and_with_hyperbolic(generator) -> None:
    x, y = 0.5 * normals(generator, 4, 3), 0.5 * normals(generator, 5, 3)
    phi = (x.unsqueeze(1) + y).square().sum(-1)
    own = shared_covariance(x, y, x, y, count=3)
    assert torch.allclose(own, torch.expm1(phi) / 3, rtol=1e-10)
    hyperbolic = shared_covariance(x, y, x, y, count=3, even=True)
    assert torch.allclose(hyperbolic, 2 * torch.sinh(phi / 2).square() / 3, rtol=1e-9)
    complex_input = shared_covariance(x + 0j, y + 0j, x + 0j, y + 0j, count=3)
    assert torch.equal(complex_input, own)


def test_two_real_matrices_on_one_w(generator) -> None:
    # (e^{s1.s2} - 1) / m
    x, y = 0.5 * normals(generator, 4, 2), 0.5 * normals(generator, 3, 2)
    parts = []
    for _ in range(2):
        a = torch.eye(2).double() + 0.3 * normals(generator, 2, 2)
        parts += [x @ a.T, y @ torch.linalg.inv(a)]
    first, second = (parts[i].unsqueeze(1) + parts[i + 1] for i in (0, 2))
    found = shared_covariance(*parts, count=5)
    assert torch.allclose(found, torch.expm1((first * second).sum(-1)) / 5, rtol=1e-10)


def test_the_two_arguments_may_be_swapped(generator) -> None:
    a = points(generator, 3, "complex"), points(generator, 4, "complex")
    b = points(generator, 3, "complex"), points(generator, 4, "complex")
    forth = shared_covariance(*a, *b, count=1, grid=True)
    back = shared_covariance(*b, *a, count=1, grid=True)
    assert torch.allclose(forth, back.mT, rtol=1e-12, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.sampled_from([(), (2,), (2, 3)]),
    n=st.integers(1, 3),
    other=st.integers(1, 3),
    dim=st.integers(1, 4),
    even=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_batches_are_loops(
    batch: tuple[int, ...], n: int, other: int, dim: int, even: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    queries = torch.complex(normals(g, *batch, n, dim), normals(g, *batch, n, dim)) / 2
    keys = torch.complex(normals(g, other, dim), normals(g, other, dim)) / 2
    found = shared_covariance(queries, keys, queries.conj(), keys, count=2, even=even)
    grid = shared_covariance(queries, keys, queries.conj(), keys, count=2, even=even, grid=True)
    assert found.shape == (*batch, n, other)
    assert grid.shape == (*batch, n, other, other)
    flat = queries.reshape(-1, n, dim)
    for index, single in enumerate(flat):
        alone = shared_covariance(single, keys, single.conj(), keys, count=2, even=even)
        assert torch.allclose(found.reshape(-1, n, other)[index], alone, rtol=1e-10, atol=1e-13)
    diagonal = grid.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(diagonal, found, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("norm", [20.0, 80.0, 1e6])
def test_far_points_give_infinities_and_no_nan(norm: float, even: bool, generator) -> None:
    x = torch.nn.functional.normalize(normals(generator, 6, 4), dim=-1) * norm
    turns = torch.exp(1j * normals(generator, 4))
    kinds = [(x, x), (1j * x, -1j * x), (x * turns, x / turns), (x, -x)]
    for a in kinds:
        own = shared_covariance(*a, *a, count=3, even=even)
        assert not bool(torch.isnan(own).any())
        assert float(own.min()) >= -1e-9 * norm**2  # rounding of s^T s at that size
        for b in kinds:
            for grid in (False, True):
                found = shared_covariance(*a, *b, count=3, even=even, grid=grid)
                assert not bool(torch.isnan(found).any())
    assert bool(torch.isinf(shared_covariance(x, x, x, x, count=1).diagonal()).all())


def test_tiny_exponents_keep_their_relative_precision() -> None:
    # trigonometric: 2 sinh^2(t/2) ~ t^2/2, which e^t + e^-t - 2 would lose
    for size in (1e-3, 1e-5, 1e-7):
        x, y = torch.tensor([[size]]).double(), torch.zeros(1, 1).double()
        found = float(shared_covariance(1j * x, -1j * y, 1j * x, -1j * y, count=1))
        assert found == pytest.approx(2 * math.sinh(size**2 / 2) ** 2, rel=1e-3, abs=1e-30)
