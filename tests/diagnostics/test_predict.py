"""The closed-form error against measured ones, where the theory claims to hold."""

import math

import pytest
import torch
from torch import Tensor

from bochner import Constant, make, measure, predict, spec
from bochner.diagnostics import Prediction
from bochner.feature_map import FeatureMap
from bochner.nonlinearities import Hyperbolic
from bochner.random_features import RandomFeatures
from bochner.request import Request
from tests.maps import PREDICTED, WITHOUT_THEORY, fitted, normal, on_sphere, seeded


def measured(phi: FeatureMap, q: Tensor, k: Tensor, v: Tensor, *, redraws: int) -> Tensor:
    """Root mean square over redraws of the output error, per head."""
    report = measure(phi, q, k, v, num_redraws=redraws, generator=seeded(9))
    return report.per_head["output"].square().mean(0).sqrt()


def naive(phi: FeatureMap, q: Tensor, k: Tensor, v: Tensor, num_queries: int) -> float:
    """The pair formula of docs/theory.md 7, a loop over pairs of keys."""
    total = norm = 0.0
    picks = torch.linspace(0, q.shape[0] - 1, min(num_queries, q.shape[0])).round().long().tolist()
    for i in picks:
        c = phi.relative_covariance(q[i : i + 1], k)[0]
        w = torch.softmax(k @ q[i], dim=0)
        o = (w[:, None] * v).sum(0)
        bias = torch.zeros_like(o)
        for j in range(len(k)):
            for other in range(len(k)):
                pair = w[j] * w[other] * c[j, other]
                total += float(pair * ((v[j] - o) @ (v[other] - o)))
                bias -= pair * (v[j] - o)
        total += float(bias @ bias)
        norm += float(o @ o)
    return math.sqrt(total / norm)


@pytest.mark.parametrize("name", PREDICTED)
def test_equals_the_pair_formula(name: str) -> None:
    phi = fitted(name, dim=3, num_features=8)
    q, k, v = normal(9, 3, seed=1), normal(7, 3, seed=2), normal(7, 2, seed=3)
    for num_queries in (1, 4, 50):
        predicted = predict(phi, q, k, v, num_queries=num_queries)
        truth = naive(phi, q, k, v, num_queries)
        assert predicted.output_error == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("name", PREDICTED)
def test_agrees_with_measurement_where_variances_are_small(name: str) -> None:
    """Independent directions, |x|, |y| ~ 0.4, m = 512: 60 redraws, within 15 %."""
    projection = "iid" if spec(name).takes_projection else None
    m = 32 if name == "local" else 512  # beyond, its error is rare products of nine signs and more
    phi = fitted(name, dim=4, num_features=m, batch_shape=(3,), projection=projection, scale=0.2)
    q, k = (normal(3, 20, 4, seed=s, scale=0.2) for s in (1, 2))
    v = normal(3, 20, 6, seed=3)
    predicted = predict(phi, q, k, v, num_queries=20)
    assert predicted.reliable
    ratio = measured(phi, q, k, v, redraws=60) / predicted.per_head
    assert ratio.min() > 0.85
    assert ratio.max() < 1.15


@pytest.mark.parametrize("projection", ["antithetic", "antithetic-orthogonal"])
def test_knows_antithetic_pairs(projection: str) -> None:
    """Far better than independent ones at x = -y, and predicted so."""
    phi = make("positive", dim=4, num_features=256, projection=projection, generator=seeded(0))
    single = make("positive", dim=4, num_features=256, projection="iid", generator=seeded(0))
    q = on_sphere(20, 4, norm=0.4, seed=1)
    k, v = -q + normal(20, 4, seed=2, scale=0.05), normal(20, 3, seed=3)
    predicted = predict(phi, q, k, v, num_queries=20)
    assert predicted.output_error < 0.7 * predict(single, q, k, v, num_queries=20).output_error
    ratio = float(measured(phi, q, k, v, redraws=60)) / predicted.output_error
    assert (0.7 if projection == "antithetic-orthogonal" else 0.85) < ratio < 1.15


@pytest.mark.parametrize("name", ["positive", "trigonometric", "hyperbolic", "data-aware"])
def test_leaves_out_what_a_coupling_saves(name: str) -> None:
    """Orthogonal directions: the prediction is an upper bound, not far off."""
    phi = fitted(name, dim=8, num_features=512, projection="orthogonal", scale=0.2)
    q, k = (normal(30, 8, seed=s, scale=0.2) for s in (1, 2))
    v = normal(30, 4, seed=3)
    predicted = predict(phi, q, k, v, num_queries=30)
    ratio = float(measured(phi, q, k, v, redraws=40)) / predicted.output_error
    assert 0.4 < ratio < 1.15


@pytest.mark.parametrize("projection", ["hadamard", "sobol"])
def test_none_where_theory_has_none(projection: str) -> None:
    phi = make("positive", dim=4, num_features=16, projection=projection, generator=seeded(0))
    q, k, v = (normal(9, 4, seed=s) for s in (1, 2, 3))
    expected = projection == "hadamard"  # Sobol rows are normal: the independent form is a bound
    assert (predict(phi, q, k, v) is None) == expected


