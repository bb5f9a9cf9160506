"""`KernelWhitening`, `decorrelation_weights` and `rf_hsic` against dense algebra."""

import numpy as np
import pytest
import torch

from bochner.sklearn import KernelWhitening, RandomFeatures, decorrelation_weights, rf_hsic


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3000, 3)) * [5.0, 1.0, 0.2] + 7.0


@pytest.mark.parametrize("features", ["trigonometric", "nystroem"])
def test_whitened_features_are_isotropic(features, rows) -> None:
    model = KernelWhitening(features=features, n_components=12, shrinkage=0.0, random_state=0)
    Z = model.fit_transform(rows)
    assert np.abs(Z.mean(axis=0)).max() < 1e-9
    assert np.allclose(np.cov(Z.T, bias=True), np.eye(12), atol=1e-6)
    fresh = np.random.default_rng(1).standard_normal((3000, 3)) * [5.0, 1.0, 0.2] + 7.0
    assert np.abs(np.cov(model.transform(fresh).T) - np.eye(12)).max() < 0.5


def test_the_symmetric_root_and_shrinkage(rows) -> None:
    plain = RandomFeatures(n_components=16, random_state=0).fit_transform(rows)
    for shrinkage in (0.0, 0.3):
        model = KernelWhitening(n_components=16, shrinkage=shrinkage, random_state=0).fit(rows)
        C = np.cov(plain.T, bias=True)
        C = (1 - shrinkage) * C + shrinkage * np.trace(C) / 16 * np.eye(16)
        assert np.allclose(model.whitening_ @ C @ model.whitening_, np.eye(16), atol=1e-8)
        assert np.allclose(model.whitening_, model.whitening_.T)
        expected = (plain - plain.mean(axis=0)) @ model.whitening_
        assert np.allclose(model.transform(rows), expected, atol=1e-8)


def test_leading_components(rows) -> None:
    model = KernelWhitening(n_components=32, rank=5, shrinkage=0.0, random_state=0)
    Z = model.fit_transform(rows)
    assert Z.shape == (3000, 5)
    assert len(model.get_feature_names_out()) == 5
    assert np.allclose(np.cov(Z.T, bias=True), np.eye(5), atol=1e-8)
    plain = RandomFeatures(n_components=32, random_state=0).fit_transform(rows)
    plain -= plain.mean(axis=0)
    _, _, directions = np.linalg.svd(plain, full_matrices=False)
    scores = plain @ directions[:5].T
    correlation = np.abs(np.corrcoef(Z.T, scores.T)[:5, 5:])
    assert np.allclose(correlation, np.eye(5), atol=1e-6)
    with pytest.raises(ValueError, match="rank=33 exceeds the 32 features"):
        KernelWhitening(n_components=32, rank=33).fit(rows)


def test_partial_fit_weights_and_dtypes(rows) -> None:
    whole = KernelWhitening(n_components=32, gamma=0.1, random_state=0).fit(rows)
    parts = KernelWhitening(n_components=32, gamma=0.1, random_state=0)
    for part in np.array_split(rows, 3):
        parts.partial_fit(part)
    assert parts.statistics_.num_rows == 3000
    # features of parts are centred at the first part's mean: the same kernel, other phases
    gram = [m.transform(rows[:40]) @ m.transform(rows[:40]).T for m in (whole, parts)]
    assert np.allclose(*gram, rtol=1e-6, atol=1e-6)

    twice = np.concatenate([rows, rows[:100]])
    weight = np.ones(3000)
    weight[:100] = 2.0
    a = KernelWhitening(n_components=16, gamma=0.1, random_state=0).fit(twice)
    b = KernelWhitening(n_components=16, gamma=0.1, random_state=0).fit(rows, sample_weight=weight)
    assert np.allclose(a.covariance_, b.covariance_, atol=1e-10)

    single = KernelWhitening(n_components=32, random_state=0).fit(rows.astype(np.float32))
    Z = single.transform(rows.astype(np.float32))
    assert Z.dtype == np.float32
    double = KernelWhitening(n_components=32, random_state=0).fit_transform(rows)
    assert np.allclose(Z, double, atol=2e-2)


