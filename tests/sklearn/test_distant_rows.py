"""Estimators given rows over gloo ranks, or rows with checkpoints, in the place of X."""

import numpy as np
import pytest
import torch.distributed as dist
from numpy.testing import assert_array_equal

from bochner.gram.checkpoint import CheckpointedRows
from bochner.gram.distributed import RankRows, SharedRows
from bochner.sklearn import KernelClassifier, KernelPCA, KernelRidge
from tests.attention.processes import Raised
from tests.gram.rows_problem import ROWS, problem, same_bits

gloo = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
SMALL = {"n_components": 32, "random_state": 0}
EDGES = (0, 9_000, 20_001, ROWS)


def labels(Y):
    return np.array(["left", "right"])[(Y[:, 0] > 0).astype(int)]


def ridge(**changes):
    return KernelRidge(**{"alpha": 1.0, "gamma": "median", **SMALL} | changes)


def classifier():
    return KernelClassifier(loss="logistic", class_weight="balanced", **SMALL)


def fit_own_rows(rank):
    X, Y, weight = (array[EDGES[rank] : EDGES[rank + 1]] for array in problem())
    rows = RankRows(X)
    model = ridge().fit(rows, Y, sample_weight=weight)
    classes = classifier().fit(RankRows(X), labels(Y))
    return model.statistics_, model.coef_, model.predict(rows), classes.coef_


def fit_shared_rows(rank):
    X, Y, weight = problem()
    model = ridge(alpha="loo").fit(SharedRows(X), Y, sample_weight=weight)
    return model.statistics_, model.coef_


@gloo
def test_own_rows(three):
    X, Y, weight = problem()
    truth = ridge().fit(X, Y, sample_weight=weight)
    classes = classifier().fit(X, labels(Y))
    found = three.run(fit_own_rows, [()] * 3)
    for rank, (statistics, coef, predicted, class_coef) in enumerate(found):
        assert same_bits(statistics, truth.statistics_)
        assert_array_equal(coef, truth.coef_)
        assert_array_equal(predicted, truth.predict(X[EDGES[rank] : EDGES[rank + 1]]))
        assert_array_equal(class_coef, classes.coef_)


@gloo
def test_shared_rows(three):
    X, Y, weight = problem()
    truth = ridge(alpha="loo").fit(X, Y, sample_weight=weight)
    for statistics, coef in three.run(fit_shared_rows, [()] * 3):
        assert same_bits(statistics, truth.statistics_)
        assert_array_equal(coef, truth.coef_)


def fit_badly(rank, what):
    X, Y, _ = (array[EDGES[rank] : EDGES[rank + 1]].copy() for array in problem())
    if rank == 1 and what == "NaN":
        X[5, 0] = np.nan
    return ridge(random_state=None if what == "seed" else 0).fit(RankRows(X), Y).coef_


@gloo
def test_nan_on_one_rank_is_an_error_on_all(three):
    answers = three.answers(fit_badly, [("NaN",)] * 3)
    assert [answer.kind for answer in answers] == ["RuntimeError", "ValueError", "RuntimeError"]
    assert all("contains NaN" in answer.message for answer in answers)


@gloo
def test_ranks_with_features_of_their_own(three):
    for answer in three.answers(fit_badly, [("seed",)] * 3):
        assert isinstance(answer, Raised)
        assert "give the estimator an int as random_state" in answer.message


def test_checkpoints_of_a_fit_with_several_passes(tmp_path):
    X, Y, weight = problem()
    truth = ridge(alpha="loo").fit(X, Y, sample_weight=weight)
    for _ in range(2):  # the second time everything is read
        model = ridge(alpha="loo").fit(CheckpointedRows(X, tmp_path), Y, sample_weight=weight)
        assert same_bits(model.statistics_, truth.statistics_)
        assert_array_equal(model.coef_, truth.coef_)
    assert_array_equal(model.predict(CheckpointedRows(X, tmp_path)), truth.predict(X))
    assert len(list(tmp_path.iterdir())) == 3, "centre, sums, leave-one-out"
    principal = KernelPCA(2, random_state=0).fit(CheckpointedRows(X, tmp_path / "pca"))
    assert_array_equal(principal.mean_, KernelPCA(2, random_state=0).fit(X).mean_)


def test_other_features_are_another_fit(tmp_path):
    X, Y, _ = problem()
    ridge(random_state=None).fit(CheckpointedRows(X, tmp_path), Y)
    with pytest.raises(ValueError, match="is random_state an int"):
        ridge(random_state=None).fit(CheckpointedRows(X, tmp_path), Y)


@pytest.mark.parametrize(
    ("value", "weight", "message"),
    [
        (np.nan, 1.0, r"Input y contains NaN"),
        (0.0, -1.0, r"sample_weight has negative values; weights count as repetitions"),
        (0.0, np.nan, r"Input sample_weight contains NaN"),
    ],
)
def test_targets_and_weights_beside_distant_rows_are_looked_at(tmp_path, value, weight, message):
    y, weights = np.zeros(9), np.ones(9)
    y[3], weights[4] = value, weight
    with pytest.raises(ValueError, match=message):
        ridge().fit(CheckpointedRows(np.eye(9), tmp_path), y, sample_weight=weights)
