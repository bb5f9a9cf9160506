"""Sums, products and signed multiples: what they estimate, how far off, and what they refuse."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.algebra import Constant, Product, Scaled, Sum, share_draws
from bochner.catalog import make
from bochner.feature_map import FeatureMap
from bochner.kernels import Gaussian
from bochner.nonlinearities import Hyperbolic
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.switches import SignSwitch
from tests.naive import covariance_is, mean_is, variance_is


def part(kind: str, generator: torch.Generator, m: int = 6, **options: object) -> FeatureMap:
    options = {"projection": "iid", "dtype": torch.float64, **options}
    return make(kind, dim=3, num_features=m, generator=generator, **options)


def points(generator: torch.Generator, n: int = 4, norm: float = 0.7) -> Tensor:
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return norm * x / x.norm(dim=-1, keepdim=True)


# -- what they estimate ------------------------------------------------------------------------------
def test_every_operator_against_plain_arithmetic(generator) -> None:
    a, b = part("positive", generator), part("trigonometric", generator, 4)
    x, y = points(generator), points(generator, 5)
    p, q, one = a.estimate(x, y), b.estimate(x, y), torch.ones(4, 5, dtype=torch.float64)
    expressions = {
        "a + b": (a + b, p + q, 10, False),
        "a - b": (a - b, p - q, 10, False),
        "a * b": (a * b, p * q, 24, False),
        "2 a": (2.0 * a, 2 * p, 6, True),
        "a 2": (a * 2.0, 2 * p, 6, True),
        "-a": (-a, -p, 6, False),
        "1 - a": (1.0 - a, one - p, 7, False),
        "1 + a": (1.0 + a, one + p, 7, True),
        "a + 1": (a + 1.0, one + p, 7, True),
        "a - 3": (a - 3.0, p - 3 * one, 7, False),
        "0.3 a + 0.7 (1 - b)": (0.3 * a + 0.7 * (1.0 - b), 0.3 * p + 0.7 * (one - q), 11, False),
        "a (1 + a')": (
            a * (1.0 + (c := part("positive", generator, 2))),
            p * (one + c.estimate(x, y)),
            18,
            True,
        ),
    }
    for name, (phi, truth, m, positive) in expressions.items():
        assert torch.allclose(phi.estimate(x, y), truth, rtol=1e-11, atol=1e-12), name
        assert torch.allclose(phi.log_estimate(x, y).value(), truth, rtol=1e-10, atol=1e-12), name
        plain = phi.query(x).materialise() @ phi.key(y).materialise().mT
        assert torch.allclose(plain, truth, rtol=1e-11, atol=1e-12), name
        assert (phi.num_features, phi.query(x).num_features) == (m, m), name
        assert phi.positive == positive, name
        assert phi.query(x).positive == positive, name
        assert phi.unbiased, name


def test_exact_values_follow_the_same_arithmetic(generator) -> None:
    a, b = part("positive", generator), part("trigonometric", generator, kernel="gaussian")
    x, y = points(generator), points(generator, 5)
    p, q = a.kernel(x, y), b.kernel(x, y)
    for phi, truth in (
        (a + b, p + q),
        (a - b, p - q),
        (a * b, p * q),
        (-2.0 * a, -2 * p),
        (1.0 - b, 1 - q),
        (a * (1.0 - b) + b, p * (1 - q) + q),
    ):
        assert torch.allclose(phi.log_exact(x, y).value(), truth, rtol=1e-11, atol=1e-13)


def test_declared_properties(generator) -> None:
    a, b = part("positive", generator), part("trigonometric", generator)
    h = part("positive", generator, 6, projection="hadamard")
    assert (a + b).symmetric
    assert not (a - b).symmetric
    assert (a * b).symmetric
    assert (2.0 * a).symmetric
    assert not (-a).symmetric
    for phi in (a + h, a * h, 2.0 * h):
        assert not phi.unbiased
    assert (a + b).num_projections == 6 + 3
    assert (a * b).num_projections == 6 + 3
    assert Constant(3).num_projections == 0
    assert (1.0 - b).kernel == b.kernel


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_weighted_sums_of_any_sign_and_size(weights: list[float], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    parts = [part("trigonometric" if w < 0 else "positive", g, 4) for w in weights]
    total = Sum(*(w * p for w, p in zip(weights, parts, strict=True)))
    x, y = points(g), points(g)
    terms = [w * p.estimate(x, y) for w, p in zip(weights, parts, strict=True)]
    size = sum(t.abs() for t in terms)
    assert float(((total.estimate(x, y) - sum(terms)) / size).abs().max()) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [1e-3, 10.0, 80.0])
def test_parts_whose_scales_are_far_apart(norm: float, dtype: torch.dtype, generator) -> None:
    # positive features scale as e^{-|x|^2/2}, trigonometric ones as e^{+|x|^2/2}
    a, b = part("positive", generator), part("trigonometric", generator)
    x = points(generator, norm=norm).to(dtype)
    for phi in (a + b, a * b, a + a * b, (a + b) * part("positive", generator, 2)):
        f = phi.query(x)
        assert bool(torch.isfinite(f.values).all() & torch.isfinite(f.log_scale).all())
        assert float(f.values.abs().max()) <= 2.0
        log_abs, sign = phi.log_estimate(x, x)
        assert not bool((torch.isnan(log_abs) | torch.isnan(sign)).any())
    # of a + b on the diagonal only b is left: exactly |x|^2
    diagonal = (a + b).log_estimate(x, x).log_abs.diagonal().double()
    if norm > 5:
        assert diagonal.tolist() == pytest.approx([norm**2] * 4, rel=1e-5)


def test_maps_for_heads_and_for_all(generator) -> None:
    heads = part("positive", generator, 4, batch_shape=(2,))
    shared = part("trigonometric", generator, 4)
    x = points(generator)
    trig = part("trigonometric", generator, 4, batch_shape=(2,))
    for phi in (
        heads + shared,
        heads * shared,
        shared * heads,
        1.0 - heads,
        trig + shared,
        1 - trig,
    ):
        assert phi.batch_shape == (2,)
        assert phi.estimate(x, x).shape == (2, 4, 4)
    both = (heads * shared).estimate(x, x)
    assert torch.allclose(both, heads.estimate(x, x) * shared.estimate(x, x), rtol=1e-11)


# -- how far off -------------------------------------------------------------------------------------
REPLICATES = 60_000


def draws(phi: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """estimate / exact, [R, n, n']."""
    return phi.estimate(x, y) / phi.log_exact(x, y).value()


def replicated(kind: str, generator: torch.Generator, m: int = 8) -> FeatureMap:
    return part(kind, generator, m, batch_shape=(REPLICATES,))


@pytest.mark.parametrize("expression", ["0.3 a + 0.7 b", "a - 0.4 b", "a b", "(1 + b) a", "-2 a"])
def test_variance_formulas(expression: str, generator) -> None:
    # sees a bias of 3 % and a variance that is 15 % wrong
    a, b = replicated("positive", generator), replicated("trigonometric", generator)
    phi = {
        "0.3 a + 0.7 b": lambda: 0.3 * a + 0.7 * b,
        "a - 0.4 b": lambda: a - 0.4 * b,
        "a b": lambda: a * b,
        "(1 + b) a": lambda: (1.0 + b) * a,
        "-2 a": lambda: -2.0 * a,
    }[expression]()
    x, y = points(generator, 1, 0.45), points(generator, 1, 0.45)
    found = draws(phi, x, y)[:, 0, 0]
    mean_is(found, 1.0, see=0.03)
    variance_is(found, float(phi.relative_variance(x, y).flatten()[0]), see=0.15)


@pytest.mark.parametrize("operator", ["+", "*"])
def test_covariance_formulas(operator: str, generator) -> None:
    # sees a correlation off by 0.1; each pair has one of at least 0.3
    a, b = replicated("positive", generator), replicated("hyperbolic", generator)
    phi = a + b if operator == "+" else a * b
    x, y = points(generator, 1, 0.4), points(generator, 2, 0.4)
    y[1] = 0.5 * (y[0] + y[1])
    found = draws(phi, x, y)
    declared = phi.relative_covariance(x, y).reshape(-1, 2, 2)[0]
    variances = phi.relative_variance(x, y).reshape(-1, 2)[0]
    assert torch.allclose(declared.diagonal(), variances, rtol=1e-9)
    covariance_is(found[:, 0, 0], found[:, 0, 1], float(declared[0, 1]), see=0.1)
    assert abs(float(declared[0, 1] / variances.prod().sqrt())) > 0.3


def test_a_hybrid_with_a_random_weight_is_unbiased(generator) -> None:
    # lam trig + (1 - lam) hyp, lam a Gaussian kernel's features used twice; sees 5 %
    lam = part("trigonometric", generator, 8, kernel="gaussian", batch_shape=(REPLICATES,))
    trig, hyp = replicated("trigonometric", generator), replicated("hyperbolic", generator)
    hybrid = lam * trig + (1.0 - lam) * hyp
    assert hybrid.unbiased
    x, y = points(generator, 2), points(generator, 2)
    assert torch.allclose(hybrid.log_exact(x, y).log_abs, x @ y.mT, atol=1e-12)
    found = draws(hybrid, x, y)
    declared = hybrid.relative_variance(x, y).reshape(-1, 2, 2)[0]  # the summands share lam
    for i in range(2):
        for j in range(2):
            mean_is(found[:, i, j], 1.0, see=0.05)
            variance_is(found[:, i, j], float(declared[i, j]), see=0.5)


def test_dependent_parts_count_their_covariance(generator) -> None:
    a, b = part("positive", generator), part("positive", generator)
    x, y = points(generator), points(generator)
    whole = a.relative_variance(x, y)
    grid = a.relative_covariance(x, y)
    for same, factor in ((a + a, 1.0), (a - 3.0 * a, 1.0), (a + b, 0.5), (2.0 * a - b + a, 2.5)):
        assert torch.allclose(same.relative_variance(x, y), factor * whole, rtol=1e-10)
        assert torch.allclose(same.relative_covariance(x, y), factor * grid, rtol=1e-10)


def test_parts_whose_dependence_has_no_theory_give_no_variance(generator) -> None:
    orthogonal = part("positive", generator, projection="orthogonal")
    request = Request(dim=3, num_features=12, projection=orthogonal.projection, generator=generator)
    even = RandomFeatures(request, Hyperbolic(), directions=orthogonal.directions)
    a, x = part("positive", generator), points(generator)
    assert (orthogonal + even).relative_variance(x, x) is None
    assert (orthogonal + even).relative_covariance(x, x) is None
    sobol = part("positive", generator, projection="sobol")
    assert (a + sobol).relative_variance(x, x) is None
    assert (a * sobol).relative_variance(x, x) is None


# -- independence ------------------------------------------------------------------------------------
def seeded(kind: str = "positive", m: int = 16, **options: object) -> FeatureMap:
    return part(kind, torch.Generator().manual_seed(1), m, **options)


@pytest.mark.parametrize(
    "other",
    [
        lambda: copy.deepcopy(seeded()),
        lambda: pickle.loads(pickle.dumps(seeded())),
        lambda: seeded(),
        lambda: seeded(m=64),
        lambda: seeded(dtype=torch.float32),
        lambda: seeded("trigonometric", 64),
        lambda: seeded(kernel="gaussian"),
        lambda: -2.0 * seeded(),
        lambda: seeded("positive", 16) + part("positive", torch.Generator().manual_seed(2)),
        lambda: seeded("gerf").fit(torch.ones(5, 3), torch.ones(5, 3)),
    ],
)
def test_products_refuse_factors_of_one_seed(other) -> None:
    with pytest.raises(ValueError, match="share random draws"):
        Product(seeded(), other())


def test_orthogonal_factors_of_one_seed_and_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="share random draws"):
        seeded(m=24, projection="orthogonal") * seeded(m=96, projection="orthogonal")


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
@pytest.mark.parametrize("m", [1, 2, 8])
def test_independent_draws_are_told_apart(dim: int, m: int, generator) -> None:
    """One Hadamard direction in three dimensions is now and then 0: not the same draw either."""
    maps = [
        make(
            "positive",
            dim=dim,
            num_features=m + (m == 1 and "anti" in p),
            projection=p,
            generator=generator,
        )
        for p in ("iid", "orthogonal", "simplex", "antithetic", "hadamard", "iid")
        for _ in range(8)
    ]
    clashes = sum(share_draws(a, b) for i, a in enumerate(maps) for b in maps[i + 1 :])
    assert clashes == 0