@pytest.mark.parametrize("name", WITHOUT_THEORY)
def test_none_for_maps_without_a_closed_form(name: str) -> None:
    phi = fitted(name, dim=4, num_features=16)
    q, k, v = (normal(9, 4, seed=s) for s in (1, 2, 3))
    assert predict(phi, q, k, v) is None
    assert phi.relative_variance(q, k) is None


def test_none_for_a_sum_whose_dependence_has_no_theory() -> None:
    phi = make("positive", dim=4, num_features=16, generator=seeded(0))
    request = Request(dim=4, num_features=32, projection=phi.projection)
    even = RandomFeatures(request, Hyperbolic(), directions=phi.directions)
    q, k, v = (normal(9, 4, seed=s) for s in (1, 2, 3))
    assert predict(phi + even, q, k, v) is None
    assert predict(phi + phi, q, k, v) is not None


def test_a_map_with_another_kernel_is_charged_for_it() -> None:
    """1 + K instead of K, or a trained kernel: the difference is a bias that no budget removes."""
    q, k = (normal(20, 4, seed=s, scale=0.3) for s in (1, 2))
    v = normal(20, 3, seed=3)
    plain = make("positive", dim=4, num_features=4096, projection="iid", generator=seeded(0))
    flattened = plain + Constant(4)
    trained = fitted("dark", dim=4, num_features=4096, projection="iid", scale=0.3)
    with torch.no_grad():
        next(iter(trained.parameters())).mul_(0.6)
    for phi in (flattened, trained):
        predicted = predict(phi, q, k, v, num_queries=20)
        assert predicted.output_error > 1.5 * predict(plain, q, k, v, num_queries=20).output_error
        ratio = float(measured(phi, q, k, v, redraws=20)) / predicted.output_error
        assert 0.85 < ratio < 1.15


def test_a_weight_cancels() -> None:
    phi = make("positive", dim=4, num_features=64, generator=seeded(0))
    q, k, v = (normal(9, 4, seed=s, scale=0.4) for s in (1, 2, 3))
    truth = predict(phi, q, k, v).output_error
    assert predict(3.0 * phi, q, k, v).output_error == pytest.approx(truth, rel=1e-9)
    assert predict(-phi, q, k, v).output_error == pytest.approx(truth, rel=1e-9)


def test_halves_when_the_budget_quadruples() -> None:
    q, k, v = (normal(9, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    small, large = (
        predict(make("positive", dim=4, num_features=m, generator=seeded(0)), q, k, v)
        for m in (4096, 16384)
    )
    assert small.output_error / large.output_error == pytest.approx(2.0, rel=0.01)
    assert small.denominator_cv2 / large.denominator_cv2 == pytest.approx(4.0)


def test_says_when_it_is_not_to_be_trusted() -> None:
    q, k, v = (normal(20, 16, seed=s) for s in (1, 2, 3))
    predicted = predict(make("positive", dim=16, num_features=64, generator=seeded(0)), q, k, v)
    assert not predicted.reliable
    assert "first-order theory overestimates here" in str(predicted)
    q, k = 0.05 * q, 0.05 * k
    predicted = predict(make("positive", dim=16, num_features=64, generator=seeded(0)), q, k, v)
    assert predicted.reliable
    assert str(predicted).endswith("reliable)")


@pytest.mark.parametrize("norm", [0.0, 1e-4, 30.0, 80.0])
@pytest.mark.parametrize("name", PREDICTED)
def test_extreme_norms(name: str, norm: float) -> None:
    """A number or inf, never NaN, no warning; zero points have zero error."""
    phi = fitted(name, dim=4, num_features=8)
    q, k = (on_sphere(9, 4, norm=norm, seed=s) for s in (1, 2))
    predicted = predict(phi, q, k, normal(9, 2, seed=3))
    assert isinstance(predicted, Prediction)
    assert not math.isnan(predicted.output_error)
    assert not math.isnan(predicted.denominator_cv2)
    if norm == 0.0 and name in ("positive", "hyperbolic", "trigonometric"):
        assert predicted.output_error == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 30.0, 80.0, 1e4])
@pytest.mark.parametrize("projection", ["iid", "orthogonal", "simplex", "antithetic-orthogonal"])
@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric", "gerf", "data-aware"])
@pytest.mark.parametrize("dim", [1, 2, 6, 64])
def test_relative_variances_never_become_nan(
    name: str, projection: str, norm: float, dim: int
) -> None:
    """They overflow to inf: at |x + y| = 60 the truth exceeds e^3600."""
    phi = fitted(name, dim=dim, num_features=16, projection=projection)
    x = on_sphere(3, dim, norm=norm, seed=1)
    for y in (x, -x, on_sphere(3, dim, norm=norm, seed=2)):
        for value in (phi.relative_variance(x, y), phi.relative_covariance(x, y)):
            if value is not None:
                assert not value.isnan().any()
        variance = phi.relative_variance(x, y)
        assert variance is None or (variance >= 0).all()


def test_per_head_maps_on_one_sequence() -> None:
    phi = fitted("data-aware", dim=4, num_features=16, batch_shape=(3,))
    q, k, v = (normal(9, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    assert predict(phi, q, k, v).per_head.shape == (3,)


def test_inputs_that_record_gradients() -> None:
    phi = fitted("dark", dim=4, num_features=16)
    q, k, v = (normal(9, 4, seed=s, scale=0.3).requires_grad_() for s in (1, 2, 3))
    assert not predict(phi, q, k, v).per_head.requires_grad
