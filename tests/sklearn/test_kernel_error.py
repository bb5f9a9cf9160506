"""Errors with their intervals: coverage of the truth, theory beside measurements, and how many features."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics.pairwise import rbf_kernel

import bochner
from bochner.sklearn import RandomFeatures
from bochner.sklearn.kernel_error import kernel_error


def normal(rows: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim))


def true_errors(sampler: RandomFeatures, X: np.ndarray, gamma: float) -> tuple[float, float]:
    """RMSE over pairs of two rows, and relative to the kernel."""
    Z, kernel = sampler.transform(X), rbf_kernel(X, gamma=gamma)
    others = ~np.eye(len(X), dtype=bool)
    square = np.mean((Z @ Z.T - kernel)[others] ** 2)
    return float(np.sqrt(square)), float(np.sqrt(square / np.mean(kernel[others] ** 2)))


def test_the_estimate_is_that_of_all_pairs() -> None:
    X = normal(2000)
    sampler = RandomFeatures(n_components=64, gamma=0.3, random_state=0).fit(X)
    error = sampler.error_estimate(X)
    rmse, relative = true_errors(sampler, X, 0.3)
    assert error.num_rows == 2000
    assert error.rmse.value == pytest.approx(rmse, rel=0.05)
    assert error.relative.value == pytest.approx(relative, rel=0.05)
    assert "over draws" in str(error)


def test_pairs_are_of_two_rows() -> None:
    """Of four rows: two groups of one pair each, in one of three ways; nothing of the diagonal."""
    X = normal(4)
    sampler = RandomFeatures(n_components=4, gamma=0.3, features="positive", random_state=0).fit(X)
    Z, kernel = sampler.transform(X), rbf_kernel(X, gamma=0.3)
    squares = (Z @ Z.T - kernel) ** 2
    ways = [squares[0, a] + squares[b, c] for a, b, c in ((1, 2, 3), (2, 1, 3), (3, 1, 2))]
    found = 2 * sampler.error_estimate(X).rmse.value ** 2
    assert min(abs(found - way) for way in ways) < 1e-12


def test_intervals_cover_the_error_of_the_population() -> None:
    """Nominal 95 %; 300 samples of rows must not speak against 92 % (false alarm 1e-6)."""
    sampler = RandomFeatures(n_components=64, gamma=0.3, random_state=0).fit(normal(10))
    rmse, relative = true_errors(sampler, normal(4000, seed=1), 0.3)
    hits, rng = np.zeros(2), np.random.default_rng(2)
    for seed in range(300):
        error = kernel_error(sampler.features_, normal(300, seed=100 + seed), rng)
        hits += [error.rmse.low < rmse < error.rmse.high]
        hits[1] += error.relative.low < relative < error.relative.high
        hits[1] -= error.rmse.low < rmse < error.rmse.high
    law = scipy.stats.binom(300, 0.92)
    assert hits.min() >= law.ppf(1e-6)
    assert hits.max() < 300  # intervals that always hit are too wide


def test_theory_is_the_mean_square_over_draws() -> None:
    X, squares = normal(200), []
    for seed in range(60):
        sampler = RandomFeatures(n_components=32, gamma=0.3, random_state=seed).fit(X)
        error = kernel_error(sampler.features_, X, np.random.default_rng(0))
        squares.append(error.rmse.value**2)
    assert error.expected_rmse is not None
    stderr = np.std(squares, ddof=1) / np.sqrt(60)
    assert abs(np.mean(squares) - error.expected_rmse**2) < scipy.stats.t.isf(5e-7, 59) * stderr


def test_no_theory_no_number() -> None:
    X = normal(100)
    error = RandomFeatures(projection="sobol", random_state=0).fit(X).error_estimate(X)
    assert error.expected_rmse is None
    assert "over draws" not in str(error)


def test_few_rows() -> None:
    X = normal(4)
    sampler = RandomFeatures(random_state=0).fit(X)
    assert sampler.error_estimate(X).rmse.redraws == 2
    with pytest.raises(ValueError, match="X has 3 rows; an error with an interval wants 4"):
        sampler.error_estimate(X[:3])


@pytest.mark.parametrize("projection", ["iid", "orthogonal"])
def test_the_suggested_number_is_the_smallest(projection: str) -> None:
    X = normal(400)
    sampler = RandomFeatures(projection=projection, gamma=0.3, random_state=0)
    before = sampler.get_params()
    found = sampler.suggest_num_features(X, 0.03)
    assert sampler.get_params() == before
    assert not hasattr(sampler, "features_")
    assert found.closed_form
    errors = []
    for count in (found.num_features, round(0.9 * found.num_features)):
        fitted = RandomFeatures(n_components=count, projection=projection, gamma=0.3).fit(X)
        errors.append(fitted.error_estimate(X).expected_rmse)
    assert errors[0] <= 0.03 * 1.01 < errors[1]  # other pairs of rows: 1 % apart
    assert found.rmse.low < 0.03 * 1.2
    assert found.rmse.high > 0.03 * 0.8
    assert found.rmse.redraws == 8


def test_the_suggested_number_without_theory() -> None:
    X = normal(300)
    sampler = RandomFeatures(projection="sobol", gamma=0.3, random_state=0)
    found = sampler.suggest_num_features(X, 0.03)
    iid = RandomFeatures(projection="iid", gamma=0.3, random_state=0).suggest_num_features(X, 0.03)
    assert not found.closed_form
    assert "measured" in str(found)
    assert found.num_features < 0.7 * iid.num_features
    assert found.rmse.value < 0.036


def test_a_map_fitted_to_data_is_fitted_for_every_number() -> None:
    X = normal(300, dim=2)
    sampler = RandomFeatures(features="nystroem", gamma=0.3, random_state=0)
    found = sampler.suggest_num_features(X, 1e-3, max_features=300)
    assert found.rmse.redraws == 0
    assert found.rmse.value <= 1e-3
    assert "over no draws" in str(found)


def test_a_tolerance_out_of_reach() -> None:
    X, sampler = normal(50), RandomFeatures(random_state=0)
    with pytest.raises(ValueError, match=r"tol=0.001 is not reached by 512 features \(kernel RMSE"):
        sampler.suggest_num_features(X, 1e-3, max_features=512)
    with pytest.raises(ValueError, match="tol=0 must be a positive number"):
        sampler.suggest_num_features(X, 0)
    phi = bochner.make("trigonometric", dim=3, num_features=6, kernel="gaussian")
    with pytest.raises(ValueError, match="whose number of features is fixed"):
        RandomFeatures(features=phi).suggest_num_features(X, 0.1)
