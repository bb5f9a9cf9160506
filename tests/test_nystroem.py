"""Nystroem features against dense algebra; equal landmarks, large norms, and where landmarks come from."""

import math

import pytest
import torch

import bochner
from bochner.kernels import Gaussian, Laplacian, Polynomial, Softmax
from bochner.nystroem import RELATIVE_CUTOFF, NystroemFeatures, fit_nystroem
from bochner.nystroem_landmarks import (
    KMeansLandmarks,
    LeverageLandmarks,
    UniformLandmarks,
    _leverage,
    correlation,
)
from bochner.request import Request

RULES = [UniformLandmarks(), KMeansLandmarks(), LeverageLandmarks()]


def request(kernel, dim, num_features, *, seed=0, **given) -> Request:
    generator = torch.Generator().manual_seed(seed)
    return Request(dim=dim, num_features=num_features, kernel=kernel, generator=generator, **given)


@pytest.mark.parametrize("kernel", [Gaussian(), Softmax(), Laplacian(), Polynomial()], ids=repr)
def test_the_projection_onto_landmarks(kernel, generator) -> None:
    x, y, z = torch.randn(3, 12, 4, generator=generator, dtype=torch.float64)
    phi = NystroemFeatures(request(kernel, 4, 12, dtype=torch.float64), z)
    expected = kernel(x, z) @ torch.linalg.solve(kernel(z, z), kernel(z, y))
    assert torch.allclose(phi.estimate(x, y), expected, rtol=1e-7, atol=1e-9)
    assert torch.allclose(phi.estimate(z, y), kernel(z, y), rtol=1e-7, atol=1e-9)
    assert int(phi.rank(torch.float64)) == 12


def test_more_landmarks_than_features_is_the_best_rank(generator) -> None:
    z = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    phi = NystroemFeatures(request(Gaussian(), 2, 8, dtype=torch.float64), z)
    values, vectors = torch.linalg.eigh(Gaussian()(z, z))
    best = vectors[:, -8:] * values[-8:] @ vectors[:, -8:].T
    assert torch.allclose(phi.estimate(z, z), best, atol=1e-10)
    far = phi.query(z[:1]).materialise()
    assert far.shape == (1, 8)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_equal_landmarks_in_float32(rule, generator) -> None:
    """400 rows of 20 distinct points: K(Z, Z) has rank 20, and rounding makes it indefinite."""
    distinct = torch.randn(20, 3, generator=generator)
    x = distinct.repeat(20, 1)
    phi = fit_nystroem(request(Gaussian(), 3, 200), x, x, rule=rule)
    for points in (x, x.double()):
        assert int(phi.rank(points.dtype)) <= 20
        features = phi.query(points)
        assert bool(torch.isfinite(features.values).all())
        assert (features.values != 0).any(dim=0).sum() <= 20
        error = phi.estimate(points, points) - Gaussian()(points, points)
        assert error.abs().max() < 2e-3


def test_rounding_is_not_divided_by_small_eigenvalues(generator) -> None:
    """A smooth kernel: eigenvalues fall to 1e-16, and float32 features must not use those below 1e-10."""
    x = 0.3 * torch.randn(300, 2, generator=generator)
    phi = fit_nystroem(request(Gaussian(), 2, 100), x, x, rule=UniformLandmarks())
    single, double = phi.rank(torch.float32), phi.rank(torch.float64)
    assert 20 < int(single) < int(double) < 100
    exact = Gaussian()(x.double(), x.double())
    assert (phi.estimate(x, x) - exact).abs().max() < 1e-4
    assert (phi.estimate(x.double(), x.double()) - exact).abs().max() < 1e-5


def test_exponentials_out_of_range(generator) -> None:
    """exp(x.y) of norm 40 has no float64; the features' scales have."""
    z = 40.0 * torch.nn.functional.normalize(torch.randn(5, 3, generator=generator), dim=-1)
    phi = NystroemFeatures(request(Softmax(), 3, 5), z)
    log_abs, sign = phi.log_estimate(z, z)
    assert (sign.diagonal() == 1).all()
    assert torch.allclose(log_abs.diagonal(), torch.full((5,), 1600.0), rtol=1e-5)


def test_points_that_no_landmark_sees(generator) -> None:
    z = torch.randn(4, 2, generator=generator)
    phi = NystroemFeatures(request(Gaussian(), 2, 4), z)
    far = torch.full((1, 2), 1e4)
    assert float(phi.estimate(far, far)) == 0.0
    assert bool(torch.isfinite(phi.query(far).values).all())


