"""How columns are shared among degrees: the tail of exp, the law of the random degree, the optimum."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

from bochner.degree_plan import (
    LARGEST_DEGREE,
    DegreePlan,
    degree_table,
    monomials_below,
    tail_of_exp,
)


@pytest.mark.parametrize("degree", [0, 1, 2, 7, 24])
def test_tail_of_exp(degree):
    z = [-700.0, -60.0, -25.5, -24.9, -8.1, -7.9, -1.0, -1e-3, 0.0, 1e-9, 0.3, 5.0, 40.0, 600.0]
    found = tail_of_exp(degree, torch.tensor(z, dtype=torch.float64)).tolist()
    with mpmath.workdps(250):
        for value, at in zip(found, z, strict=True):
            at = mpmath.mpf(at)
            truth = mpmath.exp(at) - sum(at**p / mpmath.factorial(p) for p in range(degree))
            assert value == pytest.approx(float(truth), rel=1e-10, abs=1e-300)


def test_tail_of_exp_takes_a_factor_out():
    z = torch.tensor([800.0, 3.0, -3.0], dtype=torch.float64)
    minus = torch.tensor([795.0, 1.0, -2.0], dtype=torch.float64)
    found = tail_of_exp(2, z, minus=minus)
    assert found[0].item() == pytest.approx(math.exp(5.0))
    assert torch.allclose(found[1:], torch.exp(-minus[1:]) * tail_of_exp(2, z[1:]))


@pytest.mark.parametrize(("first", "rate"), [(0, 0.3), (3, 1.7), (20, 0.01), (5, 60.0)])
def test_the_table_is_the_poisson_law_from_a_degree_on(first, rate):
    table, log_mass = degree_table(first, rate)
    masses = torch.diff(table, prepend=torch.zeros(1, dtype=torch.float64))
    assert table[-1].item() == pytest.approx(1.0, abs=1e-12)
    ratios = masses[1:4] / masses[:3]
    assert ratios.tolist() == pytest.approx([rate / (first + 1 + k) for k in range(3)], rel=1e-6)
    truth = tail_of_exp(first, torch.tensor([rate], dtype=torch.float64)).item()
    assert log_mass == pytest.approx(math.log(truth), rel=1e-10)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_monomials(dim):
    for degree in range(5):
        listed = sum(
            len(list(itertools.combinations_with_replacement(range(dim), p))) for p in range(degree)
        )
        assert monomials_below(degree, dim) == listed


def error_of(plan, x, y):
    """Mean squared error of K(x, y) / sqrt(K(x, x) K(y, y)), up to the bias of a plan without tail."""
    s = x @ y.T
    norms = x.square().sum(-1)[:, None], y.square().sum(-1)[None, :]
    v = norms[0] * norms[1] + 2 * s**2 - 2 * x.square() @ y.square().T
    absolute = plan.covariance(v, s, s) * torch.exp(2 * s)
    return float((absolute * torch.exp(-norms[0] - norms[1])).mean())


@pytest.fixture
def points(generator):
    return tuple(0.5 * torch.randn(2, 20, 3, generator=generator, dtype=torch.float64))


def test_no_other_plan_is_better(points):
    """Every allocation of 9 columns in 3 dimensions with degrees up to 3 of their own."""
    best = DegreePlan.optimal(*points, 9)
    assert best.num_features(3) == 9
    lowest = error_of(best, *points)
    others = []
    for exact in range(3):
        budget = 9 - monomials_below(exact, 3)
        for length in range(0, 4):
            for parts in itertools.product(range(1, budget + 1), repeat=length):
                if (tail := budget - sum(parts)) >= 1:
                    for rate in (0.5 * best.rate, best.rate, 2 * best.rate):
                        others.append(DegreePlan(exact, parts, tail, rate))
    assert len(others) > 100
    assert min(error_of(plan, *points) for plan in others) >= 0.97 * lowest  # rounding to integers


def test_the_rate_is_near_that_of_one_pair():
    """For one pair and all columns in the tail, Poisson(sqrt v) with second moment exp(2 sqrt v)."""
    x = torch.tensor([[0.6, 0.5]], dtype=torch.float64)
    plan = DegreePlan.optimal(x, x, 1)
    squares = x.square().sum()
    root = float((3 * squares**2 - 2 * x.square() @ x.square().T).sqrt())
    assert (plan.exact, plan.sampled, plan.tail) == (0, (), 1)
    assert plan.rate == pytest.approx(root, rel=1e-2)
    expected = math.exp(2 * root - 2 * float(squares)) - 1
    v, s = (torch.tensor([[t]], dtype=torch.float64) for t in (root**2, float(squares)))
    assert plan.covariance(v, s, s).item() == pytest.approx(expected, rel=1e-3)


def test_more_columns_are_never_worse(points):
    errors = [error_of(DegreePlan.optimal(*points, m), *points) for m in (1, 2, 4, 8, 16, 64, 256)]
    assert all(a >= b for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-8 * errors[0]


@pytest.mark.parametrize("m", [1, 2, 10, 20, 100])
@pytest.mark.parametrize("unbiased", [True, False])
def test_budgets_are_spent(points, m, unbiased):
    plan = DegreePlan.optimal(*points, m, unbiased=unbiased)
    assert plan.num_features(3) == m
    assert (plan.tail > 0) is unbiased
    assert plan.first_random <= LARGEST_DEGREE


def test_points_far_away_are_refused():
    x = 12.0 * torch.eye(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"degrees around .* within a few lengthscales"):
        DegreePlan.optimal(x, x, 8)


def test_a_single_point_at_the_centre():
    x = torch.zeros(1, 2, dtype=torch.float64)
    assert DegreePlan.optimal(x, x, 7).num_features(2) == 7
    assert np.isfinite(error_of(DegreePlan.optimal(x, x, 7), x, x))
