"""Exact transforms leave the kernel alone; the others replace it by the kernel they say."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bochner.catalog import make
from bochner.kernels import Gaussian, Softmax
from bochner.statistics import Moments
from bochner.transformed import TransformedFeatures
from bochner.transforms import (
    Centring,
    Composed,
    Lengthscale,
    LinearPair,
    SharedLinear,
    Transform,
)


def double(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def invertible(generator: torch.Generator, *shape: int) -> Tensor:
    dim = shape[-1]
    return double(generator, *shape) + 2 * dim**0.5 * torch.eye(dim, dtype=torch.float64)


def exact_ones(generator: torch.Generator, dim: int) -> dict[str, Transform]:
    return {
        "centring": Centring(double(generator, dim), double(generator, dim)),
        "pair": LinearPair(invertible(generator, dim, dim)),
        "both": Composed(
            Centring(double(generator, dim), double(generator, dim)),
            LinearPair(invertible(generator, dim, dim)),
            Centring(double(generator, dim), double(generator, dim)),
        ),
    }


# -- exact ------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(dim=st.integers(1, 6), seed=st.integers(0, 2**31), size=st.floats(0.01, 30.0))
def test_exact_transforms_keep_x_dot_y(dim: int, seed: int, size: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x, y = size * double(g, 2, 3, dim), size * double(g, 4, dim)
    for transform in exact_ones(g, dim).values():
        assert transform.exact
        (a, fa), (b, fb) = transform.queries(x), transform.keys(y)
        log = a @ b.mT
        log = log if fa is None else log + fa
        log = log if fb is None else log + fb.mT
        assert torch.allclose(log, x @ y.mT, rtol=0, atol=1e-10 * (1 + size) ** 2 * dim)


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("name", ["centring", "pair", "both"])
def test_exact_transforms_keep_the_kernel_of_a_map(kernel: str, name: str, generator) -> None:
    inner = make(
        "positive",
        dim=3,
        num_features=6,
        kernel=kernel,
        generator=generator,
        dtype=torch.float64,
        projection="iid",
    )
    transform = exact_ones(generator, 3)[name]
    phi = TransformedFeatures(inner, transform)
    x, y = 0.3 * double(generator, 4, 3), 0.3 * double(generator, 5, 3)
    assert torch.allclose(phi.log_exact(x, y).log_abs, phi.kernel.log(x, y), atol=1e-9)
    # relative to the exact value, the estimate is the softmax map's at the moved points
    (a, _), (b, _) = transform.queries(x), transform.keys(y)
    moved = a.unsqueeze(1) + b
    z = torch.exp(moved @ inner.omega.mT - 0.5 * moved.square().sum(-1, keepdim=True)).mean(-1)
    assert torch.allclose(phi.estimate(x, y) / phi.kernel(x, y), z, rtol=1e-8)
    assert torch.allclose(
        phi.relative_variance(x, y), torch.expm1(moved.square().sum(-1)) / 6, rtol=1e-8
    )


def test_half_precision_queries_and_keys_agree_on_the_centre(generator) -> None:
    # centres are stored in float64 and cast: q.c and a.(k - c) must use the same rounded centre
    transform = Centring(3 * double(generator, 4), 3 * double(generator, 4))
    x, y = double(generator, 5, 4).float(), double(generator, 6, 4).float()
    (a, fa), (b, fb) = transform.queries(x), transform.keys(y)
    assert torch.allclose(a @ b.mT + fa + fb.mT, x @ y.mT, atol=1e-4)


# -- kernels replaced on purpose ---------------------------------------------------------------------
@pytest.mark.parametrize("lengthscale", [0.7, torch.tensor([0.5, 1.0, 2.0])])
def test_lengthscale(lengthscale: float | Tensor, generator) -> None:
    transform = Lengthscale(lengthscale, dim=3)
    assert not transform.exact
    assert transform.symmetric
    x, y = double(generator, 4, 3), double(generator, 5, 3)
    inner = make("trigonometric", dim=3, num_features=8, kernel="gaussian", generator=generator)
    phi = TransformedFeatures(inner, transform)
    length = torch.as_tensor(lengthscale, dtype=torch.float64)
    gaps = (x.unsqueeze(1) - y) / length
    assert torch.allclose(phi.log_exact(x, y).log_abs, -0.5 * gaps.square().sum(-1), atol=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_lengthscale_must_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Lengthscale(bad, dim=2)


def test_lengthscale_of_another_dimension() -> None:
    with pytest.raises(ValueError, match="expected dim=3"):
        Lengthscale(torch.ones(2), dim=3)


def test_shared_linear_is_the_kernel_of_sigma(generator) -> None:
    m = double(generator, 2, 4)
    transform = SharedLinear(m)
    assert (transform.input_dim, transform.output_dim) == (4, 2)
    assert isinstance(transform.matrix, nn.Parameter)
    inner = make("positive", dim=2, num_features=8, generator=generator)
    phi = TransformedFeatures(inner, transform)
    x, y = 0.3 * double(generator, 3, 4), 0.3 * double(generator, 5, 4)
    assert torch.allclose(phi.log_exact(x, y).log_abs, x @ m.T @ m @ y.T, atol=1e-12)
    phi.log_estimate(x.float(), y.float()).log_abs.sum().backward()
    assert transform.matrix.grad is not None
    assert float(transform.matrix.grad.abs().sum()) > 0


# -- fitting -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_fits_pool_everything_but_the_batch(batch: tuple[int, ...], generator) -> None:
    q = double(generator, 4, *batch, 10, 3) + 1.0
    k = double(generator, 4, *batch, 12, 3) @ double(generator, 3, 3) - 0.5
    m = Moments.of(q, k, batch_shape=batch, ridge=0.0)
    assert m.query_mean.shape == (*batch, 3)
    assert m.key_covariance.shape == (*batch, 3, 3)
    flat = k.movedim(0, -3).reshape(*batch, 48, 3).reshape(-1, 48, 3)
    for index, points in enumerate(flat):
        mean = points.mean(0)
        covariance = (points - mean).T @ (points - mean) / 48
        assert torch.allclose(m.key_mean.reshape(-1, 3)[index], mean, atol=1e-12)
        assert torch.allclose(m.key_covariance.reshape(-1, 3, 3)[index], covariance, atol=1e-12)
    pair = Composed(Centring.fit(m), LinearPair.balancing(m))
    moved, _ = pair.keys(k)
    pooled = moved.movedim(0, -3).reshape(-1, 48, 3)
    covariances = pooled.mT @ pooled / 48
    off = covariances - torch.diag_embed(covariances.diagonal(dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 1e-8
    assert float(pooled.mean(1).abs().max()) < 1e-10


def test_whitening_gives_the_pooled_covariance_the_identity(generator) -> None:
    q, k = double(generator, 40, 3) @ double(generator, 3, 3), double(generator, 40, 3)
    m = Moments.of(q, k)
    matrix = SharedLinear.whitening(m, 2)
    pooled = 0.5 * (m.query_covariance + m.key_covariance)
    assert torch.allclose(matrix @ pooled @ matrix.T, torch.eye(2).double(), atol=1e-9)


def test_points_that_coincide_still_fit() -> None:
    q = torch.ones(5, 3, dtype=torch.float64)
    m = Moments.of(q, q)
    assert torch.equal(m.query_covariance, torch.eye(3, dtype=torch.float64))
    phi = make("data-aware", dim=3, num_features=8, dtype=torch.float64).fit(q, q)
    assert torch.allclose(phi.log_exact(q, q).log_abs, q @ q.T, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_rank_deficient_data_still_fits(scale: float, generator) -> None:
    q = scale * double(generator, 50, 1) * torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    for name in ("aderf", "sderf", "data-aware-relative", "data-aware-absolute"):
        phi = make(name, dim=3, num_features=8, dtype=torch.float64).fit(q, -q)
        x = q[:4] / scale / 10
        assert bool(torch.isfinite(phi.log_estimate(x, x).log_abs).all())
        gap = (phi.log_exact(x, x).log_abs - Softmax().log(x, x)).abs().max()
        assert float(gap) < 1e-6


# -- errors and small print --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Centring(torch.zeros(2), torch.zeros(3)), "share one shape"),
        (lambda: Centring(torch.tensor(0.0), torch.tensor(0.0)), "share one shape"),
        (lambda: LinearPair(torch.zeros(2, 3)), r"expected \[\*batch, d, d\]"),
        (lambda: LinearPair(torch.zeros(2, 2)), "singular"),
        (lambda: SharedLinear(torch.zeros(2)), "rank, d"),
        (lambda: Composed(), "at least one"),
        (lambda: Composed(LinearPair(torch.eye(2)), LinearPair(torch.eye(3))), "dimension 2"),
        (
            lambda: TransformedFeatures(
                make("positive", dim=3, num_features=4), LinearPair(torch.eye(2))
            ),
            "inner map has dim=3",
        ),
    ],
)
def test_errors_say_what_does_not_fit(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_declared_symmetry(generator) -> None:
    a, b = double(generator, 3), double(generator, 3)
    rotation = torch.linalg.qr(double(generator, 3, 3)).Q
    assert Centring(a, a).symmetric
    assert not Centring(a, b).symmetric
    assert LinearPair(rotation).symmetric
    assert not LinearPair(2 * rotation).symmetric
    assert Composed(Centring(a, a), LinearPair(rotation)).symmetric
    assert not Composed(Centring(a, b), LinearPair(rotation)).symmetric


def test_fitted_parts_are_frozen_copies(generator) -> None:
    a, b = double(generator, 3), double(generator, 3)
    transform = Centring(a, b)
    a.zero_()
    assert bool(transform.query_centre.any())
    assert list(transform.parameters()) == []
    x = double(generator, 2, 3).requires_grad_()
    points, factor = transform.queries(x)
    assert points.requires_grad
    assert factor is not None
    assert Gaussian() != Softmax()