def test_leverage_scores_are_exact_from_all_points(generator) -> None:
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    kernel = correlation(Softmax(), x, x)
    found = _leverage(Softmax(), x, x, torch.ones(40, dtype=torch.float64))
    values = torch.linalg.eigvalsh(kernel)
    leading = math.ceil(40 / (4 * math.log(41)))
    ridge = values[: 40 - leading].sum() / leading
    expected = kernel @ torch.linalg.inv(kernel + ridge * torch.eye(40))
    assert torch.allclose(found, expected.diagonal())
    unnormalised = Softmax()(x, x)
    assert torch.allclose(kernel.diagonal(), torch.ones(40, dtype=torch.float64))
    assert torch.allclose(
        kernel[0, 1], unnormalised[0, 1] / (unnormalised[0, 0] * unnormalised[1, 1]).sqrt()
    )


def test_leverage_scores_from_some_points(generator) -> None:
    """Points kept with probability p stand for 1/p of their kind: K_SS + ridge diag(p)."""
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    chosen, p = x[:12], 0.1 + 0.8 * torch.rand(12, generator=generator, dtype=torch.float64)
    inner, cross = Gaussian()(chosen, chosen), Gaussian()(x, chosen)
    values = torch.linalg.eigvalsh(inner / (p.sqrt().unsqueeze(-1) * p.sqrt()))
    leading = math.ceil(12 / (4 * math.log(13)))
    ridge = values[: 12 - leading].sum() / leading
    explained = cross @ torch.linalg.solve(inner + ridge * p.diag(), cross.T)
    expected = (1.0 - explained.diagonal()) / ridge
    assert torch.allclose(_leverage(Gaussian(), x, chosen, p), expected)


def test_leverage_finds_a_small_cluster(generator) -> None:
    """8 of 4,008 points lie apart: uniform landmarks miss most of them in most draws."""
    crowd = 0.3 * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    apart = 6.0 + 2.0 * torch.randn(8, 2, generator=generator, dtype=torch.float64)
    x = torch.cat((crowd, apart))
    found = {}
    for rule in (UniformLandmarks(), LeverageLandmarks()):
        counts = []
        for seed in range(5):
            phi = fit_nystroem(request(Gaussian(), 2, 24, seed=seed), x, x, rule=rule)
            assert phi.landmarks.unique(dim=0).shape == (24, 2), "drawn without replacement"
            counts.append(int((phi.landmarks.sum(-1) > 4).sum()))
        found[rule] = sum(counts) / 5
    assert found[UniformLandmarks()] <= 0.2  # 0.05 are expected
    assert found[LeverageLandmarks()] >= 1


def test_k_means_landmarks_have_less_error(generator) -> None:
    x = torch.randn(1500, 2, generator=generator, dtype=torch.float64)
    error = {}
    for rule in (UniformLandmarks(), KMeansLandmarks()):
        phi = fit_nystroem(request(Gaussian(), 2, 60), x, x, rule=rule)
        error[rule] = float((phi.estimate(x, x) - Gaussian()(x, x)).square().mean().sqrt())
    assert error[KMeansLandmarks()] < 0.5 * error[UniformLandmarks()]


def test_queries_that_are_the_keys_count_once(generator) -> None:
    x = torch.randn(10, 2, generator=generator)
    phi = fit_nystroem(request(Gaussian(), 2, 10), x, x.clone(), rule=UniformLandmarks())
    assert torch.equal(phi.landmarks.sort(dim=0).values, x.sort(dim=0).values)
    both = fit_nystroem(request(Gaussian(), 2, 20), x, -x, rule=UniformLandmarks())
    assert both.landmarks.shape == (20, 2)
    with pytest.raises(ValueError, match="num_features=11 landmarks were asked of 10 points"):
        fit_nystroem(request(Gaussian(), 2, 11), x, x, rule=UniformLandmarks())


@pytest.mark.parametrize("name", ["nystroem", "nystroem-leverage", "nystroem-k-means"])
def test_heads_have_landmarks_of_their_own(name, generator) -> None:
    x = torch.randn(2, 300, 3, generator=generator, dtype=torch.float64)
    x[1] += 50.0
    phi = bochner.make(
        name,
        dim=3,
        num_features=40,
        kernel="gaussian",
        batch_shape=(2,),
        generator=torch.Generator().manual_seed(0),
    ).fit(x, x)
    assert phi.landmarks[1].mean() > 40 > phi.landmarks[0].max()
    assert (phi.estimate(x, x) - Gaussian()(x, x)).square().mean().sqrt() < 0.1


def test_landmarks_of_one_s_own() -> None:
    z = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"landmarks have shape \[3, 2\]; expected"):
        NystroemFeatures(request(Gaussian(), 2, 4), z)
    with pytest.raises(ValueError, match=r"landmarks have shape \[3, 2\]"):
        NystroemFeatures(request(Gaussian(), 3, 3), z)
    with pytest.raises(ValueError, match="NaN"):
        NystroemFeatures(request(Gaussian(), 2, 3), z + torch.nan)
    with pytest.raises(ValueError, match="not positive and finite"):
        NystroemFeatures(request(Polynomial(degree=2, offset=0.0), 2, 3), z)
    assert set(RELATIVE_CUTOFF) == {torch.float32, torch.float64}
