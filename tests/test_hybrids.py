"""Hybrids: the published matrices, the published errors, and the dependence that would bias them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bochner import linear_attention
from bochner.algebra import Composite, Product
from bochner.exponential import ComplexExponential
from bochner.feature_map import FeatureMap
from bochner.hybrids import angular, bipolar, gaussian, mixture, partition, switched
from bochner.nonlinearities import Hyperbolic, Positive, Trigonometric
from bochner.projections import IID, Orthogonal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.switches import BucketedSignSwitch, GaussianSwitch, SignSwitch
from tests.naive import covariance_is, mean_is, variance_is

REPLICATES = 60_000


def request(generator: torch.Generator, m: int, dim: int = 3, **changes: object) -> Request:
    plain = Request(
        dim=dim, num_features=m, generator=generator, dtype=torch.float64, projection=IID()
    )
    return replace(plain, **changes)


def pair(angle: float, first: float, second: float, dim: int = 3) -> tuple[Tensor, Tensor]:
    x, y = torch.zeros(1, dim, dtype=torch.float64), torch.zeros(1, dim, dtype=torch.float64)
    x[0, 0], y[0, 0], y[0, 1] = first, second * math.cos(angle), second * math.sin(angle)
    return x, y


# -- the published matrices -------------------------------------------------------------------------------
def parts_of(hybrid: FeatureMap) -> tuple[Tensor, Tensor, Tensor]:
    """omega of the hyperbolic and of the trigonometric part, and tau."""
    (weight, far), (_, near) = ([*p.maps] for p in hybrid.maps)
    return far.omega, near.omega, weight.directions.omega


def kronecker(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)


@pytest.mark.parametrize("num_signs", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_angular_is_the_published_matrix_dense_and_bucketed(generator, num_signs, shared) -> None:
    m = 4
    hybrid = angular(
        request(generator, 4 * m * (num_signs + 1)), num_signs=num_signs, shared=shared
    )
    far, near, tau = parts_of(hybrid)
    assert torch.equal(far, near) == shared
    x, y = (0.7 * torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def maps(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norm = torch.exp(-0.5 * u.square().sum(-1, keepdim=True))
        p = torch.cat((torch.exp(u @ far.T), torch.exp(-u @ far.T)), -1) * norm / (2 * m) ** 0.5
        t = torch.cat((torch.cos(u @ near.T), torch.sin(u @ near.T)), -1) / norm / m**0.5
        return p, t, torch.sign(u @ tau.T) / num_signs**0.5

    (p, t, s), (p2, t2, s2) = maps(x), maps(y)
    psi_q = torch.cat((p, t, kronecker(s, p), kronecker(s, t)), -1) / 2**0.5
    psi_k = torch.cat((p2, t2, -kronecker(s2, p2), kronecker(s2, t2)), -1) / 2**0.5
    matrix = psi_q @ psi_k.T
    assert psi_q.shape[-1] == hybrid.num_features
    weight = 0.5 - 0.5 * s @ s2.T  # the matrix form: lambda (p.p) + (1 - lambda) (t.t)
    by_weights = weight * (p @ p2.T) + (1 - weight) * (t @ t2.T)
    bucketed_switch = BucketedSignSwitch(
        request(generator, 1),
        (0.0, 1.0),
        num_signs,
        directions=hybrid.maps[0].maps[0].directions,
    )
    bucketed = bipolar(bucketed_switch, hybrid.maps[0].maps[1], hybrid.maps[1].maps[1])
    assert bucketed.num_features == 8 * m * num_signs
    for other in (matrix, by_weights, bucketed.estimate(x, y)):
        assert torch.allclose(hybrid.estimate(x, y), other, rtol=1e-12, atol=1e-12)


def test_gaussian_is_the_published_matrix(generator) -> None:
    m, n = 3, 2
    hybrid = gaussian(request(generator, 2 * m * (4 * n + 1)), 0.8, num_frequencies=n)
    (weight, near), (_, far) = ([*p.maps] for p in hybrid.maps)
    x, y = (0.7 * torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    tau = weight.inner.omega
    lam = torch.cos((x.unsqueeze(1) - y) @ tau.T / 0.8).mean(-1)
    truth = lam * near.estimate(x, y) + (1 - lam) * far.estimate(x, y)
    assert torch.allclose(hybrid.estimate(x, y), truth, rtol=1e-12, atol=1e-12)


# -- the published errors -----------------------------------------------------------------------------------
def base_errors(x: Tensor, y: Tensor, m: int) -> tuple[float, float]:
    plus, minus = (float((x + sign * y).square().sum()) for sign in (1, -1))
    return 2 * math.sinh(plus / 2) ** 2 / m, 2 * math.sinh(minus / 2) ** 2 / m


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.5, 2.9, math.pi])
@pytest.mark.parametrize("second", [0.6, 1.1])
@pytest.mark.parametrize("num_signs", [1, 8])
@pytest.mark.parametrize("shared", [False, True])
def test_the_angular_theorem(generator, angle, second, num_signs, shared) -> None:
    m = 5
    hybrid = angular(
        request(generator, 4 * m * (num_signs + 1)), num_signs=num_signs, shared=shared
    )
    x, y = pair(angle, 0.6, second)
    hyp, trig = base_errors(x, y, m)
    lam, n = angle / math.pi, num_signs
    truth = lam * (lam - lam / n + 1 / n) * hyp + (1 - lam) * (1 - lam + lam / n) * trig
    if shared:
        gap = float(x.square().sum() - y.square().sum())
        truth -= 2 / m * (1 - math.cos(gap)) * lam * (1 - lam) * (1 - 1 / n)
    found = float(hybrid.relative_variance(x, y))
    assert found == pytest.approx(truth, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("lengthscale", [0.5, 2.0])
@pytest.mark.parametrize("shared", [False, True])
def test_the_gaussian_error(generator, lengthscale, shared) -> None:
    m, n = 4, 3
    hybrid = gaussian(
        request(generator, 2 * m * (4 * n + 1)), lengthscale, num_frequencies=n, shared=shared
    )
    x, y = pair(1.1, 0.9, 0.5)
    hyp, trig = base_errors(x, y, m)
    lam = math.exp(-float((x - y).square().sum()) / (2 * lengthscale**2))
    spread = (1 - lam**2) ** 2 / (2 * n)
    truth = (lam**2 + spread) * trig + ((1 - lam) ** 2 + spread) * hyp
    if shared:
        gap = float(x.square().sum() - y.square().sum())
        truth += 2 * (lam - lam**2 - spread) * (math.cos(gap) - 1) / m
    assert float(hybrid.relative_variance(x, y)) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("projection", [IID(), Orthogonal()])
@pytest.mark.parametrize(
    "make",
    [
        lambda r: angular(r.with_features(32), num_signs=1),
        lambda r: switched(r.with_features(60), SignSwitch.majority(r)),
        lambda r: switched(r.with_features(48), SignSwitch.agreement(r, 2), second=Positive()),
        lambda r: gaussian(r.with_features(30)),
    ],
    ids=["angular", "majority", "agreement of positive features", "gaussian"],
)
def test_errors_by_sampling(generator, projection, make) -> None:
    hybrid = make(request(generator, 1, batch_shape=(REPLICATES,), projection=projection, dim=4))
    x, y = pair(1.2, 0.6, 0.7, dim=4)
    ratio = (hybrid.estimate(x, y) / hybrid.kernel(x, y))[:, 0, 0]
    declared = float(hybrid.relative_variance(x, y).flatten()[0])
    mean_is(ratio, 1.0, see=0.05)
    variance_is(ratio, declared, see=0.6)


def test_the_error_of_two_pairs_of_one_query(generator) -> None:
    hybrid = angular(request(generator, 32, batch_shape=(REPLICATES,)), num_signs=3)
    x, y = pair(1.2, 0.6, 0.7)
    y = torch.cat((y, pair(1.6, 0.6, 0.5)[1]))
    ratio = hybrid.estimate(x, y) / hybrid.kernel(x, y)
    declared = hybrid.relative_covariance(x, y)
    assert torch.allclose(
        declared.diagonal(dim1=-2, dim2=-1), hybrid.relative_variance(x, y), rtol=1e-12
    )
    covariance_is(ratio[:, 0, 0], ratio[:, 0, 1], float(declared.flatten(0, -3)[0, 0, 1]), see=0.2)


@pytest.mark.parametrize("norm", [0.5, 2.0, 6.0])
def test_zero_error_at_both_poles(generator, norm) -> None:
    hybrid = angular(request(generator, 64), num_signs=3)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    x = norm * x / x.norm(dim=-1, keepdim=True)
    for y in (x, -x):
        assert torch.equal(hybrid.relative_variance(x, y).diagonal(), torch.zeros(4).double())
    # bucketed, the other estimator is weighed by an exact zero: nothing is left but rounding
    weight = BucketedSignSwitch.angular(request(generator, 1), 3)
    exact = switched(request(generator, 96), weight)
    for y in (x, -x):
        ratio = (exact.estimate(x, y) / torch.exp(x @ y.T)).diagonal()
        assert torch.allclose(ratio, torch.ones(4).double(), rtol=1e-12)


def test_shared_projections_never_add_error_and_halve_the_draws(generator) -> None:
    x = 0.8 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = 0.8 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    apart = angular(request(generator, 64), num_signs=3)
    joint = angular(request(generator, 64), num_signs=3, shared=True)
    assert bool((joint.relative_variance(x, y) <= apart.relative_variance(x, y)).all())
    assert (apart.num_projections, joint.num_projections) == (4 + 4 + 3, 4 + 3)
    orthogonal = request(generator, 64, projection=Orthogonal())
    assert angular(orthogonal, num_signs=1).relative_variance(x, y) is not None
    assert angular(orthogonal, num_signs=1, shared=True).relative_variance(x, y) is None


# -- dependence ---------------------------------------------------------------------------------------------
class Trusting(Product):
    """A product that does not look whether its parts are independent."""

    def __init__(self, *parts: FeatureMap) -> None:
        Composite.__init__(self, *parts)
        self.num_features = math.prod(p.num_features for p in parts)


def reusing(generator: torch.Generator, product: type[Product]) -> FeatureMap:
    """The angular hybrid (n = m = 4) whose hyperplanes are the projections of its parts."""
    r = request(generator, 8, dim=6, batch_shape=(REPLICATES,))
    far = RandomFeatures(r, Hyperbolic())
    near = RandomFeatures(r, Trigonometric(), directions=far.directions)
    weight = SignSwitch(r, (0.0, 1.0), 4, directions=far.directions)
    return product(weight, far) + product(weight.complement(), near)


def test_reused_projections_are_refused(generator) -> None:
    with pytest.raises(ValueError, match="share random draws"):
        reusing(generator, Product)


def test_reused_projections_would_bias(generator) -> None:
    hybrid = reusing(generator, Trusting)
    x, y = pair(1.9, 0.8, 0.8, dim=6)
    ratio = (hybrid.estimate(x, y) / hybrid.kernel(x, y))[:, 0, 0]
    stderr = float(ratio.std()) / REPLICATES**0.5
    assert abs(float(ratio.mean()) - 1) > 7 * stderr  # the false alarm rate is 3e-12
    assert abs(float(ratio.mean()) - 1) > 0.01


# -- mixtures -----------------------------------------------------------------------------------------------
def test_a_mixture_of_complex_exponentials(generator) -> None:
    r = request(generator, 6, batch_shape=(REPLICATES,))
    a = torch.tensor([0.9, 1.1, 1.0], dtype=torch.float64).expand(REPLICATES, 3)
    b = torch.tensor([1.1j, 0.9, 1.0 + 0.1j], dtype=torch.complex128).expand(REPLICATES, 3)
    weights = [GaussianSwitch(r, 0.9), SignSwitch.agreement(r, 2)]
    maps = [ComplexExponential(r, a), ComplexExponential(r, b)]
    hybrid = mixture(weights, maps, RandomFeatures(r, Positive()))
    x, y = pair(2.0, 0.5, 0.6)
    ratio = (hybrid.estimate(x, y) / hybrid.kernel(x, y))[:, 0, 0]
    mean_is(ratio, 1.0, see=0.05)
    variance_is(ratio, float(hybrid.relative_variance(x, y).flatten()[0]), see=0.3)


def test_a_float_times_a_hybrid_and_a_hybrid_of_hybrids(generator) -> None:
    r = request(generator, 8, batch_shape=(REPLICATES,))
    inner = angular(r.with_features(16))
    whole = bipolar(SignSwitch.angular(r), RandomFeatures(r, Positive()), 0.5 * inner + 0.5 * inner)
    x, y = pair(1.4, 0.5, 0.6)
    ratio = (whole.estimate(x, y) / whole.kernel(x, y))[:, 0, 0]
    mean_is(ratio, 1.0, see=0.05)
    variance_is(ratio, float(whole.relative_variance(x, y).flatten()[0]), see=0.4)


@pytest.mark.parametrize("build", [mixture, lambda w, m, base: partition(w, m)])
def test_lists_that_do_not_fit(generator, build) -> None:
    r = request(generator, 8)
    phi, lam = RandomFeatures(r, Positive()), SignSwitch.angular(r)
    for weights, maps in (([], []), ([lam], []), ([lam], [phi, phi])):
        with pytest.raises(ValueError, match="weight"):
            build(weights, maps, phi)


def test_budgets_that_do_not_fit(generator) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        angular(request(generator, 12))
    with pytest.raises(ValueError, match="use 10 or 20"):
        gaussian(request(generator, 12))


# -- numerics -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_stabiliser_for_all_blocks_of_a_token(generator, dtype) -> None:
    hybrid = angular(request(generator, 32, dtype=torch.float32), num_signs=1)
    x = torch.randn(6, 3, generator=generator)
    x = (40.0 * x / x.norm(dim=-1, keepdim=True)).to(dtype)
    for features in (hybrid.query(x), hybrid.key(x)):
        assert features.values.dtype == features.log_scale.dtype == torch.float32
        assert features.log_scale.shape == (6, 1)
        assert bool(torch.isfinite(features.values).all())
        assert bool(torch.isfinite(features.log_scale).all())
        assert float(features.values.abs().max()) <= 1.0
    log_abs, sign = hybrid.log_estimate(x, x)
    truth = hybrid.double().log_estimate(x.double(), x.double())
    assert torch.allclose(log_abs.diagonal().double(), truth.log_abs.diagonal(), rtol=1e-5)
    assert torch.equal(sign.diagonal().double(), truth.sign.diagonal())


@pytest.mark.parametrize("norm", [1.0, 3.0, 6.0])
def test_one_sign_is_exact_at_both_poles_in_float32(generator, norm) -> None:
    # in the dense layout e^{r^2} is subtracted from itself: relative errors of 1e7 at norm 4
    hybrid = angular(request(generator, 64, dim=8, dtype=torch.float32))
    x = torch.randn(20, 8, generator=generator)
    x = norm * x / x.norm(dim=-1, keepdim=True)
    for y in (x, -x):
        ratio = hybrid.estimate(x, y).diagonal() / hybrid.kernel(x, y).diagonal()
        assert torch.allclose(ratio, torch.ones(20), rtol=1e-4)


@pytest.mark.filterwarnings("ignore::bochner.attention.state.DenominatorWarning")
@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_large_norms_stays_finite(generator, causal) -> None:
    for _ in range(8):
        hybrid = angular(request(generator, 32, dim=4, dtype=torch.float32))
        q, k = (4.0 * torch.randn(70, 4, generator=generator) for _ in range(2))
        q, k = q.requires_grad_(), k.requires_grad_()
        out = linear_attention(hybrid, q, k, torch.randn(70, 2, generator=generator), causal=causal)
        gradients = torch.autograd.grad(out.sum(), (q, k))
        assert all(bool(torch.isfinite(t).all()) for t in (out, *gradients))


# -- identities ---------------------------------------------------------------------------------------------
def test_gaussian_weighted_trigonometric_features_are_trigonometric(generator) -> None:
    # cos(a) cos(b) averaged over the signs of b: frequencies w_i + s tau_j and w_i - s tau_j
    r = request(generator, 6)
    weight, near = GaussianSwitch(r, 0.7, num_frequencies=2), RandomFeatures(r, Trigonometric())
    x, y = (0.6 * torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    tau = weight.inner.omega / 0.7
    both = torch.cat([near.omega + sign * t for t in tau for sign in (1.0, -1.0)])
    difference = (x.unsqueeze(1) - y) @ both.T
    norms = 0.5 * (x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1))
    truth = torch.cos(difference).mean(-1) * torch.exp(norms)
    assert torch.allclose((weight * near).estimate(x, y), truth, rtol=1e-12)


@pytest.mark.parametrize("norms", [(0.9, 0.9), (0.6, 1.1)])
def test_sharing_orthogonal_projections_does_not_add_error_either(generator, norms) -> None:
    # no theory: the sample covariance of d = m = 8 is below 0 beyond 7 standard errors (1e-12)
    r = request(
        generator, 16, dim=8, batch_shape=(200_000,), projection=Orthogonal(), dtype=torch.float32
    )
    far = RandomFeatures(r, Hyperbolic())
    near = RandomFeatures(r, Trigonometric(), directions=far.directions)
    x, y = pair(1.4, *norms, dim=8)
    a, b = ((m.estimate(x, y) / m.kernel(x, y))[:, 0, 0].double() for m in (far, near))
    products = (a - a.mean()) * (b - b.mean())
    stderr = float(products.std()) / len(products) ** 0.5
    assert float(products.mean()) < -7 * stderr
