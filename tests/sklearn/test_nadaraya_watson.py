"""Local averages: the formula, the range of the targets, and denominators that vanish."""

import warnings

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from bochner.sklearn import NadarayaWatson, RandomFeatures, VanishingDenominatorWarning


def data(rows: int = 300, dim: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, dim))
    return X, np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(rows)


@pytest.mark.parametrize("features", ["positive", "gerf", "trigonometric"])
def test_the_formula_with_the_kernel_of_the_features(features: str) -> None:
    X, y = data()
    new = 0.5 * data(40, seed=1)[0]
    parameters = {"features": features, "n_components": 64, "gamma": 0.5, "random_state": 0}
    model = NadarayaWatson(**parameters).fit(X, y)
    phi = RandomFeatures(**parameters).fit(X)
    weights = phi.transform(new) @ phi.transform(X).T
    assert (weights.sum(axis=1) > 0).all()
    np.testing.assert_allclose(model.predict(new), weights @ y / weights.sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(model.support(new), weights.mean(axis=1), rtol=1e-9)


def test_close_to_exact_local_averages() -> None:
    X, y = data(2000)
    new = 0.5 * data(100, seed=1)[0]
    weights = rbf_kernel(new, X, gamma=2.0)
    exact = weights @ y / weights.sum(axis=1)
    model = NadarayaWatson(gamma=2.0, n_components=8192, random_state=0).fit(X, y)
    assert np.sqrt(np.mean((model.predict(new) - exact) ** 2)) < 0.1 * exact.std()


@pytest.mark.parametrize("features", ["positive", "gerf"])
def test_positive_features_stay_between_the_targets(features: str) -> None:
    X, y = data()
    model = NadarayaWatson(features=features, n_components=32, gamma=1.0, random_state=0).fit(X, y)
    far = np.concatenate([scale * data(200, seed=1)[0] for scale in (1.0, 3.0, 10.0, 100.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the scale of a row cancels: it cannot underflow
        predicted = model.predict(far)
    assert predicted.min() >= y.min() - 1e-12
    assert predicted.max() <= y.max() + 1e-12


def test_signed_features_report_denominators_that_are_not_positive() -> None:
    X, y = data()
    model = NadarayaWatson(features="trigonometric", n_components=64, gamma=1.0, random_state=0)
    model.fit(X, y)
    far = 3 * data(200, seed=1)[0]
    lost = int((model.support(far) <= 0).sum())
    assert 0 < lost < 200
    with pytest.warns(VanishingDenominatorWarning, match=f"{lost} of 200 rows .* signed"):
        predicted = model.predict(far)
    assert np.isnan(predicted).sum() == lost
    np.testing.assert_array_equal(np.isnan(predicted), model.support(far) <= 0)


def test_several_targets_weights_and_pieces() -> None:
    X, y = data()
    Y = np.column_stack([y, -2 * y, np.ones_like(y)])
    parameters = {"features": "positive", "n_components": 32, "gamma": 0.5, "random_state": 0}
    one = NadarayaWatson(**parameters).fit(X, y).predict(X)
    np.testing.assert_allclose(
        NadarayaWatson(**parameters).fit(X, Y).predict(X),
        np.column_stack([one, -2 * one, np.ones_like(y)]),
        atol=1e-12,
    )
    pieces = NadarayaWatson(**parameters)
    for part in (slice(0, 100), slice(100, 130), slice(130, 300)):
        pieces.partial_fit(X[part], y[part], sample_weight=np.full(len(X[part]), 2.0))
    phi = pieces.features_(X)
    weights = pieces.features_(X) @ phi.T
    np.testing.assert_allclose(pieces.predict(X), weights @ y / weights.sum(axis=1), rtol=1e-9)
    with pytest.raises(ValueError, match="y has 3 targets; the first call had 1"):
        pieces.partial_fit(X, Y)


def test_single_precision() -> None:
    X, y = data()
    parameters = {"n_components": 64, "gamma": 0.5, "random_state": 0}
    double = NadarayaWatson(**parameters).fit(X, y).predict(X)
    single = NadarayaWatson(**parameters).fit(X.astype(np.float32), y).predict(X.astype(np.float32))
    np.testing.assert_allclose(single, double, atol=1e-4)
