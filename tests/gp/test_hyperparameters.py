"""The streamed evidence: equal to the dense one, with its gradient; and where the search ends."""

import numpy as np
import pytest
import torch

import bochner
from bochner.gp.hyperparameters import (
    Hyperparameters,
    StreamedEvidence,
    maximise_evidence,
    unit_variance,
)
from bochner.kernels import Gaussian
from tests.gp.problems import log_density, problem


@pytest.fixture(params=[(50, 32), (20, 32)], ids=["sums", "rows"])
def evidence(request):
    n, m = request.param
    p = problem(n=n, m=m, k=2)
    return StreamedEvidence(p.feature_map, p.x, torch.from_numpy(p.y), block_rows=16)


AT = Hyperparameters(np.array([0.5, 1.0, 2.0]), outputscale=1.7, noise=0.3)
ISOTROPIC = Hyperparameters(np.array([0.8]), outputscale=0.6, noise=0.2)


@pytest.mark.parametrize("at", [AT, ISOTROPIC], ids=["each", "one"])
def test_value_is_the_dense_density(evidence, at):
    scaled = evidence.x / torch.from_numpy(at.lengthscales)
    phi = evidence.feature_map.query(scaled).materialise().numpy()
    covariance = at.outputscale * phi @ phi.T + at.noise * np.eye(len(phi))
    assert evidence(at)[0] == pytest.approx(log_density(evidence.y.numpy(), covariance), rel=1e-11)


@pytest.mark.parametrize("at", [AT, ISOTROPIC], ids=["each", "one"])
def test_gradient_by_differences(evidence, at):
    gradient = evidence(at)[1]
    logs, step = at.logs(), 1e-5
    for i, found in enumerate(gradient):
        up, down = logs.copy(), logs.copy()
        up[i] += step
        down[i] -= step
        ends = [evidence(Hyperparameters.from_logs(v))[0] for v in (up, down)]
        assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-6)


def test_blocks_change_nothing():
    p = problem(n=50, m=32, k=2)
    y = torch.from_numpy(p.y)
    whole = StreamedEvidence(p.feature_map, p.x, y)(AT)
    blocks = StreamedEvidence(p.feature_map, p.x, y, block_rows=16)(AT)
    assert blocks[0] == pytest.approx(whole[0], rel=1e-12)
    assert np.allclose(blocks[1], whole[1], rtol=1e-10)


def test_the_exact_evidence_is_that_of_the_kernel(evidence):
    z = evidence.x / torch.from_numpy(AT.lengthscales)
    covariance = 1.7 * Gaussian()(z, z).numpy() + 0.3 * np.eye(len(z))
    assert evidence.exact(AT) == pytest.approx(log_density(evidence.y.numpy(), covariance))


def test_search_recovers_what_made_the_data():
    """Lengthscales 0.4 and 4, noise 0.05, from a start where both are 1."""
    g = torch.Generator().manual_seed(1)
    x = 3 * torch.rand(400, 2, generator=g, dtype=torch.float64)
    truth = bochner.make(
        "trigonometric", dim=2, num_features=2000, kernel="gaussian", generator=g
    ).query(x / torch.tensor([0.4, 4.0]))
    w = torch.randn(2000, 1, generator=g, dtype=torch.float64)
    noise = 0.05**0.5 * torch.randn(400, 1, generator=g, dtype=torch.float64)
    y = truth.materialise() @ w + noise
    phi = bochner.make("trigonometric", dim=2, num_features=128, kernel="gaussian", generator=g)
    start = Hyperparameters(np.ones(2), outputscale=1.0, noise=0.3)
    evidence = StreamedEvidence(phi, x, y - y.mean())
    found = maximise_evidence(evidence, start)
    assert found.converged
    assert found.at_bounds == ()
    assert found.log_evidence > evidence(start)[0] + 50
    at = found.hyperparameters
    assert 0.3 < at.lengthscales[0] < 0.55
    assert 2.0 < at.lengthscales[1] < 8.0
    assert 0.035 < at.noise < 0.075
    assert np.abs(evidence(at)[1]).max() < 0.1  # a stationary point of a value of order 100


def test_what_sits_at_a_bound_is_named():
    p = problem(n=40, m=8, d=1)
    x = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
    flat = StreamedEvidence(p.feature_map, x, torch.sin(x))  # no noise at all
    found = maximise_evidence(flat, Hyperparameters(np.ones(1), outputscale=1.0, noise=0.1))
    assert "noise" in found.at_bounds


@pytest.mark.parametrize(
    ("name", "kernel", "message"),
    [("gerf", "gaussian", "not symmetric"), ("random-binning", "laplacian", "no gradient")],
)
def test_maps_without_a_model_or_a_gradient_are_refused(name, kernel, message):
    p = problem()
    phi = bochner.make(name, dim=3, num_features=16, kernel=kernel)
    with pytest.raises(ValueError, match=message):
        StreamedEvidence(phi, p.x, torch.from_numpy(p.y))(AT)


def test_the_unit_of_constant_targets_is_one():
    assert unit_variance(torch.full((5, 1), 3.0)) == 1.0
    assert unit_variance(torch.tensor([[0.0], [2.0]])) == 1.0
    assert unit_variance(torch.tensor([[0.0], [4.0]])) == 4.0
