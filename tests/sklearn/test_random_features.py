"""The transformer: scikit-learn's own kernels, its conventions, and less error than RBFSampler."""

import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from scipy import sparse
from sklearn import datasets
from sklearn.base import clone
from sklearn.gaussian_process import kernels
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bochner
from bochner.catalog import specs
from bochner.kernels import Gaussian
from bochner.sklearn import RandomFeatures


def normal(rows: int = 60, dim: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim))


def rmse(estimate: np.ndarray, kernel: np.ndarray) -> float:
    others = ~np.eye(len(kernel), dtype=bool)
    return float(np.sqrt(np.mean((estimate - kernel)[others] ** 2)))


@pytest.mark.parametrize(
    ("parameters", "kernel"),
    [
        ({"gamma": 0.3}, lambda X: pairwise.rbf_kernel(X, gamma=0.3)),
        ({}, lambda X: pairwise.rbf_kernel(X, gamma=1 / (X.shape[1] * X.var()))),
        (
            {"kernel": "laplacian", "gamma": 0.3},
            lambda X: pairwise.laplacian_kernel(X, gamma=0.3),
        ),
        ({"kernel": kernels.RBF([1.0, 2.0, 3.0, 4.0])}, kernels.RBF([1.0, 2.0, 3.0, 4.0])),
        (
            {"kernel": kernels.Matern([1.0, 2.0, 2.0, 1.0], nu=2.5)},
            kernels.Matern([1.0, 2.0, 2.0, 1.0], nu=2.5),
        ),
        (
            {"kernel": kernels.RationalQuadratic(length_scale=1.5, alpha=0.8)},
            kernels.RationalQuadratic(length_scale=1.5, alpha=0.8),
        ),
    ],
    ids=["rbf", "scale", "laplacian", "RBF", "Matern", "RationalQuadratic"],
)
def test_inner_products_estimate_the_kernel(parameters: dict, kernel: object) -> None:
    X = normal()
    Z = RandomFeatures(n_components=20_000, random_state=0, **parameters).fit_transform(X)
    # iid directions have a root mean square error of at most 1/sqrt(2 r) = 0.01 here
    assert rmse(Z @ Z.T, kernel(X)) < 0.012


def test_a_gamma_for_each_column() -> None:
    X, gamma = normal(), np.array([0.1, 1.0, 0.0001, 0.5])
    Z = RandomFeatures(n_components=20_000, gamma=gamma, random_state=0).fit_transform(X)
    assert rmse(Z @ Z.T, pairwise.rbf_kernel(X * np.sqrt(gamma), gamma=1.0)) < 0.012


def sets() -> dict[str, np.ndarray]:
    loaders = (
        datasets.load_iris,
        datasets.load_wine,
        datasets.load_breast_cancer,
        datasets.load_diabetes,
        datasets.load_digits,
    )
    return {
        load.__name__: StandardScaler().fit_transform(np.unique(load().data, axis=0))[:300]
        for load in loaders
    }


@pytest.mark.parametrize(("name", "X"), sets().items(), ids=list(sets()))
def test_less_error_than_rbf_sampler_with_as_many_columns(name: str, X: np.ndarray) -> None:
    """60 seeds each: the whole interval of the log-ratio, at a false-alarm rate of 1e-6, is below 0."""
    kernel = pairwise.rbf_kernel(X, gamma=1 / (X.shape[1] * X.var()))
    logs = []
    for seed in range(60):
        ours, theirs = (
            sampler.fit_transform(X)
            for sampler in (
                RandomFeatures(n_components=128, random_state=seed),
                RBFSampler(n_components=128, gamma="scale", random_state=seed),
            )
        )
        logs.append(np.log(rmse(ours @ ours.T, kernel) / rmse(theirs @ theirs.T, kernel)))
    half = scipy.stats.t.isf(1e-6, 59) * np.std(logs, ddof=1) / np.sqrt(60)
    assert np.mean(logs) + half < 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_is_kept(dtype: type) -> None:
    X = normal().astype(dtype)
    sampler = RandomFeatures(n_components=8, random_state=0).fit(X)
    assert sampler.transform(X).dtype == dtype
    other = np.float64 if dtype == np.float32 else np.float32
    assert sampler.transform(X.astype(other)).dtype == other


def test_float32_rows_far_from_zero_keep_their_differences() -> None:
    """Time stamps: the rows are centred in float64 before they become features."""
    X = normal(dim=1)
    ours = RandomFeatures(n_components=64, gamma=0.5, random_state=0)
    near, far = ours.fit_transform(X), ours.fit_transform(X + 1.6e9)
    np.testing.assert_allclose(near @ near.T, far @ far.T, atol=1e-5)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csr_matrix, sparse.coo_array])
def test_sparse_rows_estimate_the_same_kernel(form: type) -> None:
    X = normal() * (normal(seed=1) > 0.5)
    sampler = RandomFeatures(n_components=32, gamma=0.2, random_state=0)
    dense, other = sampler.fit_transform(X), sampler.fit_transform(form(X))
    # sparse rows are not centred: each pair of columns is turned, and inner products are the same
    np.testing.assert_allclose(other @ other.T, dense @ dense.T, atol=1e-12)
    np.testing.assert_allclose(sampler.transform(X), other, atol=1e-12)


