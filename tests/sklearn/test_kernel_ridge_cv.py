"""KernelRidgeCV: every score is that of a model fitted to the training rows and tested on the others."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import KFold, ShuffleSplit

from bochner.gram import Precision, PrecisionError
from bochner.sklearn.held_out import Cells
from bochner.sklearn.kernel_ridge import KernelRidge
from bochner.sklearn.kernel_ridge_cv import KernelRidgeCV

ROWS, BLOCK = 90, 8192


def data(outputs=None, count=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 2)) + 1.0
    y = np.sin(2 * X.sum(axis=1)) + 0.1 * rng.normal(size=count)
    if outputs is not None:
        y = np.stack([y, X[:, 0]], axis=1)
    return X, y, rng.integers(0, 3, size=count).astype(np.float64)


def model(**parameters):
    defaults = {"n_components": 16, "gamma": 0.5, "alphas": [0.01, 1.0], "random_state": 0, "cv": 3}
    return KernelRidgeCV(**{**defaults, **parameters})


def refits(fitted, X, y, weights, splits, **more):
    """R^2 of the test rows, [candidates x penalties, splits], one KernelRidge at a time."""
    scores = np.empty((len(fitted.cv_results_["params"]), len(splits)))
    for row, params in enumerate(fitted.cv_results_["params"]):
        whole = KernelRidge(**params, random_state=0, **more).fit(X, y, sample_weight=weights)
        for column, (train, test) in enumerate(splits):
            kept = None if weights is None else weights[train]
            single = clone(whole)
            single._build_features = lambda *args, phi=whole.features_, **_: (
                phi
            )  # the same features
            single.fit(X[train], y[train], sample_weight=kept)
            held = None if weights is None else weights[test]
            scores[row, column] = single.score(X[test], y[test], sample_weight=held)
    return scores


def scores_of(fitted):
    names = [f"split{i}_test_score" for i in range(fitted.n_splits_)]
    return np.stack([fitted.cv_results_[name] for name in names], axis=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize(
    "cv",
    [KFold(3), ShuffleSplit(2, test_size=0.3, train_size=0.5, random_state=0)],
    ids=["folds", "shuffled"],
)
def test_scores_are_those_of_refits(cv, fit_intercept, outputs, weighted):
    X, y, weights = data(outputs)
    weights = weights if weighted else None
    fitted = model(cv=cv, fit_intercept=fit_intercept, gamma=[0.1, 2.0])
    fitted.fit(X, y, sample_weight=weights)
    splits = list(cv.split(X))
    expected = refits(fitted, X, y, weights, splits, fit_intercept=fit_intercept)
    np.testing.assert_allclose(scores_of(fitted), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(fitted.cv_results_["mean_test_score"], expected.mean(axis=1), 1e-8)
    assert fitted.best_index_ == int(expected.mean(axis=1).argmax())
    assert fitted.best_score_ == pytest.approx(expected.mean(axis=1).max())


def test_names_of_columns_are_those_of_the_last_fit():
    pandas = pytest.importorskip("pandas")
    X, y, _ = data()
    named = pandas.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
    fitted = model().fit(named, y)
    assert hasattr(fitted, "feature_names_in_")
    assert not hasattr(fitted.fit(X, y), "feature_names_in_")


def test_scores_do_not_depend_on_the_mean_of_the_targets():
    X, y, _ = data()
    near, far = model().fit(X, y), model().fit(X, y + 1e7)
    assert far.best_score_ == pytest.approx(near.best_score_, abs=1e-5)


def test_the_best_model_is_fitted_to_all_rows():
    X, y, weights = data()
    fitted = model(gamma=None, alphas=None).fit(X, y, sample_weight=weights)
    again = KernelRidge(**fitted.best_params_, random_state=0).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(fitted.predict(X), again.predict(X), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(fitted.coef_, again.coef_, rtol=1e-7, atol=1e-9)
    assert fitted.intercept_ == pytest.approx(again.intercept_)
    assert fitted.alpha_ == fitted.best_params_["alpha"]
    assert fitted.best_estimator_.statistics_.num_rows == np.count_nonzero(weights)


def test_every_combination_is_a_row_of_the_table():
    X, y, _ = data()
    fitted = model(
        kernel=["gaussian", RBF(2.0), "matern-3/2"],
        n_components=[4, 8],
        gamma="scale",
        alphas=[0.1, 1.0, 10.0],
    ).fit(X, y)
    table = fitted.cv_results_
    assert len(table["params"]) == 3 * 2 * 3
    assert sorted(set(table["param_n_components"])) == [4, 8]
    assert {len(column) for column in table.values()} == {18}
    assert table["rank_test_score"][fitted.best_index_] == 1
    assert (np.sort(table["rank_test_score"])[:2] == [1, 2]).all()


@pytest.mark.parametrize(("kernel", "power"), [("gaussian", 2), ("laplacian", 1)])
def test_widths_by_default_surround_scale(kernel, power):
    X, y, _ = data()
    fitted = model(kernel=kernel, gamma=None).fit(X, y)
    gammas = np.unique(fitted.cv_results_["param_gamma"].astype(float))
    scale = 1 / (2 * X.var()) if kernel == "gaussian" else 1 / (2 * X.std())
    np.testing.assert_allclose(gammas, scale * np.array([0.25, 0.5, 1, 2, 4]) ** power, rtol=1e-9)


def test_a_width_that_suits_the_data_wins():
    X, y, _ = data(count=400)
    fitted = model(gamma=[1e-4, 1.0, 1e4], n_components=64).fit(X, y)
    assert fitted.best_params_["gamma"] == 1.0
    assert fitted.best_score_ > 0.7


def test_sparse_rows_are_the_same_rows():
    X, y, _ = data()
    X[X < 1] = 0
    ours, theirs = model().fit(X, y), model().fit(sparse.csr_array(X), y)
    np.testing.assert_allclose(scores_of(ours), scores_of(theirs), rtol=1e-7, atol=1e-8)


def test_seeds_of_every_kind_are_one_seed_for_all_candidates():
    X, y, _ = data()
    fitted = model(random_state=np.random.RandomState(3), gamma=[0.5, 0.5]).fit(X, y)
    np.testing.assert_array_equal(scores_of(fitted)[:2], scores_of(fitted)[2:])
    seed = fitted.best_estimator_.random_state
    again = KernelRidge(**fitted.best_params_, random_state=seed).fit(X, y)
    np.testing.assert_allclose(fitted.predict(X), again.predict(X), rtol=1e-9)


def many_rows(noise):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(BLOCK + 2000, 2))
    return X, np.sin(2 * X[:, 0]) * X[:, 1] + noise * rng.normal(size=len(X))


def test_single_precision_scores_are_those_of_predictions():
    X, y = many_rows(0.1)
    fitted = model(n_components=64, alphas=[0.1, 10.0]).fit(X, y)
    assert fitted.best_estimator_.statistics_.precision is Precision.SINGLE
    splits = list(KFold(3).split(X))
    expected = refits(fitted, X, y, None, splits, precision="double")
    np.testing.assert_allclose(scores_of(fitted), expected, rtol=0, atol=1e-5)


def test_errors_below_the_rounding_of_single_precision_are_taken_again_in_double_or_refused():
    X, y = many_rows(1e-7)  # the best error is smaller than float32 sums can tell from none
    parameters = {"n_components": 64, "gamma": 1.0, "alphas": [1e-4, 1.0]}
    with pytest.raises(PrecisionError, match="precision='double'"):
        model(**parameters, precision="single").fit(X, y)
    fitted = model(**parameters).fit(X, y)
    assert fitted.best_estimator_.statistics_.precision is Precision.DOUBLE
    splits = list(KFold(3).split(X))
    expected = refits(fitted, X, y, None, splits, precision="double")
    np.testing.assert_allclose(1 - scores_of(fitted), 1 - expected, rtol=1e-3)


def test_cells_are_a_partition_that_serves_every_split():
    splits = list(ShuffleSplit(4, test_size=0.2, train_size=0.6, random_state=0).split(np.ones(50)))
    cells = Cells.of(splits, 50)
    assert sorted(np.concatenate(cells.rows).tolist()) == list(range(50))
    for number, (train, test) in enumerate(splits):
        for role, expected in ((1, train), (2, test)):
            chosen = [
                r
                for r, kind in zip(cells.rows, cells.roles[:, number], strict=True)
                if kind == role
            ]
            assert sorted(np.concatenate(chosen).tolist()) == sorted(expected.tolist())


def test_what_is_wrong_is_named():
    X, y, _ = data()
    both = np.arange(ROWS)
    with pytest.raises(ValueError, match=r"split 0 of cv has 90 training and 90 test rows"):
        model(cv=[(both, both)]).fit(X, y)
    with pytest.raises(ValueError, match="empty list"):
        model(gamma=[]).fit(X, y)
    with pytest.raises(ValueError, match="n_samples=2"):
        model().fit(X[:2], y[:2])


def test_verbose_shows_a_bar_over_candidates(capsys):
    X, y, _ = data()
    model(verbose=1).fit(X, y)
    assert "candidates" in capsys.readouterr().err


def test_an_array_of_gammas_is_a_list_of_candidates():
    X, y, _ = data()
    gammas = np.geomspace(0.1, 1.0, X.shape[1])  # as many as columns: not one for each
    found, same = (model(gamma=g).fit(X, y).cv_results_ for g in (gammas, list(gammas)))
    np.testing.assert_array_equal(found["mean_test_score"], same["mean_test_score"])
    assert len(set(found["param_gamma"])) == len(gammas)
    ard = model(gamma=[gammas]).fit(X, y)
    np.testing.assert_array_equal(ard.best_params_["gamma"], gammas)
