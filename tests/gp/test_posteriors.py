"""Posteriors against independent libraries, dense formulas and each other; what starves and what does not."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

import bochner
from bochner.gp.evidence import WeightPosterior
from bochner.gp.exact import ExactPosterior
from bochner.gp.landmarks import RELATIVE_CUTOFF, JointFeatures, Landmarks
from bochner.gp.nystrom import NystromPosterior
from bochner.gp.weights import FeaturePosterior
from bochner.gram import BlockFeatures, PrecisionError
from bochner.kernels import Gaussian
from tests.gp.problems import problem, sums_of

A, S = 1.7, 0.3
SCALES = {"outputscale": A, "noise": S}


def nystrom(p, centres, **scales):
    landmarks = Landmarks(p.feature_map.kernel, centres)
    columns = np.concatenate([landmarks(p.x), p.phi], axis=1)
    return NystromPosterior(landmarks, p.feature_map, sums_of(columns, p.y), **(scales or SCALES))


def features(p, **scales):
    weights = WeightPosterior(sums_of(p.phi, p.y), **(scales or SCALES))
    return FeaturePosterior(p.feature_map, weights)


def everything(p):
    return [ExactPosterior(p.feature_map, p.x, p.y, **SCALES), nystrom(p, p.x[:20]), features(p)]


def new_points(p, count=9):
    return p.x[:count] + 0.4


@pytest.mark.parametrize("k", [1, 2])
def test_exact_is_that_of_scikit_learn(k):
    p = problem(k=k)
    ours = ExactPosterior(p.feature_map, p.x, p.y, **SCALES)
    theirs = GaussianProcessRegressor(
        ConstantKernel(A, "fixed") * RBF(1.0, "fixed"), alpha=S, optimizer=None
    ).fit(p.x.numpy(), p.y)
    z = new_points(p)
    mean, covariance = theirs.predict(z.numpy(), return_cov=True)
    covariance = covariance if k == 1 else covariance[..., 0]
    assert np.allclose(ours.mean(z), mean.reshape(-1, k), atol=1e-10)
    assert np.allclose(ours.covariance(z), covariance, atol=1e-10)
    assert np.allclose(ours.variance(z), np.diag(covariance), atol=1e-10)
    # scikit-learn sums the evidence over outputs
    assert ours.log_evidence == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-11)


def test_exact_is_that_of_gpytorch():
    gpytorch = pytest.importorskip("gpytorch")
    p = problem()
    y = torch.from_numpy(p.y[:, 0])

    class Model(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__(p.x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    model = Model().double().eval()
    model.covar_module.outputscale, model.covar_module.base_kernel.lengthscale = A, 1.0
    model.likelihood.noise = S
    z = new_points(p)
    with torch.no_grad():
        theirs = model(z)
    ours = ExactPosterior(p.feature_map, p.x, p.y, **SCALES)
    assert np.allclose(ours.mean(z)[:, 0], theirs.mean.numpy(), atol=1e-8)
    assert np.allclose(ours.covariance(z), theirs.covariance_matrix.numpy(), atol=1e-8)


def test_exact_dof():
    p = problem()
    covariance = A * Gaussian()(p.x, p.x).numpy()
    smoother = np.linalg.solve(covariance + S * np.eye(len(covariance)), covariance)
    dof = ExactPosterior(p.feature_map, p.x, p.y, **SCALES).effective_dof
    assert dof == pytest.approx(np.trace(smoother), rel=1e-10)


def test_landmarks_at_all_rows_are_exact():
    p = problem(k=2)
    exact, through = ExactPosterior(p.feature_map, p.x, p.y, **SCALES), nystrom(p, p.x)
    z = new_points(p)
    assert np.allclose(through.mean(z), exact.mean(z), atol=1e-7)
    assert np.allclose(through.variance(z), exact.variance(z), atol=1e-7)
    assert np.allclose(through.covariance(z), exact.covariance(z), atol=1e-7)


def test_few_landmarks_are_the_dense_formulas():
    p = problem()
    centres, z = p.x[:8], new_points(p)
    through = nystrom(p, centres)
    kernel = {
        (i, j): A * Gaussian()(a, b).numpy()
        for i, a in (("z", centres), ("x", p.x), ("*", z))
        for j, b in (("z", centres), ("x", p.x), ("*", z))
    }
    inner = kernel["z", "x"] @ kernel["x", "z"] + S * kernel["z", "z"]
    mean = kernel["*", "z"] @ np.linalg.solve(inner, kernel["z", "x"] @ p.y)
    explained = kernel["*", "z"] @ np.linalg.solve(kernel["z", "z"], kernel["z", "*"])
    left = S * kernel["*", "z"] @ np.linalg.solve(inner, kernel["z", "*"])
    covariance = kernel["*", "*"] - explained + left
    assert np.allclose(through.mean(z), mean, atol=1e-9)
    assert np.allclose(through.covariance(z), covariance, atol=1e-9)
    assert np.allclose(through.variance(z), np.diag(covariance), atol=1e-9)


def test_repeated_landmarks_are_dropped_and_change_nothing():
    p = problem()
    once, twice = nystrom(p, p.x[:8]), nystrom(p, p.x[:8].repeat(3, 1))
    assert twice.landmarks.num_features == 8
    z = new_points(p)
    assert np.allclose(once.mean(z), twice.mean(z), atol=1e-8)
    assert np.allclose(once.variance(z), twice.variance(z), atol=1e-8)
    values = torch.linalg.eigvalsh(Gaussian()(p.x[:8], p.x[:8]))
    assert values[0] > 100 * RELATIVE_CUTOFF * values[-1]  # none of the eight is dropped


def test_joint_columns_are_landmarks_then_features():
    p = problem()
    inverse, offset = np.array([0.5, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    rows = BlockFeatures(
        p.feature_map, inverse_lengthscales=inverse, offset=offset, dtype=np.float64
    )
    scaled = (p.x - torch.from_numpy(offset)) * torch.from_numpy(inverse)
    landmarks = Landmarks(p.feature_map.kernel, scaled[:5])
    joint = JointFeatures(landmarks, rows)
    expected = np.concatenate(
        [landmarks(scaled), p.feature_map.query(scaled).materialise().numpy()], axis=1
    )
    assert np.allclose(joint(p.x.numpy()), expected, atol=1e-12)
    assert joint.num_features == expected.shape[1]
    single = joint.with_dtype(np.float32)(p.x.numpy())
    assert single.dtype == np.float32
    assert np.allclose(single, expected, atol=1e-6)


def test_sums_of_other_columns_are_refused():
    p = problem()
    landmarks = Landmarks(p.feature_map.kernel, p.x[:5])
    with pytest.raises(ValueError, match="24 columns; expected 5 of the landmarks and 24"):
        NystromPosterior(landmarks, p.feature_map, sums_of(p.phi, p.y), **SCALES)


def test_no_noise_and_repeated_rows_are_refused():
    p = problem()
    with pytest.raises(PrecisionError, match="too small for 60 rows"):
        ExactPosterior(p.feature_map, p.x[:1].repeat(60, 1), p.y, outputscale=1.0, noise=1e-18)


# -- starvation ---------------------------------------------------------------------------------------
def line(m, n=1500, noise=0.01):
    """n rows on [-3, 3] with lengthscale 1/2, and three points: inside, just outside, far away."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(n, 1, generator=g, dtype=torch.float64) * 12 - 6  # in lengthscales
    y = torch.sin(x).numpy()
    phi = bochner.make(
        "trigonometric", dim=1, num_features=m, kernel="gaussian", generator=g, dtype=torch.float64
    )
    p = problem(n=2, d=1)._replace(
        x=x, y=y, feature_map=phi, phi=phi.query(x).materialise().numpy()
    )
    return p, torch.tensor([[0.0], [7.0], [12.0]], dtype=torch.float64), noise