def test_every_symmetric_map_of_the_gaussian_kernel() -> None:
    X, worked, refused = 0.5 * normal(300), [], {}
    kernel = pairwise.rbf_kernel(X, gamma=0.5)
    for name, spec in specs().items():
        if spec.changes_kernel or not spec.supports(Gaussian()):
            continue
        sampler = RandomFeatures(features=name, n_components=240, gamma=0.5, random_state=0)
        try:
            Z = sampler.fit_transform(X)
        except ValueError as error:
            refused[name] = str(error)
            continue
        assert Z.shape == (300, sampler.features_.num_features), name
        assert rmse(Z @ Z.T, kernel) < 0.3, name
        worked.append(name)
    assert {"trigonometric", "positive", "gerf", "nystroem"} <= set(worked)
    assert all("one function for all rows" in message for message in refused.values()), refused


def test_conventions() -> None:
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(normal(), columns=list("abcd"))
    sampler = RandomFeatures(n_components=4, random_state=0).set_output(transform="pandas")
    Z = sampler.fit_transform(X)
    assert list(Z.columns) == [f"randomfeatures{i}" for i in range(4)]
    assert list(sampler.feature_names_in_) == list("abcd")
    assert sampler.n_features_in_ == 4
    again = pickle.loads(pickle.dumps(sampler)).transform(X)
    pd.testing.assert_frame_equal(Z, again)


def test_the_seed_decides() -> None:
    X = normal()
    one, same, other = (
        RandomFeatures(n_components=8, random_state=s).fit_transform(X) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    fresh = [RandomFeatures(n_components=8).fit_transform(X) for _ in range(2)]
    assert not np.allclose(*fresh)


def test_an_odd_number_of_cosines_and_sines_is_rounded_up() -> None:
    assert RandomFeatures(n_components=7, random_state=0).fit_transform(normal()).shape[1] == 8
    positive = RandomFeatures(n_components=7, features="positive", random_state=0)
    assert positive.fit_transform(normal()).shape[1] == 7


def test_in_a_pipeline_and_a_grid_search() -> None:
    X, y = datasets.load_wine(return_X_y=True)
    pipeline = make_pipeline(
        StandardScaler(), RandomFeatures(random_state=0), LogisticRegression(max_iter=1000)
    )
    grid = {"randomfeatures__n_components": np.array([2, 64])}  # numpy integers, as a grid has them
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert search.best_params_["randomfeatures__n_components"] == 64
    assert search.best_score_ > 0.95


def test_a_feature_map_of_your_own_is_copied() -> None:
    phi = bochner.make("trigonometric", dim=4, num_features=6, kernel="gaussian")
    sampler = RandomFeatures(features=phi).fit(normal())
    assert sampler.features_.feature_map is not phi
    assert clone(sampler).fit(normal()).features_.num_features == 6
    with pytest.raises(ValueError, match="features has dim=4; X has 3 columns"):
        RandomFeatures(features=phi).fit(normal(dim=3))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "n_components=0 must be an integer of at least 1"),
        ({"n_components": 2.5}, "n_components=2.5 must be an integer"),
        ({"gamma": -1.0}, "gamma=-1.0 must be positive"),
        ({"gamma": "wide"}, "gamma='wide' must be 'scale', 'median'"),
        ({"gamma": [1.0, 2.0]}, r"gamma has shape \[2\]; expected a number or \[4\]"),
        ({"features": "trigonometri"}, "did you mean 'trigonometric'"),
        ({"features": "angular"}, "treats queries and keys differently"),
        ({"kernel": "laplacian", "features": "positive"}, "do not estimate it; these do"),
    ],
)
def test_errors_name_the_parameter(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomFeatures(**parameters).fit(normal())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"features": "rff"}, r"'rff': random Fourier features are 'trigonometric'"),
        ({"gamma": None}, r"gamma=None must be 'scale', 'median', a positive number or \[d\]"),
    ],
)
def test_habits_from_elsewhere_are_told_the_name(parameters, message):
    with pytest.raises(ValueError, match=message):
        RandomFeatures(**parameters).fit(normal())


def test_a_composite_kernel_is_told_where_its_parts_go():
    with pytest.raises(TypeError, match=r"alone: a factor is outputscale and white noise is noise"):
        RandomFeatures(kernel=2.0 * kernels.RBF() + kernels.WhiteKernel()).fit(normal())


def test_a_map_of_its_own_brings_its_kernel() -> None:
    """A kernel that is not stationary must not see centred rows, whatever `kernel` says by default."""
    rows = np.random.default_rng(0).normal(size=(50, 3)) + 2.0
    phi = bochner.make("tensor-sketch", dim=3, num_features=4096, dtype=torch.float64)
    found = RandomFeatures(features=phi, gamma=0.5).fit(rows)
    assert found.features_.offset is None
    np.testing.assert_allclose(
        found.transform(rows), phi.query(torch.from_numpy(rows)).materialise().numpy()
    )
    RandomFeatures(features=phi, kernel="polynomial").fit(rows)
    with pytest.raises(ValueError, match=r"kernel='laplacian'.* features=.* estimates Polynomial"):
        RandomFeatures(features=phi, kernel="laplacian").fit(rows)


@pytest.mark.parametrize(("size", "gamma"), [(1e200, "scale"), (1.5e308, 1.0)])
def test_rows_whose_moments_leave_float64(size: float, gamma: object) -> None:
    rows = size * np.sign(np.random.default_rng(0).normal(size=(50, 3)) + 1.0)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(ValueError, match="mean or variance of X is beyond float64"),
    ):
        RandomFeatures(gamma=gamma, random_state=0).fit(rows)
