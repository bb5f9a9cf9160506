"""The estimator: what it finds, what it predicts, when it warns, and that rows only need one pass."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel

from bochner.gp.exact import ExactPosterior
from bochner.sklearn import GaussianProcess
from bochner.sklearn import gaussian_process as module

FIXED = {"hyperparameters": "fixed", "outputscale": 1.5, "noise": 0.2, "gamma": 0.5}


def wave(n=300, d=2, seed=0, noise=0.1):
    random = np.random.default_rng(seed)
    X = random.uniform(-3, 3, size=(n, d))
    return X, 5 + np.sin(2 * X[:, 0]) + noise * random.normal(size=n)


def gp(**parameters):
    return GaussianProcess(**({"n_components": 128, "random_state": 0} | parameters))


@pytest.mark.parametrize("posterior", ["exact", "nystrom"])
def test_fixed_hyperparameters_give_scikit_learns_process(posterior):
    X, y = wave(n=80)
    ours = gp(posterior=posterior, n_landmarks=80, **FIXED).fit(X, y)
    theirs = GaussianProcessRegressor(
        ConstantKernel(1.5, "fixed") * RBF(1.0, "fixed"), alpha=0.2, optimizer=None
    ).fit(X, y - y.mean())
    new, _ = wave(n=20, seed=1)
    mean, std = theirs.predict(new, return_std=True)
    found, found_std = ours.predict(new, return_std=True)
    tolerance = 1e-8 if posterior == "exact" else 2e-4  # features of landmarks in float32
    assert np.allclose(found, mean + y.mean(), atol=tolerance)
    assert np.allclose(found_std, std, atol=tolerance)
    covariance = ours.predict(new, return_cov=True)[1]
    assert np.allclose(covariance, theirs.predict(new, return_cov=True)[1], atol=tolerance)
    if posterior == "exact":
        assert ours.log_marginal_likelihood_value_ == pytest.approx(
            theirs.log_marginal_likelihood_value_
        )


def test_kernels_of_scikit_learn_bring_their_lengthscales():
    X, y = wave(n=80)
    parameters = {name: value for name, value in FIXED.items() if name != "gamma"}
    kernel = Matern(length_scale=[0.7, 2.0], nu=1.5)
    ours = gp(kernel=kernel, **parameters).fit(X, y)
    assert np.allclose(ours.lengthscales_, [0.7, 2.0])
    theirs = GaussianProcessRegressor(ConstantKernel(1.5) * kernel, alpha=0.2, optimizer=None)
    theirs.fit(X, y - y.mean())
    assert np.allclose(ours.predict(X), theirs.predict(X) + y.mean(), atol=1e-8)


def drawn(n, seed=0, lengthscales=(1.0, 1.0), noise=0.3):
    """A draw of the Gaussian process by 2,000 random waves, with noise."""
    random = np.random.default_rng(seed)
    X = random.uniform(-3, 3, size=(n, 2))
    frequencies = random.normal(size=(2, 2000)) / np.array(lengthscales)[:, None]
    waves = np.cos(X @ frequencies + random.uniform(0, 2 * np.pi, 2000)) * 1000**-0.5
    return X, waves @ random.normal(size=2000) + noise * random.normal(size=n)


def test_the_search_agrees_with_scikit_learns_on_the_exact_evidence():
    X, y = drawn(300, lengthscales=(0.8, 4.0))
    ours = gp(n_components=512).fit(X, y)
    theirs = GaussianProcessRegressor(ConstantKernel(1.0) * RBF([1.0, 1.0]) + WhiteKernel(0.1))
    theirs.fit(X, y - y.mean())
    assert ours.noise_ == pytest.approx(theirs.kernel_.k2.noise_level, rel=0.1)
    assert np.allclose(ours.lengthscales_, theirs.kernel_.k1.k2.length_scale, rtol=0.2)
    found = ours.log_marginal_likelihood_value_
    assert theirs.log_marginal_likelihood_value_ - 3 < found
    assert found < theirs.log_marginal_likelihood_value_ + 1e-3  # theirs is the maximum
    assert ours.optimizer_rows_ == 300
    assert abs(ours.evidence_gap_) < 0.05


def test_the_first_step_stays_near_the_start():
    """The gradient at the start is of order 1,000: a step of that size ends at a lengthscale of 1/100."""
    X, y = wave()
    for seed in range(3):
        found = gp(n_components=512, random_state=seed).fit(X, y)
        assert 0.5 < found.lengthscales_[0] < 2
        assert found.lengthscales_[1] > 100  # y does not depend on column 1, which is no warning
        assert found.noise_ == pytest.approx(0.0085, rel=0.05)


def test_fitted_frequencies_are_reported():
    X, y = drawn(300, noise=0.05)
    with pytest.warns(UserWarning, match="fitted their random frequencies"):
        found = gp(n_components=128).fit(X, y)
    assert found.evidence_gap_ > 0.1


def test_isotropic_keeps_the_ratios_of_lengthscales_and_fixed_everything():
    X, y = wave()
    found = gp(gamma=[0.5, 0.125], hyperparameters="isotropic").fit(X, y)
    assert found.lengthscales_[1] / found.lengthscales_[0] == pytest.approx(2.0)
    assert found.lengthscales_[0] != pytest.approx(1.0, rel=1e-3)
    kept = gp(**FIXED).fit(X, y)
    assert np.allclose(kept.lengthscales_, 1.0)
    assert (kept.outputscale_, kept.noise_, kept.optimizer_rows_) == (1.5, 0.2, 0)


def test_the_search_looks_at_a_subset_and_says_so():
    X, y = wave(n=400)
    found = gp(max_optimizer_rows=150).fit(X, y)
    assert found.optimizer_rows_ == 150
    assert len(found.posterior_.y) == 400


def test_auto_changes_from_exact_to_nystrom(monkeypatch):
    X, y = wave(n=120)
    monkeypatch.setattr(module, "EXACT_ROWS", 120)
    assert gp(**FIXED).fit(X, y).posterior_.name == "exact"
    monkeypatch.setattr(module, "EXACT_ROWS", 119)
    assert gp(n_landmarks=100, **FIXED).fit(X, y).posterior_.name == "nystrom"


@pytest.mark.parametrize("posterior", ["exact", "nystrom", "features"])
def test_intervals_cover_95_percent_where_the_model_is_right(posterior):
    """5,000 new observations around functions of the model; 93 to 97 % are covered."""
    covered = []
    for seed in range(5):
        X, y = drawn(1400, seed)
        found = gp(posterior=posterior, max_optimizer_rows=400, n_components=256)
        found.fit(X[:400], y[:400])
        low, high = found.predict_interval(X[400:]).T
        covered.append(((low < y[400:]) & (y[400:] < high)).mean())
    assert 0.93 < np.mean(covered) < 0.97


def test_deviations_at_three_distances():
    """Inside the data, just outside and far away; features alone starve, and warn."""
    random = np.random.default_rng(0)
    X = random.uniform(-3, 3, size=(1500, 1))
    y = np.sin(X[:, 0]) + 0.1 * random.normal(size=1500)
    fixed = {"hyperparameters": "fixed", "outputscale": 1.0, "noise": 0.01, "gamma": 2.0}
    new = np.array([[0.0], [3.5], [6.0]])
    exact = gp(n_components=32, posterior="exact", **fixed).fit(X, y)
    truth = exact.predict(new, return_std=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 200 landmarks on 12 lengthscales repeat, and suffice
        nystrom = gp(posterior="nystrom", n_landmarks=200, **fixed).fit(X, y)
    assert np.allclose(nystrom.predict(new, return_std=True)[1], truth, rtol=0.05)
    with pytest.warns(UserWarning, match="data determine .* of 16 weights"):
        starved = gp(n_components=16, posterior="features", **fixed).fit(X, y)
    assert starved.effective_dof_ > 8
    assert starved.predict(new, return_std=True)[1][1] < 0.7 * truth[1]
    assert truth[2] == pytest.approx(1.0, abs=1e-3)


def test_hyperparameters_of_starved_features_are_reported():
    X, y = drawn(400, noise=0.05)
    with pytest.warns(UserWarning, match="hyper-parameters come from a model"):
        gp(n_components=16).fit(X, y)


def test_few_landmarks_are_reported():
    X, y = wave(n=400)
    with pytest.warns(UserWarning, match="larger n_landmarks"):
        gp(posterior="nystrom", n_landmarks=8, **FIXED).fit(X, y)


def test_noise_that_float32_cannot_bear_is_summed_in_float64():
    X, y = wave(n=400, noise=0.0)
    parameters = {**FIXED, "noise": 1e-7, "posterior": "features", "n_components": 16}
    with pytest.warns(UserWarning, match="16 weights"):
        found = gp(**parameters).fit(X, y)
    features = found.features_.with_dtype(np.float64)
    phi = features(X)
    gram = phi.T @ phi + 1e-7 / 1.5 * np.eye(16)
    direct = phi @ np.linalg.solve(gram, phi.T @ (y - y.mean())) + y.mean()
    assert np.allclose(found.predict(X), direct, atol=1e-8)


def test_sparse_rows_and_single_precision_agree_with_dense():
    X, y = wave()
    for posterior in ("exact", "nystrom", "features"):
        dense = gp(posterior=posterior, **FIXED).fit(X, y)
        for rows, tolerance in ((sparse.csr_array(X), 1e-4), (X.astype(np.float32), 1e-4)):
            other = gp(posterior=posterior, **FIXED).fit(rows, y)
            assert np.allclose(other.predict(rows), dense.predict(X), atol=tolerance)


def test_several_outputs_share_hyperparameters():
    X, y = wave()
    both = np.stack([y, -2 * y], axis=1)
    found = gp().fit(X, both)
    mean, std = found.predict(X[:7], return_std=True)
    assert mean.shape == std.shape == (7, 2)
    assert np.allclose(mean[:, 1], -2 * mean[:, 0], atol=1e-6)
    assert found.predict(X[:7], return_cov=True)[1].shape == (7, 7, 2)
    assert found.predict_interval(X[:7]).shape == (7, 2, 2)
    with pytest.raises(ValueError, match="one output at a time"):
        found.posterior_paths(1)


@pytest.mark.parametrize("posterior", ["exact", "nystrom", "features"])
def test_samples_and_paths_are_draws_around_the_prediction(posterior):
    """2,000 draws at 4 points: |z| < 5.5 for means; deviations to 15 %, where 2,048 features suffice."""
    X, y = wave(n=60)
    found = gp(posterior=posterior, n_components=2048, **FIXED).fit(X, y)
    new, _ = wave(n=4, seed=1)
    mean, std = found.predict(new, return_std=True)
    drawn = found.sample_y(new, 2000, random_state=1)
    assert drawn.shape == (4, 2000)
    assert (np.abs(drawn.mean(1) - mean) < 5.5 * drawn.std(1) / 2000**0.5).all()
    assert np.allclose(drawn.std(1), std, rtol=0.15)
    paths = found.posterior_paths(3, random_state=1)
    x = torch.from_numpy(new)
    assert torch.allclose(paths(x), found.posterior_paths(3, random_state=1)(x))
    assert paths(x).shape == (3, 4)
    assert torch.autograd.gradcheck(paths, (x.requires_grad_(),))


def test_prior_deviation_does_not_depend_on_n_components():
    X, y = wave(n=60)
    far = np.full((1, 2), 1e3)
    for m in (32, 512):
        for posterior in ("exact", "nystrom"):
            found = gp(posterior=posterior, n_components=m, **FIXED).fit(X, y)
            assert found.predict(far, return_std=True)[1][0] == pytest.approx(1.5**0.5)


def test_the_same_seed_gives_the_same_fit_and_copies_predict_alike():
    X, y = drawn(300)
    one, same = (gp(posterior="nystrom", n_landmarks=100).fit(X, y) for _ in range(2))
    other = clone(one).set_params(random_state=1).fit(X, y)
    assert np.array_equal(one.predict(X), same.predict(X))
    assert not np.array_equal(one.predict(X), other.predict(X))
    assert np.array_equal(pickle.loads(pickle.dumps(one)).predict(X), one.predict(X))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"posterior": "laplace"}, "posterior='laplace' must be one of"),
        ({"hyperparameters": True}, "hyperparameters=True must be one of"),
        ({"noise": -1.0}, "noise=-1.0 must be 'scale' or a positive number"),
        ({"outputscale": "auto"}, "outputscale='auto'"),
        ({"n_landmarks": 0}, "n_landmarks=0 must be at least 1"),
    ],
)
def test_parameters_are_checked(parameters, message):
    X, y = wave(n=20)
    with pytest.raises(ValueError, match=message):
        gp(**parameters).fit(X, y)


def test_numbers_of_numpy_are_numbers_and_a_refit_forgets_the_search():
    X = np.linspace(0, 3, 30)[:, None]
    gp = GaussianProcess(n_components=32, random_state=0).fit(X, np.sin(X[:, 0]))
    gp.set_params(hyperparameters="fixed", noise=np.float32(0.5), outputscale=np.int64(2))
    gp.fit(X, np.sin(X[:, 0]))
    assert (gp.noise_, gp.outputscale_, gp.optimizer_rows_) == (0.5, 2.0, 0)
    assert np.isnan(gp.evidence_gap_)


def test_questions_are_checked():
    X, y = wave(n=20)
    found = gp(**FIXED).fit(X, y)
    assert isinstance(found.posterior_, ExactPosterior)
    with pytest.raises(ValueError, match="both True"):
        found.predict(X, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match=r"coverage=1\.5"):
        found.predict_interval(X, coverage=1.5)
