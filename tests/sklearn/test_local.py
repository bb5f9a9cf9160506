"""Gaussian processes by local features: the exact process, choices, and their limits."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from bochner.sklearn import LocalGaussianProcess

GAMMA, NOISE = 2.0, 0.01  # a lengthscale of 1/2


@pytest.fixture(scope="module")
def field():
    """A draw of the process on a square of 6 lengthscales."""
    random = np.random.default_rng(0)
    X = random.uniform(0, 3, (500, 2))
    exact = GaussianProcessRegressor(RBF(0.5), alpha=NOISE, optimizer=None)
    f = exact.sample_y(X, random_state=1)[:, 0]
    y = f + NOISE**0.5 * random.normal(size=500)
    return X[:400], y[:400], X[400:], f[400:]


def test_close_to_the_exact_process(field):
    X, y, X_test, f_test = field
    exact = GaussianProcessRegressor(RBF(0.5), alpha=NOISE, optimizer=None)
    exact.fit(X, y - y.mean())
    mean, std = exact.predict(X_test, return_std=True)
    local = LocalGaussianProcess(n_components=200, gamma=GAMMA, alpha=NOISE, random_state=0)
    found, found_std = local.fit(X, y).predict(X_test, return_std=True)
    error, truth = (np.sqrt(np.mean((m - f_test) ** 2)) for m in (found, mean + y.mean()))
    assert error < 1.05 * truth
    ratio = found_std / local.outputscale_**0.5 / std
    assert np.quantile(ratio, [0.05, 0.5, 0.95]).tolist() == pytest.approx([1, 1, 1], abs=0.03)
    assert local.outputscale_ == pytest.approx(1.0, rel=0.25)
    assert 5 < len(local.centers_) < 64
    assert local.radius_ <= 1.5


def test_alpha_and_gamma_by_left_out_rows(field):
    X, y = field[0][:200], field[1][:200]
    found = {
        gamma: LocalGaussianProcess(n_components=40, gamma=gamma, random_state=0)
        .fit(X, y)
        .log_predictive_density_
        for gamma in (GAMMA / 16, GAMMA, 8 * GAMMA)
    }
    assert max(found, key=found.get) == GAMMA
    chosen = LocalGaussianProcess(n_components=40, gamma=GAMMA, random_state=0).fit(X, y)
    assert chosen.noise_ == pytest.approx(NOISE, rel=0.6)
    assert chosen.log_predictive_density_ == found[GAMMA]


def test_far_away_there_is_the_prior(field):
    X, y, _, _ = field
    local = LocalGaussianProcess(n_components=64, gamma=GAMMA, alpha=NOISE, random_state=0).fit(
        X, y
    )
    mean, std = local.predict([[50.0, -40.0]], return_std=True)
    assert mean[0] == pytest.approx(y.mean(), abs=1e-9)
    assert std[0] == pytest.approx(local.outputscale_**0.5)


def test_units_of_columns_do_not_matter(field):
    X, y, X_test, _ = field
    local = LocalGaussianProcess(n_components=40, gamma=GAMMA, alpha=NOISE, random_state=0)
    expected = local.fit(X, y).predict(X_test)
    factors = np.array([1e3, 1e-2])
    moved = clone(local).set_params(gamma=GAMMA / factors**2)
    found = moved.fit(X * factors + 7.0, y).predict(X_test * factors + 7.0)
    assert np.allclose(found, expected, atol=1e-6)
    assert np.allclose(moved.centers_, local.centers_ * factors + 7.0)


def test_too_few_centres_are_told(field):
    X, y, _, _ = field
    with pytest.warns(ConvergenceWarning, match=r"max_centers=2 centres leave rows .* away"):
        local = LocalGaussianProcess(n_components=16, gamma=GAMMA, max_centers=2).fit(X, y)
    assert local.radius_ > 1.5
    assert len(local.centers_) == 2


def test_constant_targets():
    X = np.random.default_rng(0).normal(size=(30, 2))
    mean, std = (
        LocalGaussianProcess(n_components=10).fit(X, np.full(30, 3.0)).predict(X, return_std=True)
    )
    assert np.allclose(mean, 3.0)
    assert np.allclose(std, 0.0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "n_components=0 must be an integer of at least 1"),
        ({"max_centers": 1.5}, "max_centers=1.5 must be an integer"),
        ({"radius": 0.0}, "radius=0.0 must be a positive number"),
        ({"alpha": -1.0}, "alpha=-1.0 must be 'loo' or a positive number"),
        ({"alpha": "gcv"}, "alpha='gcv' must be 'loo'"),
        ({"gamma": "wide"}, "gamma='wide'"),
    ],
)
def test_parameters_that_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        LocalGaussianProcess(**parameters).fit(np.eye(4), np.arange(4.0))


def test_text_is_no_target():
    X = np.arange(6.0)[:, None]
    with pytest.raises(ValueError, match=r"could not convert string to float"):
        LocalGaussianProcess().fit(X, list("ababab"))