def test_resampling_keeps_factors_independent(generator) -> None:
    a, b = part("positive", generator), part("positive", generator)
    product = a * b
    assert product.resample_(torch.Generator().manual_seed(5)) is product
    assert not share_draws(a, b)
    assert share_draws(a, a)


# -- refusals ----------------------------------------------------------------------------------------
def test_errors(generator) -> None:
    a = part("positive", generator)
    with pytest.raises(ValueError, match="dim=3 and dim=2"):
        a + make("positive", dim=2, num_features=4)
    with pytest.raises(ValueError, match="at least two"):
        Sum(a)
    heads = [part("positive", generator, batch_shape=(n,)) for n in (2, 3)]
    with pytest.raises(ValueError, match="do not broadcast"):
        heads[0] + heads[1]
    for weight in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not zero"):
            Scaled(weight, a)


def test_composites_check_their_input(generator) -> None:
    a, b = part("positive", generator), part("trigonometric", generator)
    for phi in (a + b, a * b, -a, 1.0 - a):
        with pytest.raises(ValueError, match="NaN"):
            phi.query(torch.full((2, 3), math.nan))
        with pytest.raises(ValueError, match="expected dim=3"):
            phi.key(torch.zeros(2, 4))


def test_composites_pickle_and_load(generator) -> None:
    def build(seed: int) -> FeatureMap:
        g = torch.Generator().manual_seed(seed)
        return 0.5 * part("positive", g) * part("trigonometric", g) - part("hyperbolic", g)

    phi, other = build(1), build(2)
    x = points(generator)
    assert not torch.equal(phi.estimate(x, x), other.estimate(x, x))
    other.load_state_dict(phi.state_dict())
    assert torch.equal(phi.estimate(x, x), other.estimate(x, x))
    again = pickle.loads(pickle.dumps(phi))
    assert torch.equal(phi.estimate(x, x), again.estimate(x, x))


def test_gradients_through_a_hybrid(generator) -> None:
    lam = part("trigonometric", generator, 2, kernel="gaussian")
    phi = lam * part("positive", generator, 2) + (1.0 - lam) * part("hyperbolic", generator, 2)
    x = points(generator, 2).requires_grad_()
    y = points(generator, 2).requires_grad_()
    assert torch.autograd.gradcheck(phi.estimate, (x, y))


def test_the_kernel_is_that_of_the_estimators_not_of_the_weights(generator) -> None:
    weight = SignSwitch.angular(Request(dim=2, num_features=1, generator=generator))
    phi = make("positive", dim=2, num_features=4, kernel="gaussian", generator=generator)
    for expression in (weight * phi, phi * weight, weight * phi + (1.0 - weight) * phi):
        assert isinstance(expression.kernel, Gaussian)
