"""TensorSketch against the sketch of all monomials, and its closed forms at odd and even m."""

import itertools

import pytest
import torch

import bochner
from bochner.feature_maps.tensor_sketch import TensorSketch
from bochner.kernels import Gaussian, Polynomial
from bochner.request import Request
from tests.maps import normal, seeded
from tests.naive import covariance_is, mean_is, variance_is


def sketch(degree: int, m: int, *, offset: float = 1.0, dim: int = 3, batch: tuple[int, ...] = ()):
    return TensorSketch(
        Request(
            dim=dim,
            num_features=m,
            kernel=Polynomial(degree, offset),
            batch_shape=batch,
            generator=seeded(degree + m),
            dtype=torch.float64,
        )
    )


@pytest.mark.parametrize(("degree", "m"), [(1, 4), (2, 5), (3, 8)])
def test_against_the_sketch_of_all_monomials(degree: int, m: int) -> None:
    phi, x = sketch(degree, m, offset=2.0), normal(4, 3)
    z = torch.cat((x, torch.full((4, 1), 2.0**0.5, dtype=x.dtype)), dim=-1)
    truth = torch.zeros(4, m, dtype=torch.float64)
    for index in itertools.product(range(4), repeat=degree):
        bucket = sum(int(phi.buckets[j, i]) for j, i in enumerate(index)) % m
        monomial = torch.ones(4, dtype=torch.float64)
        for j, i in enumerate(index):
            monomial = monomial * phi.signs[j, i] * z[:, i]
        truth[:, bucket] += monomial
    assert torch.allclose(phi.query(x).materialise(), truth, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("degree", [1, 3])
def test_mean_variance_and_covariance_at_few_buckets(degree: int, m: int) -> None:
    """The contract runs 16 buckets: here the term of 1/m^2 shows, and what makes it 2/m^2 at even m."""
    phi = sketch(degree, m, dim=2, batch=(40_000,))
    x, y = normal(1, 2, seed=3, scale=0.5), normal(2, 2, seed=4, scale=0.5)
    samples = phi.estimate(x, y)[:, 0] / phi.kernel(x, y)[0]
    mean_is(samples[:, 0], 1.0, see=0.1)
    variance_is(samples[:, 0], float(phi.relative_variance(x, y)[0, 0]), see=0.4)
    covariance = phi.relative_covariance(x, y)[0]
    covariance_is(samples[:, 0], samples[:, 1], float(covariance[0, 1]), see=0.2)
    assert torch.allclose(covariance.diagonal(), phi.relative_variance(x, y)[0])


def test_the_zero_point_and_a_kernel_value_of_zero() -> None:
    phi = sketch(2, 8, offset=0.0)
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert float(phi.estimate(x, x)[0].abs().max()) == 0.0
    assert bool(torch.isinf(phi.relative_variance(x[1:2], x[2:])).all())


def test_derivatives() -> None:
    phi, x = sketch(3, 8), normal(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: phi.query(p).materialise(), (x,))


def test_more_than_monomials_in_fewer_columns() -> None:
    """d = 64, p = 3: 47,905 monomials in 1,024 columns, errors as predicted."""
    phi = bochner.make(
        "tensor-sketch", dim=64, num_features=1024, kernel=Polynomial(3), generator=seeded(0)
    )
    x = torch.nn.functional.normalize(normal(40, 64), dim=-1)
    gaps = phi.estimate(x, x) / phi.kernel(x, x) - 1
    ratio = float(gaps.square().mean() / phi.relative_variance(x, x).mean())
    assert 0.7 < ratio < 1.4


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"Gaussian\(\) must be a Polynomial"):
        TensorSketch(Request(dim=2, num_features=4, kernel=Gaussian()))
    with pytest.raises(ValueError, match="others of this kernel: .*tensor-sketch"):
        bochner.make("trigonometric", dim=2, num_features=4, kernel="polynomial")


def test_one_monomial_is_exact_and_its_variance_not_below_zero():
    phi = sketch(1, 1, offset=0.0, dim=1)
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(phi.estimate(x, x), phi.kernel(x, x), rtol=1e-12)
    variance = phi.relative_variance(x, x)
    assert (variance >= 0).all()
    assert variance.max() < 1e-12
