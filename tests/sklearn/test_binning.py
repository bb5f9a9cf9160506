"""`RandomBinning` and `BinningRidge` against exact kernels and dense algebra."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier
from sklearn.metrics.pairwise import laplacian_kernel
from sklearn.pipeline import make_pipeline

from bochner.kernels import SplineBinning
from bochner.sklearn.binning import RandomBinning, sparse_rows
from bochner.sklearn.binning_ridge import BinningRidge


def test_rows_estimate_the_laplacian_kernel_of_scikit_learn() -> None:
    X = np.random.default_rng(0).standard_normal((300, 4)) + 1e4
    error = {}
    for grids in (100, 1600):
        rows = RandomBinning(n_grids=grids, gamma=0.2, random_state=0).fit_transform(X)
        assert sparse.issparse(rows)
        assert rows.nnz == 300 * grids
        error[grids] = np.sqrt(
            np.mean(((rows @ rows.T).toarray() - laplacian_kernel(X, gamma=0.2)) ** 2)
        )
    assert error[1600] < 0.015
    assert 3 < error[100] / error[1600] < 5.5  # 4 is expected


def test_dense_rows_are_the_sparse_ones() -> None:
    X = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)
    one = RandomBinning(n_grids=7, n_buckets=5, random_state=3)
    dense = RandomBinning(n_grids=7, n_buckets=5, random_state=3, sparse_output=False)
    rows = one.fit_transform(X)
    assert rows.dtype == np.float32
    assert np.array_equal(rows.toarray(), dense.fit_transform(X))
    assert list(one.get_feature_names_out()[:2]) == ["randombinning0", "randombinning1"]


def test_a_pipeline_with_a_linear_classifier() -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (2000, 2))
    y = (np.floor(X[:, 0]) + np.floor(X[:, 1])) % 2  # a chessboard
    model = make_pipeline(RandomBinning(gamma=1.0, random_state=0), SGDClassifier(random_state=0))
    assert model.fit(X[:1500], y[:1500]).score(X[1500:], y[1500:]) > 0.9


@pytest.mark.parametrize("targets", [None, 2])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kernel", ["laplacian", "spline-binning"])
def test_the_normal_equations(targets, fit_intercept, kernel) -> None:
    rng = np.random.default_rng(0)
    X, weight = rng.standard_normal((120, 2)), rng.uniform(0, 2, 120)
    y = rng.standard_normal(120) if targets is None else rng.standard_normal((120, targets))
    model = BinningRidge(
        0.3,
        kernel=kernel,
        n_grids=6,
        n_buckets=9,
        fit_intercept=fit_intercept,
        tol=1e-12,
        random_state=0,
    )
    model.fit(X, 5.0 + y, sample_weight=weight)
    Z = sparse_rows(model.features_, X).toarray()
    ones = np.ones((120, int(fit_intercept)))
    A = np.hstack([Z, ones])
    penalty = np.diag([0.3] * 54 + [0.0] * ones.shape[1])
    flat = (5.0 + y).reshape(120, -1)
    solution = np.linalg.solve((A.T * weight) @ A + penalty, (A.T * weight) @ flat)
    assert np.allclose(model.coef_.reshape(-1, 54), solution[:54].T, atol=1e-8)
    if fit_intercept:
        assert np.allclose(model.intercept_, solution[54], atol=1e-8)
    assert np.allclose(model.predict(X).reshape(120, -1), A @ solution, atol=1e-8)
    assert model.predict(X).shape == y.shape
    assert np.all(model.n_iter_ > 3)


@pytest.mark.parametrize("kernel", ["laplacian", SplineBinning()])
def test_the_mean_of_the_exact_gaussian_process(kernel) -> None:
    rng = np.random.default_rng(0)
    X, new = np.sort(rng.uniform(0, 4, (80, 1)), axis=0), np.linspace(0.1, 3.9, 50)[:, None]
    y = np.sin(3 * X[:, 0]) + 0.1 * rng.standard_normal(80)
    model = BinningRidge(
        0.05, kernel=kernel, gamma=1.0, n_grids=4000, fit_intercept=False, random_state=0
    ).fit(X, y)

    def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if kernel == "laplacian":
            return laplacian_kernel(a, b, gamma=1.0)
        return kernel(*(torch.from_numpy(p) * 2**0.5 for p in (a, b))).numpy()

    mean = exact(new, X) @ np.linalg.solve(exact(X, X) + 0.05 * np.eye(80), y)
    assert np.sqrt(np.mean((model.predict(new) - mean) ** 2)) < 0.02
    assert np.sqrt(np.mean((mean - np.sin(3 * new[:, 0])) ** 2)) > 1e-3


def test_spline_windows_give_functions_with_derivatives() -> None:
    """Over a step h a prediction moves by O(h) with windows, by whole steps without."""
    X = np.linspace(0, 4, 100)[:, None]
    y = np.sin(3 * X[:, 0])
    fine = np.linspace(1, 3, 20_001)[:, None]
    largest = {}
    for kernel in ("laplacian", "spline-binning"):
        model = BinningRidge(0.01, kernel=kernel, n_grids=50, gamma=1.0, random_state=0).fit(X, y)
        largest[kernel] = np.abs(np.diff(model.predict(fine))).max()
    assert largest["spline-binning"] < 2e-3  # slopes of 3, steps of 1e-4, windows of slope 1/w
    assert largest["laplacian"] > 5 * largest["spline-binning"]


def test_too_few_iterations_are_said() -> None:
    X = np.random.default_rng(0).standard_normal((200, 2))
    with pytest.warns(ConvergenceWarning, match="stopped after max_iter=2 iterations"):
        BinningRidge(1e-6, max_iter=2, random_state=0).fit(X, X[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 must be above 0"),
        ({"n_grids": 0}, "n_grids=0 must be an integer"),
        ({"n_buckets": 2.5}, r"n_buckets=2\.5 must be an integer"),
        ({"kernel": "gausian"}, "did you mean 'gaussian'"),
    ],
)
def test_parameters_that_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        BinningRidge(**change).fit(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(TypeError, match=r"use Laplacian\(\) or SplineBinning"):
        RandomBinning(kernel="gaussian").fit(np.zeros((3, 1)))
