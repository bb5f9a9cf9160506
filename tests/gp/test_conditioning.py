"""From rows to posteriors: one pass, in a precision that evidence and degrees of freedom bear."""

import numpy as np
import pytest
import torch

import bochner
from bochner.gp import conditioning
from bochner.gp.evidence import WeightPosterior
from bochner.gram import BlockFeatures, Precision
from tests.gp.problems import sums_of


def smooth(n=3000, m=512, seed=0, inverse=0.3):
    """A smooth function of ten columns: the data leave most of 512 features open."""
    random = np.random.default_rng(seed)
    X = random.uniform(-1, 1, size=(n, 10))
    y = (X[:, :1] ** 2 + X[:, 1:2]) * 10
    phi = bochner.make(
        "trigonometric", dim=10, num_features=m, kernel="gaussian",
        generator=torch.Generator().manual_seed(seed), dtype=torch.float64,
    )  # fmt: skip
    return BlockFeatures(phi, inverse_lengthscales=inverse), X, y - y.mean()


def test_float32_products_do_not_reach_dof_and_evidence():
    """noise / outputscale = 3e-8 n: float32 would do for ridge regression, not here (dof off by 7)."""
    features, X, y = smooth(inverse=0.05)
    scales = {"outputscale": 11_000.0, "noise": 1.0}
    found = conditioning.on_features(features, X, y, **scales)
    phi = features.with_dtype(np.float64)(X)
    direct = WeightPosterior(sums_of(phi, y), **scales)
    assert found.effective_dof == pytest.approx(direct.effective_dof, abs=0.1)
    assert found.log_evidence == pytest.approx(direct.log_evidence, abs=0.1)


def test_float32_is_taken_where_it_is_enough():
    features, X, y = smooth(inverse=0.05)
    scales = {"outputscale": 33.0, "noise": 1.0}
    found = conditioning.on_features(features, X, y, **scales)
    assert found.weights.sums.precision is Precision.SINGLE
    phi = features.with_dtype(np.float64)(X)
    direct = WeightPosterior(sums_of(phi, y), **scales)
    assert found.effective_dof == pytest.approx(direct.effective_dof, abs=0.1)
    assert found.log_evidence == pytest.approx(direct.log_evidence, abs=0.1)


def test_landmarks_at_all_rows_are_exact():
    features, X, y = smooth(n=300, m=64)
    scales = {"outputscale": 30.0, "noise": 1.0}
    exact = conditioning.exact(features, X, y, **scales)
    centres = conditioning.scaled(features, X)
    landmarks = conditioning.on_landmarks(features, centres, X, y, **scales)
    z = conditioning.scaled(features, X[:5] + 0.05)
    assert np.allclose(landmarks.mean(z), exact.mean(z), atol=1e-3)
    assert np.allclose(landmarks.variance(z), exact.variance(z), rtol=1e-3)
    assert landmarks.log_evidence == pytest.approx(exact.log_evidence, rel=1e-3)
    assert landmarks.effective_dof == pytest.approx(exact.effective_dof, rel=1e-3)


def test_scaled_rows_are_float64():
    features, X, _ = smooth(n=4, m=2)
    z = conditioning.scaled(features, X.astype(np.float32))
    assert z.dtype == torch.float64
    assert np.allclose(z.numpy(), 0.3 * X, atol=1e-6)
