"""scikit-learn's own contract, for every estimator of `bochner.sklearn`, without an exemption."""

import functools
import inspect
import warnings

import pytest
from sklearn.base import BaseEstimator
from sklearn.exceptions import SkipTestWarning
from sklearn.kernel_approximation import RBFSampler
from sklearn.utils.estimator_checks import check_estimator

import bochner.sklearn

ESTIMATORS = {
    name: value
    for name in bochner.sklearn.__all__
    if inspect.isclass(value := getattr(bochner.sklearn, name)) and issubclass(value, BaseEstimator)
}
SMALL = {
    "GaussianProcess": {"n_components": 32, "n_landmarks": 32},
    "KernelRidgeCV": {"n_components": 32, "cv": 2},
    "LocalGaussianProcess": {"n_components": 16, "max_centers": 2},
}
"""Sizes for a test of seconds, of those that search or solve many times."""
VARIANTS = [
    *((name, SMALL.get(name, {})) for name in ESTIMATORS),
    ("KernelClassifier", {"loss": "logistic"}),
    ("KernelRidge", {"alpha": "gcv"}),
    ("RandomFeatures", {"features": "positive"}),
    ("RandomFeatures", {"features": "gerf"}),
    ("RandomFeatures", {"kernel": "laplacian", "projection": "iid", "gamma": "median"}),
    ("RandomFeatures", {"kernel": "matern-3/2", "projection": "sobol", "n_components": 7}),
    ("NadarayaWatson", {"features": "positive", "n_components": 31}),
    ("KernelPCA", {"n_components": 2, "kernel": "laplacian"}),
]


@functools.cache
def skipped_by_scikit_learn() -> frozenset[str]:
    """What its own RBFSampler skips here: checks that want an environment variable, or a package."""
    results = check_estimator(RBFSampler(), on_fail=None)
    return frozenset(r["check_name"] for r in results if r["status"] == "skipped")


def test_all_estimators_are_checked() -> None:
    assert {"RandomFeatures", "KernelPCA", "KernelMeanEmbedding", "NadarayaWatson"} <= set(
        ESTIMATORS
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "parameters"), VARIANTS, ids=lambda value: "" if value == {} else str(value)
)
def test_estimator_passes_every_check(name: str, parameters: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(ESTIMATORS[name](**parameters), on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped <= skipped_by_scikit_learn()
    assert not any(r["expected_to_fail"] for r in results)
    assert len(results) > 40
