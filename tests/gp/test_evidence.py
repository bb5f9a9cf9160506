"""Regression on features against the dense formulas in n x n matrices."""

import numpy as np
import pytest

from bochner.gp.evidence import WeightPosterior
from bochner.gram import PrecisionError
from tests.gp.problems import log_density, problem, sums_of

A, S = 1.7, 0.3


@pytest.fixture(params=[(60, 24, 1), (60, 24, 3), (10, 24, 2)], ids=["one", "three", "few rows"])
def case(request):
    n, m, k = request.param
    p = problem(n=n, m=m, k=k)
    return p, WeightPosterior(sums_of(p.phi, p.y), outputscale=A, noise=S)


def covariance_of(phi):
    return A * phi @ phi.T + S * np.eye(len(phi))


def test_mean_and_variance_are_those_of_the_process_with_kernel_phi_phi(case):
    p, posterior = case
    new = p.feature_map.query(p.x[:7] + 0.5).materialise().numpy()
    cross = A * new @ p.phi.T
    solved = np.linalg.solve(covariance_of(p.phi), cross.T)
    assert np.allclose(new @ posterior.mean, solved.T @ p.y, atol=1e-11)
    covariance = A * new @ new.T - cross @ solved
    assert np.allclose(posterior.covariance(new), covariance, atol=1e-11)
    assert np.allclose(posterior.variance(new), np.diag(covariance), atol=1e-11)


def test_log_evidence_is_the_dense_density(case):
    p, posterior = case
    assert posterior.log_evidence == pytest.approx(
        log_density(p.y, covariance_of(p.phi)), rel=1e-12
    )


def test_effective_dof_and_residuals(case):
    p, posterior = case
    smoother = p.phi @ np.linalg.solve(p.phi.T @ p.phi + S / A * np.eye(p.phi.shape[1]), p.phi.T)
    assert posterior.effective_dof == pytest.approx(np.trace(smoother), rel=1e-11)
    residuals = np.square(p.y - smoother @ p.y).sum()
    assert posterior.residual_squares == pytest.approx(residuals, rel=1e-10)


def test_gradient_by_differences(case):
    p, posterior = case
    gradient = posterior.gradient()
    step = 1e-5

    def value(phi, log_a=0.0, log_s=0.0):
        sums = sums_of(phi, p.y)
        return WeightPosterior(
            sums, outputscale=A * np.exp(log_a), noise=S * np.exp(log_s)
        ).log_evidence

    for name, found in (("log_a", gradient.log_outputscale), ("log_s", gradient.log_noise)):
        slope = (value(p.phi, **{name: step}) - value(p.phi, **{name: -step})) / (2 * step)
        assert found == pytest.approx(slope, rel=1e-6, abs=1e-6)
    direction = np.random.default_rng(0).normal(size=p.phi.shape)
    slope = (value(p.phi + step * direction) - value(p.phi - step * direction)) / (2 * step)
    in_features = p.phi @ (gradient.gram + gradient.gram.T) + p.y @ gradient.cross.T
    assert (in_features * direction).sum() == pytest.approx(slope, rel=1e-6)


def test_draws_have_the_posterior_mean_and_covariance(case):
    p, posterior = case
    # the map from normals to draws is affine: its matrix gives the covariance without sampling
    m = posterior.num_features
    root = posterior.draws(np.eye(m)) - posterior.draws(np.zeros((m, m)))
    inverse = np.linalg.inv(p.phi.T @ p.phi + S / A * np.eye(m))
    assert np.allclose(root @ root.T, S * inverse, atol=1e-11)
    assert np.allclose(posterior.draws(np.zeros((m, 2))), posterior.mean[:, :1])


def test_prior_deviation_does_not_depend_on_the_number_of_features():
    """Features that are not divided by sqrt(r) would make it grow with m (a peer's bug)."""
    for m in (16, 128, 1024):
        p = problem(n=5, m=m)
        far = p.feature_map.query(p.x[:3] + 100.0).materialise().numpy()
        prior = WeightPosterior(sums_of(p.phi[:0], p.y[:0]), outputscale=4.0, noise=S)
        assert np.allclose(prior.variance(far), 4.0, rtol=1e-10)
        posterior = WeightPosterior(sums_of(p.phi, p.y), outputscale=4.0, noise=S)
        assert posterior.variance(far).max() <= 4.0


def test_noise_below_the_precision_of_the_sums_is_refused():
    p = problem(n=60, m=24)
    sums = sums_of(p.phi.astype(np.float32), p.y)
    gram = sums.gram.astype(np.float64)
    gram -= (np.linalg.eigvalsh(gram)[0] + 1e-5) * np.eye(24)  # as if rounded in single precision
    sums.gram = gram
    with pytest.raises(PrecisionError, match="double precision"):
        WeightPosterior(sums, outputscale=1.0, noise=1e-8)


@pytest.mark.parametrize("wrong", [{"noise": 0.0}, {"outputscale": -1.0}, {"noise": np.nan}])
def test_scales_must_be_positive(wrong):
    p = problem()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WeightPosterior(sums_of(p.phi, p.y), **({"outputscale": 1.0, "noise": 1.0} | wrong))