def test_landmarks_know_what_they_do_not_know_and_features_do_not():
    p, z, noise = line(64)
    scales = {"outputscale": 1.0, "noise": noise}
    exact = np.sqrt(ExactPosterior(p.feature_map, p.x, p.y, **scales).variance(z))
    through = np.sqrt(nystrom(p, p.x[:150], **scales).variance(z))
    alone = np.sqrt(features(p, **scales).variance(z))
    assert np.allclose(through, exact, rtol=0.05)
    assert exact[1] > 0.2
    assert exact[2] > 0.999
    assert alone[1] < 0.8 * exact[1]  # starved just outside the data


def test_dof_says_when_features_starve():
    for m, starves in ((16, True), (512, False)):
        p, _, noise = line(m)
        weights = features(p, outputscale=1.0, noise=noise).weights
        assert (weights.effective_dof > m / 2) == starves


# -- calibration --------------------------------------------------------------------------------------
def test_standardised_errors_are_standard_normal_where_the_model_is_right():
    """2,000 independent problems, one new observation each; false alarms 1e-6 (|z| < 4.9)."""
    problems, errors = 2000, {"exact": [], "nystrom": []}
    g = torch.Generator().manual_seed(11)
    for _ in range(problems):
        x = 2 * torch.rand(13, 1, generator=g, dtype=torch.float64)
        covariance = A * Gaussian()(x, x) + S * torch.eye(13, dtype=torch.float64)
        drawn = torch.linalg.cholesky(covariance) @ torch.randn(
            13, 1, generator=g, dtype=torch.float64
        )
        p = problem(n=2, d=1, m=2)._replace(x=x[:12], y=drawn[:12].numpy(), phi=np.zeros((12, 2)))
        for posterior in (
            ExactPosterior(p.feature_map, p.x, p.y, **SCALES),
            nystrom(p, x[:12:2]),
        ):
            z = x[12:]
            std = np.sqrt(posterior.variance(z) + S)
            errors[posterior.name].append(
                (drawn[12].item() - posterior.mean(z).item()) / std.item()
            )
    for found in errors.values():
        e = np.array(found)
        assert abs(e.mean()) * problems**0.5 < 4.9
        assert abs(np.square(e).mean() - 1) * (problems / 2) ** 0.5 < 4.9
        assert abs((np.abs(e) < 1.96).mean() - 0.95) < 4.9 * (0.95 * 0.05 / problems) ** 0.5