def test_a_piece_of_one_row_is_added() -> None:
    X = np.random.default_rng(0).standard_normal((101, 3))
    pieces = KernelWhitening(n_components=8, gamma=0.5, random_state=0)
    pieces.partial_fit(X[:100]).partial_fit(X[100:])
    assert pieces.statistics_.num_rows == 101


def test_a_singular_covariance_is_said() -> None:
    X = np.random.default_rng(0).standard_normal((20, 2))
    with pytest.raises(ValueError, match="19 directions above rounding, 64 are to be whitened"):
        KernelWhitening(n_components=64, shrinkage=0.0, random_state=0).fit(X)
    assert KernelWhitening(n_components=64, random_state=0).fit_transform(X).shape == (20, 64)
    for change, message in (
        ({"shrinkage": 1.5}, "shrinkage=1.5 must be in"),
        ({"rank": 0}, "rank=0 must be None or an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            KernelWhitening(**change).fit(X)


def test_decorrelation_weights_lower_the_loss() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((800, 1))
    X = 0.7 * shared + rng.standard_normal((800, 4))
    X[:, 3] *= -100.0

    def correlations(weight: np.ndarray) -> float:
        R = np.cov(X.T, aweights=weight, bias=True) / np.outer(X.std(axis=0), X.std(axis=0))
        return float(np.abs(R - np.diag(np.diag(R))).max())

    equal = np.ones(800)
    effective = []
    for penalty in (1e-5, 1e-3, 1.0):
        weight = decorrelation_weights(X, penalty=penalty)
        assert weight.mean() == pytest.approx(1.0)
        assert weight.min() >= 0
        effective.append(800 / np.mean(weight**2))
        assert correlations(weight) < correlations(equal)
    assert effective == sorted(effective)
    assert correlations(decorrelation_weights(X, penalty=1e-5)) < 0.1 * correlations(equal)
    assert effective[2] > 780
    assert np.array_equal(weight, decorrelation_weights(torch.from_numpy(X), penalty=1.0))


def test_decorrelation_weights_are_at_a_minimum() -> None:
    X = np.random.default_rng(0).standard_normal((60, 3)) @ np.array(
        [[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
    )
    found = decorrelation_weights(X, steps=300)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)

    def loss(weight: np.ndarray) -> float:
        p = weight / weight.sum()
        C = (Z.T * p) @ Z - np.outer(p @ Z, p @ Z)
        return float(
            (np.square(C).sum() - np.square(np.diag(C)).sum()) / 6 + 0.01 * 60 * np.square(p).sum()
        )

    rng = np.random.default_rng(1)
    for _ in range(20):
        assert loss(found) <= loss(found * np.exp(0.05 * rng.standard_normal(60)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((5, 1)), "with m of at least 2"),
        (np.ones((5, 2)), r"columns \[0, 1\] of features are constant"),
        (np.full((5, 2), np.nan), "NaN or infinite"),
    ],
)
def test_features_that_are_refused(bad, message) -> None:
    with pytest.raises(ValueError, match=message):
        decorrelation_weights(bad)
    with pytest.raises(ValueError, match="penalty=0"):
        decorrelation_weights(np.eye(3), penalty=0)


def test_rf_hsic_by_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    F, G = rng.standard_normal((30, 3)), rng.standard_normal((30, 2))
    K, L = F @ F.T, G @ G.T
    H = np.eye(30) - 1 / 30
    assert rf_hsic(F, G) == pytest.approx(np.trace(K @ H @ L @ H) / 30**2)
    weight = rng.integers(0, 3, 30).astype(float)
    again = np.repeat(np.arange(30), weight.astype(int))
    assert rf_hsic(F, G, weight) == pytest.approx(rf_hsic(F[again], G[again]))
    with pytest.raises(ValueError, match="of the same rows"):
        rf_hsic(F, G[:5])
