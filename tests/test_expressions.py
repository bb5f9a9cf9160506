"""The engine of closed forms: monomials, zero weights, leaves without theory."""

import math

import pytest
import torch
from torch import Tensor

from bochner.algebra import Constant
from bochner.catalog import make
from bochner.expressions import relative_covariance, relative_variance
from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Hyperbolic, Positive, Trigonometric
from bochner.projections import IID, Antithetic
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.switches import Complement, GaussianSwitch, SignSwitch
from tests.naive import variance_is


def request(generator: torch.Generator, m: int = 8, **changes: object) -> Request:
    options = {"projection": IID(), "dtype": torch.float64, "generator": generator, **changes}
    return Request(dim=3, num_features=m, **options)


def points(generator: torch.Generator, n: int = 3) -> Tensor:
    return 0.4 * torch.randn(n, 3, generator=generator, dtype=torch.float64)


def test_monomials_are_multiplied_out(generator) -> None:
    a, b, c = (RandomFeatures(request(generator), Positive()) for _ in range(3))
    found = (2.0 * (a + 3.0) * (b - c)).monomials()
    expected = {(a, b): 2.0, (a, c): -2.0, (b,): 6.0, (c,): -6.0}
    assert {m.leaves: m.weight for m in found} == expected
    assert Constant(3).monomials()[0].leaves == ()


def test_a_product_of_sums_by_hand(generator) -> None:
    # Var[(a + 1) b] with independent a, b of one kernel: E a b = K^2, E b = K
    a, b = (RandomFeatures(request(generator), Positive()) for _ in range(2))
    x, y = points(generator), points(generator)
    k, v = a.kernel(x, y), a.relative_variance(x, y)
    second_a, second_b = k**2 * (1 + v), k**2 * (1 + v)
    truth = ((second_a + 2 * k + 1) * second_b - (k**2 + k) ** 2) / (k**2 + k) ** 2
    assert torch.allclose(((a + 1.0) * b).relative_variance(x, y), truth, rtol=1e-11)


@pytest.mark.parametrize("projection", [IID(), Antithetic(IID())])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Positive(), Trigonometric()),
        (Hyperbolic(), Trigonometric()),
        (Positive(), Hyperbolic()),
    ],
)
def test_two_kinds_of_features_on_one_draw(generator, projection, first, second) -> None:
    replicas = 60_000
    r = request(generator, batch_shape=(replicas,), projection=projection)
    a = RandomFeatures(r.with_features(4 * first.columns), first)
    b = RandomFeatures(r.with_features(4 * second.columns), second, directions=a.directions)
    phi = 0.5 * a + 0.5 * b
    x, y = points(generator, 1), points(generator, 1)
    found = (phi.estimate(x, y) / phi.kernel(x, y))[:, 0, 0]
    declared = float(phi.relative_variance(x, y).flatten()[0])
    variance_is(found, declared, see=0.2)
    alone = [float(m.relative_variance(x, y).flatten()[0]) for m in (a, b)]
    assert declared != pytest.approx(0.25 * sum(alone), rel=1e-3)  # the covariance matters


def test_a_weight_of_zero_switches_off_an_infinite_variance(generator) -> None:
    lam = SignSwitch.angular(request(generator))
    far = RandomFeatures(request(generator), Hyperbolic())
    near = RandomFeatures(request(generator), Trigonometric())
    x = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    hybrid = lam * far + (1.0 - lam) * near
    assert far.relative_variance(x, x).item() == math.inf
    assert hybrid.relative_variance(x, x).item() == 0.0
    assert hybrid.relative_variance(x, -x).item() == 0.0
    between = torch.tensor([[0.0, 60.0, 0.0]], dtype=torch.float64)
    assert hybrid.relative_variance(x, between).item() == math.inf
    grid = hybrid.relative_covariance(x, torch.cat((x, -x, between)))
    assert not bool(torch.isnan(grid).any())


def test_none_where_a_leaf_has_no_theory(generator) -> None:
    known = RandomFeatures(request(generator), Positive())
    hadamard = make("positive", dim=3, num_features=8, projection="hadamard", generator=generator)
    x = points(generator)
    for phi in (known + hadamard, known * hadamard, 2.0 * hadamard + 1.0):
        assert relative_variance(phi, x, x) is None
        assert relative_covariance(phi, x, x) is None


def test_a_single_map_is_its_own_closed_form(generator) -> None:
    phi: FeatureMap = RandomFeatures(request(generator), Positive())
    x, y = points(generator), points(generator, 4)
    assert torch.allclose(relative_variance(phi, x, y), phi.relative_variance(x, y), rtol=1e-12)
    assert torch.allclose(relative_covariance(phi, x, y), phi.relative_covariance(x, y), rtol=1e-12)


def test_a_factor_that_depends_on_two_others_has_no_form(generator) -> None:
    one, two = (SignSwitch.angular(request(generator)) for _ in range(2))
    far = RandomFeatures(request(generator), Positive())
    near = RandomFeatures(request(generator), Trigonometric())
    x = points(generator)
    for phi in (
        one * two * far + Complement(one, two) * near,
        Complement(one, two) * near + one * two * far,
    ):
        assert phi.relative_variance(x, x) is None
        assert phi.relative_covariance(x, x) is None


def test_a_weight_on_the_directions_of_another_term_has_no_form(generator) -> None:
    far = RandomFeatures(request(generator), Positive())
    weight = SignSwitch(request(generator), (0.0, 1.0), 8, directions=far.directions)
    weighed = weight * RandomFeatures(request(generator), Trigonometric())
    x = points(generator)
    for phi in (far + weighed, weighed + far):
        assert phi.unbiased  # a sum may hold dependent parts
        assert phi.relative_variance(x, x) is None
        assert phi.relative_covariance(x, x) is None


def test_the_error_relative_to_an_exact_zero_is_infinite(generator) -> None:
    weight = GaussianSwitch(request(generator))
    phi = weight * RandomFeatures(request(generator), Positive())
    x = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    assert phi.log_exact(x, -x).sign.item() == 0.0  # e^-7200
    assert phi.relative_variance(x, -x).item() == math.inf
