"""Constructions of A: the values they promise, optimality by perturbation, tiny coordinates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.exponential import ComplexExponential
from bochner.pair_matrices import (
    SMALLEST_SHARE,
    from_centres,
    from_moments,
    geometric_mean,
    real_from_centres,
    real_from_moments,
)
from bochner.request import Request
from tests.formula_points import normals, root, spd


def s_of(a: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return a * query + key / a


# -- centres ------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(dim=st.integers(1, 8), seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_s_is_zero_at_the_centres(dim: int, seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    signs = torch.sign(normals(g, 2, dim))
    sizes = 0.2 + torch.rand(2, dim, generator=g, dtype=torch.float64)  # none below the bound
    query, key = signs * sizes * torch.tensor([[scale], [1.0]]).double()
    a = from_centres(query, key)
    assert float(s_of(a, query, key).abs().max()) <= 1e-15 * math.sqrt(scale) * 10
    same = query * key > 0
    assert a.is_complex() == bool(same.any())
    if a.is_complex():
        assert torch.equal(a.imag > 0, same)
        assert torch.equal(a.real > 0, ~same)
    assert torch.allclose(a.abs(), (key / query).abs().sqrt(), rtol=1e-12)
    real = real_from_centres(query, key)
    assert not real.is_complex()
    assert torch.allclose(real, a.abs(), rtol=1e-12)
    reached = s_of(real, query, key).abs()
    least = torch.where(same, 2 * (query * key).abs().sqrt(), 0.0)
    assert torch.allclose(reached, least, rtol=1e-9, atol=1e-12 * math.sqrt(scale))


def test_estimates_at_the_centres_are_exact(generator) -> None:
    query = torch.tensor([1.0, -2.0, 0.5]).double()
    key = torch.tensor([0.7, 1.0, 2.0]).double()
    a = from_centres(query, key)
    assert float(s_of(a, query, key).abs().max()) <= 2.3e-16
    request = Request(dim=3, num_features=4, generator=generator, dtype=torch.float64)
    phi = ComplexExponential(request, a)
    x, y = query.unsqueeze(0), key.unsqueeze(0)
    assert float(phi.estimate(x, y) / phi.kernel(x, y)) == pytest.approx(1.0, rel=1e-12)
    assert float(phi.relative_variance(x, y)) < 1e-14


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.5, 1.0])
def test_tiny_coordinates_cost_what_the_module_says(share: float, generator) -> None:
    sizes = 10.0 ** (-6 * torch.rand(2, 200, generator=generator, dtype=torch.float64))
    signs = torch.sign(normals(generator, 2, 200))
    query, key = sizes * signs
    tops = query.abs().max(), key.abs().max()
    a = from_centres(query, key, smallest_share=share)
    typical = (tops[1] / tops[0]).sqrt()
    if share:
        assert float((a.abs() / typical).max()) <= share**-0.5 * (1 + 1e-12)
        assert float((a.abs() / typical).min()) >= share**0.5 * (1 - 1e-12)
    cost = s_of(a, query, key).abs().square().max()
    assert float(cost) <= share * float(tops[0] * tops[1]) * (1 + 1e-9) + 1e-24
    # x -> c x, y -> y / c leaves s as it is
    moved = from_centres(7 * query, key / 7, smallest_share=share)
    assert torch.allclose(moved, a / 7, rtol=1e-12)


def test_zeros() -> None:
    query, key = torch.tensor([0.0, 4.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 9.0, -1.0])
    a = from_centres(query, key)
    assert not a.is_complex()  # no two coordinates have the same sign
    typical = (9 / 4) ** 0.5
    expected = torch.tensor([typical, typical * 0.1, typical * 10, 0.5**0.5], dtype=torch.float64)
    assert torch.allclose(a, expected)
    assert SMALLEST_SHARE == 0.01
    zero = torch.zeros(3)
    for one, other in ((zero, torch.ones(3)), (torch.ones(3), zero), (zero, zero)):
        assert torch.equal(from_centres(one, other), torch.ones(3).double())


def test_without_the_bound_a_zero_coordinate_is_refused_later() -> None:
    a = real_from_centres(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), smallest_share=0.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        ComplexExponential(Request(dim=2, num_features=2), a)


# -- moments ------------------------------------------------------------------------------------------
def expected_square(a: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """E|s_k|^2 over all pairs of queries [n, d] and keys [n', d], [d]."""
    s = a * queries.unsqueeze(1) + keys / a
    return s.abs().square().mean((0, 1))


def data(generator: torch.Generator, dim: int = 6) -> tuple[Tensor, Tensor]:
    means = torch.linspace(-1.5, 1.5, dim).double()
    queries = means + normals(generator, 30, dim) * torch.linspace(0.3, 2, dim).double()
    keys = 0.5 + normals(generator, 20, dim)
    return queries, keys


def test_moments_give_the_least_square_of_all_diagonals(generator) -> None:
    queries, keys = data(generator)
    means = queries.mean(0), keys.mean(0)
    squares = queries.square().mean(0), keys.square().mean(0)
    a = from_moments(*means, *squares)
    assert a.is_complex()
    assert torch.equal(a.imag > 0, means[0] * means[1] > 0)
    best = expected_square(a, queries, keys)
    formula = 2 * (squares[0] * squares[1]).sqrt() - 2 * (means[0] * means[1]).abs()
    assert torch.allclose(best, formula, rtol=1e-10)
    for _ in range(200):
        step = torch.complex(normals(generator, 6), normals(generator, 6))
        size = 10.0 ** float(-3 * torch.rand((), generator=generator))
        assert bool((expected_square(a * torch.exp(size * step), queries, keys) >= best).all())
    real = real_from_moments(*squares)
    least = expected_square(real, queries, keys)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert bool((expected_square(factor * real, queries, keys) > least).all())
    assert torch.allclose(
        least, 2 * (squares[0] * squares[1]).sqrt() + 2 * means[0] * means[1], rtol=1e-10
    )


def test_points_without_spread_are_centres(generator) -> None:
    query, key = normals(generator, 5).abs() + 0.5, normals(generator, 5).abs() + 0.5
    key[::2] *= -1
    a = from_moments(query, key, query.square(), key.square())
    assert torch.allclose(a, from_centres(query, key), rtol=1e-12)


def test_every_pair_of_clusters(generator) -> None:
    query, key = normals(generator, 3, 1, 4), normals(generator, 2, 4)
    for many, single in (
        (from_centres(query, key), from_centres),
        (real_from_centres(query, key), real_from_centres),
    ):
        assert many.shape == (3, 2, 4)
        for i in range(3):
            for j in range(2):
                one = single(query[i, 0], key[j])
                assert torch.allclose(many[i, j], one.to(many.dtype), rtol=1e-12)
    squares = real_from_moments(query.square(), key.square())
    assert torch.allclose(squares, real_from_centres(query, key), rtol=1e-12)
    assert from_moments(query, key, query.square(), key.square()).shape == (3, 2, 4)


# -- the dense one ------------------------------------------------------------------------------------
def test_geometric_mean_is_the_printed_one_and_optimal(generator) -> None:
    m1, m2 = spd(generator, 4, 0.7), spd(generator, 4, 1.3)
    g = geometric_mean(m1, m2)
    r1 = root(m1)
    inverse = torch.linalg.inv(r1)
    printed = inverse @ root(r1 @ m2 @ r1) @ inverse
    assert torch.allclose(g.T @ g, printed, rtol=1e-9, atol=1e-10)

    def size(matrix: Tensor) -> float:
        back = torch.linalg.inv(matrix).T
        return float((matrix @ m1 @ matrix.T).trace() + (back @ m2 @ back.T).trace())

    best = size(g)
    assert best == pytest.approx(2 * float(root(r1 @ m2 @ r1).trace()), rel=1e-9)
    for _ in range(100):
        step = 10.0 ** float(-3 * torch.rand((), generator=generator))
        assert size(g + step * normals(generator, 4, 4)) >= best * (1 - 1e-12)


def test_geometric_mean_of_diagonals_is_from_moments(generator) -> None:
    query, key = normals(generator, 2, 4).square() + 0.1, normals(generator, 2, 4).square() + 0.1
    g = geometric_mean(torch.diag_embed(query), torch.diag_embed(key))
    assert g.shape == (2, 4, 4)
    product = g.mT @ g
    assert torch.allclose(
        product, torch.diag_embed(real_from_moments(query, key).square()), rtol=1e-9, atol=1e-12
    )


# -- refusals -----------------------------------------------------------------------------------------
def test_refusals() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="query_centre .* must be finite"):
        from_centres(torch.tensor([math.nan, 1.0]), one)
    with pytest.raises(ValueError, match="key_centre has|key_centre 3"):
        from_centres(one, torch.ones(3))
    with pytest.raises(ValueError, match="do not broadcast"):
        from_centres(torch.ones(2, 2), torch.ones(3, 2))
    with pytest.raises(TypeError, match="query_centre must be a real torch.Tensor"):
        from_centres([1.0], one)
    with pytest.raises(TypeError, match="key_centre must be a real"):
        from_centres(one, 1j * one)
    with pytest.raises(ValueError, match=r"smallest_share=2 must be in \[0, 1\]"):
        real_from_centres(one, one, smallest_share=2)
    with pytest.raises(ValueError, match="none is negative"):
        real_from_moments(-one, one)
    with pytest.raises(ValueError, match=r"expected \[\*batch, d, d\]"):
        geometric_mean(torch.ones(2, 3), torch.ones(2, 3))
