"""KernelRidge against dense float64 least squares, refits row by row, and scikit-learn's Ridge."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bochner.gram import Precision, PrecisionError, Spectrum, accumulate, ridge
from bochner.sklearn.kernel_ridge import KernelRidge
from tests.gram import dense

ROWS, BLOCK = 60, 8192


def data(count=ROWS, dim=3, outputs=None, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, dim)) + 1.0
    y = np.sin(X.sum(axis=1)) + 0.1 * rng.normal(size=count)
    if outputs is not None:
        y = y[:, None] * np.arange(1, outputs + 1) + 0.1 * rng.normal(size=(count, outputs))
    return X, y


def model(**parameters):
    return KernelRidge(**{"n_components": 16, "gamma": 0.1, "random_state": 0, **parameters})


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("outputs", [None, 3])
def test_fit_is_dense_least_squares(fit_intercept, weighted, outputs):
    X, y = data(outputs=outputs)
    weights = np.random.default_rng(1).uniform(size=ROWS) if weighted else None
    fitted = model(alpha=0.3, fit_intercept=fit_intercept).fit(X, y, sample_weight=weights)
    phi = fitted.features_(X)
    coef, intercept = dense.ridge(phi, y, 0.3, weights=weights, fit_intercept=fit_intercept)
    expected = phi @ coef + intercept
    assert fitted.predict(X).shape == y.shape
    np.testing.assert_allclose(fitted.predict(X), expected.reshape(y.shape), rtol=1e-9, atol=1e-10)
    sklearn = Ridge(alpha=0.3, fit_intercept=fit_intercept, solver="svd")
    sklearn.fit(phi, y, sample_weight=weights)
    np.testing.assert_allclose(fitted.coef_, sklearn.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fitted.intercept_, sklearn.intercept_, rtol=1e-7, atol=1e-9)
    assert np.shape(fitted.intercept_) == np.shape(sklearn.intercept_) or not fit_intercept


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_leave_one_out_is_a_refit_without_each_row(fit_intercept):
    X, y = data(outputs=2)
    weights = np.random.default_rng(1).uniform(0.2, 2.0, size=ROWS)
    alphas = [1e-3, 0.1, 10.0]
    fitted = model(alpha="loo", alphas=alphas, fit_intercept=fit_intercept)
    fitted.fit(X, y, sample_weight=weights)
    phi = fitted.features_(X)
    expected = [
        np.average(
            dense.leave_one_out(phi, y, alpha, weights=weights, fit_intercept=fit_intercept),
            weights=weights,
            axis=0,
        ).mean()
        for alpha in alphas
    ]
    np.testing.assert_allclose(fitted.criterion_, expected, rtol=1e-8)
    assert fitted.alpha_ == alphas[int(np.argmin(expected))]
    again = model(alpha=fitted.alpha_, fit_intercept=fit_intercept).fit(X, y, weights)
    np.testing.assert_allclose(fitted.predict(X), again.predict(X), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_generalised_cross_validation_is_that_of_the_hat_matrix(fit_intercept):
    X, y = data(outputs=2)
    alphas = [1e-3, 0.1, 10.0]
    fitted = model(alpha="gcv", alphas=alphas, fit_intercept=fit_intercept).fit(X, y)
    phi = fitted.features_(X)
    expected = [
        dense.generalised_cross_validation(phi, y, alpha, fit_intercept=fit_intercept).mean()
        for alpha in alphas
    ]
    np.testing.assert_allclose(fitted.criterion_, expected, rtol=1e-8)
    assert fitted.alpha_ == alphas[int(np.argmin(expected))]


def test_the_default_path_spans_what_the_sums_bear():
    X, y = data()
    for precision in ("double", "single"):
        fitted = model(alpha="loo", precision=precision).fit(X, y)
        assert len(fitted.alphas_) == 25
        ends = [1e-7 * ROWS, ROWS]  # |phi| = 1
        np.testing.assert_allclose(fitted.alphas_[[0, -1]], ends, rtol=1e-5)
        assert fitted.alphas_[0] < fitted.alpha_ < fitted.alphas_[-1]


def test_generalised_cross_validation_of_what_float32_sums_cannot_see():
    X, _ = smooth_rows()
    y = np.cos(X[:, 0])  # without noise
    with pytest.raises(PrecisionError, match="below 1e-5 of the targets' squares"):
        model(n_components=64, gamma=0.5, alpha="gcv", precision="single").fit(X, y)
    fitted = model(n_components=64, gamma=0.5, alpha="gcv").fit(X, y)
    assert fitted.statistics_.precision is Precision.DOUBLE
    assert fitted.alpha_ == fitted.alphas_[0]  # without noise less is better
    assert 1 - fitted.score(X, y) < 1e-5  # which float32 sums cannot tell from 0
    constant = model(alpha="gcv").fit(X[:100], np.ones(100))
    assert constant.alpha_ == constant.alphas_[-1]


def test_path_holds_the_model_of_every_penalty():
    X, y = data(outputs=2)
    fitted = model().fit(X, y)
    path = fitted.path([0.01, 1.0, 100.0])
    for alpha, coef, intercept, freedom in zip(
        path.alphas, path.coef, path.intercept, path.effective_dof, strict=True
    ):
        single = model(alpha=alpha).fit(X, y)
        np.testing.assert_allclose(coef.T, single.coef_, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(intercept, single.intercept_, rtol=1e-7, atol=1e-10)
        phi = fitted.features_(X)
        hat, constant = dense.ridge(phi, np.eye(ROWS), alpha)
        assert freedom == pytest.approx(np.trace(phi @ hat + constant), rel=1e-9)


def test_weights_count_as_repetitions():
    X, y = data()
    weights = np.random.default_rng(1).integers(0, 4, size=ROWS)
    weighted = model(gamma="scale").fit(X, y, sample_weight=weights)
    repeated = model(gamma="scale").fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-9)


def test_sparse_rows_are_the_same_rows():
    X, y = data()
    X[X < 1] = 0
    dense_fit, sparse_fit = model().fit(X, y), model().fit(sparse.csr_array(X), y)
    np.testing.assert_allclose(sparse_fit.predict(X), dense_fit.predict(X), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(
        sparse_fit.predict(sparse.csr_matrix(X)), dense_fit.predict(X), rtol=1e-7, atol=1e-9
    )


def test_partial_fit_adds_rows():
    X, y = data(outputs=2)
    weights = np.random.default_rng(1).uniform(size=ROWS)
    for precision, tolerance in (("double", 1e-9), ("auto", 1e-4)):
        streamed = model(precision=precision)
        for start in range(0, ROWS, 25):
            part = slice(start, start + 25)
            streamed.partial_fit(X[part], y[part], sample_weight=weights[part])
        whole = model(precision=precision).fit(X, y, sample_weight=weights)
        np.testing.assert_allclose(
            streamed.predict(X), whole.predict(X), rtol=tolerance, atol=tolerance
        )
        assert streamed.statistics_.num_rows == ROWS


def test_partial_fit_after_fit_goes_on():
    X, y = data()
    model_ = model(precision="double").fit(X[:30], y[:30])
    before = model_.predict(X)
    model_.partial_fit(X[30:], y[30:])
    phi = model_.features_(X)
    coef, intercept = dense.ridge(phi, y, 1.0)
    np.testing.assert_allclose(model_.predict(X), (phi @ coef + intercept)[:, 0], rtol=1e-9)
    assert abs(model_.predict(X) - before).max() > 1e-3


def test_partial_fit_chooses_a_penalty_by_gcv_and_refuses_loo():
    X, y = data()
    streamed = model(alpha="gcv", precision="double")
    streamed.partial_fit(X[:30], y[:30]).partial_fit(X[30:], y[30:])
    whole = model(alpha="gcv").fit(X, y)
    np.testing.assert_allclose(streamed.predict(X), whole.predict(X), rtol=0, atol=0.2)
    assert len(streamed.alphas_) == 25
    with pytest.raises(ValueError, match="alpha='loo' passes over the rows twice"):
        model(alpha="loo").partial_fit(X, y).predict(X)


def smooth_rows(seed=0):
    """More than a block of rows whose Gram matrix has a condition number beyond float64."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, size=(BLOCK + 1000, 2)).astype(np.float32)
    y = np.sin(3 * X[:, 0]) * X[:, 1] + 0.01 * rng.normal(size=len(X))
    return X, y


def test_a_penalty_that_single_precision_bears_stays_there():
    X, y = smooth_rows()
    fitted = model(n_components=64, gamma=0.5, alpha=1.0).fit(X, y)
    assert fitted.statistics_.precision is Precision.SINGLE
    assert fitted.features_.dtype == np.float32
    phi = fitted.features_.with_dtype(np.float64)(X)
    coef, intercept = dense.ridge(phi, y, 1.0)
    np.testing.assert_allclose(fitted.predict(X), (phi @ coef + intercept)[:, 0], atol=2e-3)


def test_a_penalty_that_it_does_not_bear_is_solved_in_double_precision_or_refused():
    X, y = smooth_rows()
    alpha = 1e-6  # 2e-10 of the largest eigenvalue
    with pytest.raises(PrecisionError, match=r"alpha=1e-06 is below .*precision='double'"):
        model(n_components=64, gamma=0.5, alpha=alpha, precision="single").fit(X, y)
    fitted = model(n_components=64, gamma=0.5, alpha=alpha).fit(X, y)
    assert fitted.statistics_.precision is Precision.DOUBLE
    phi = fitted.features_(X)
    assert phi.dtype == np.float64
    coef, intercept = dense.ridge(phi, y, alpha)
    np.testing.assert_allclose(fitted.predict(X), (phi @ coef + intercept)[:, 0], atol=1e-6)


@pytest.mark.parametrize("share", [1e-10, 1e-9, 3e-9, 9e-9])
def test_single_precision_refuses_all_below_its_floor_also_where_cholesky_would_pass(share):
    X, y = smooth_rows()
    largest = model(n_components=64, gamma=0.5).fit(X, y).statistics_
    alpha = share * float(np.linalg.eigvalsh(largest.gram)[-1])
    with pytest.raises(PrecisionError):
        model(n_components=64, gamma=0.5, alpha=alpha, precision="single").fit(X, y)


@pytest.mark.parametrize("share", [1.2e-8, 2.7e-8, 4e-8, 8e-8])
def test_rounding_above_a_quarter_of_the_penalty_is_refused_by_both_solvers(share):
    """What float32 sums of few blocks have shown: an eigenvalue of -2.6e-8 of the largest."""
    X, y = smooth_rows()
    sums = model(n_components=64, gamma=0.5, precision="double").fit(X, y).statistics_
    values, vectors = np.linalg.eigh(sums.centred().gram)
    largest = float(np.linalg.eigvalsh(sums.gram)[-1])
    error = -2.6e-8 * largest - values[0]
    rounded = replace(
        sums,
        gram=sums.gram + error * np.outer(vectors[:, 0], vectors[:, 0]),
        precision=Precision.SINGLE,
    )
    for solve in (lambda a: ridge(rounded, a), lambda a: Spectrum.of(rounded).coef([a])):
        with pytest.raises(PrecisionError):
            solve(share * largest)
        solve(1.2e-7 * largest)


def test_double_precision_refuses_what_it_cannot_bear():
    X, y = smooth_rows()
    with pytest.raises(PrecisionError, match="larger alpha"):
        model(n_components=64, gamma=0.05, alpha=0.0).fit(X, y)


def test_partial_fit_refuses_a_penalty_that_its_sums_cannot_bear():
    X, y = smooth_rows()
    streamed = model(n_components=64, gamma=0.5, alpha=1e-6).partial_fit(X, y)
    with pytest.raises(PrecisionError, match="precision='double'"):
        streamed.predict(X)


def test_rows_far_from_the_origin_keep_their_digits_in_single_precision():
    X, y = smooth_rows()
    shifted = X.astype(np.float64) + 1e7  # as columns of time stamps
    near = model(n_components=64, gamma=0.5).fit(X, y).predict(X)
    far = model(n_components=64, gamma=0.5).fit(shifted, y).predict(shifted)
    np.testing.assert_allclose(far, near, atol=1e-3)


@pytest.mark.parametrize("offset", [1e3, 1e8])
def test_targets_far_from_zero_keep_their_digits_in_single_precision(offset):
    X, y = data(2 * BLOCK)
    for alpha, weights in ((1.0, None), (1.0, np.linspace(0.1, 2, len(X))), ("gcv", None)):
        near = model(alpha=alpha).fit(X, y, sample_weight=weights)
        far = model(alpha=alpha).fit(X, y + offset, sample_weight=weights)
        assert far.statistics_.precision is near.statistics_.precision
        assert far.alpha_ == pytest.approx(near.alpha_, rel=1e-6)
        np.testing.assert_allclose(far.predict(X) - offset, near.predict(X), rtol=0, atol=2e-3)


def test_a_constant_target_does_not_choose_the_penalty_of_others():
    X, y = data()
    beside = np.column_stack([y, np.full(len(y), 0.1)])
    for alpha in ("gcv", "loo"):
        alone, both = model(alpha=alpha).fit(X, y), model(alpha=alpha).fit(X, beside)
        assert both.alpha_ == alone.alpha_ < alone.alphas_[-1]


@pytest.mark.parametrize("alpha", ["gcv", "loo"])
def test_rows_without_weight_are_no_rows(alpha):
    X, y = data()
    y = y + np.random.default_rng(3).normal(size=len(y))
    weights = (np.arange(len(y)) < 30).astype(float)
    options = {"alpha": alpha, "alphas": np.geomspace(1e-3, 1e3, 200), "n_components": 32}
    whole = model(**options).fit(X, y, sample_weight=weights)
    rest = model(**options).fit(X[:30], y[:30])
    assert whole.alpha_ == rest.alpha_
    np.testing.assert_allclose(whole.criterion_, rest.criterion_, rtol=1e-6)


def test_a_row_that_outweighs_all_others_has_no_leave_one_out_error():
    X, y = data()
    weights = np.where(np.arange(len(y)) == 7, 1e20, 1.0)
    with pytest.raises(PrecisionError, match="leverage 1"):
        model(alpha="loo", alphas=[1e7]).fit(X, y, sample_weight=weights)


def test_a_refit_leaves_nothing_of_the_path_before():
    X, y = data()
    fitted = model(alpha="gcv").fit(X, y).set_params(alpha=1.0).fit(X, y)
    assert set(vars(fitted)) == set(vars(model(alpha=1.0).fit(X, y)))


def test_kernels_and_widths_come_in_scikit_learns_words():
    X, y = data()
    ours = model(gamma=0.125).fit(X, y).predict(X)
    np.testing.assert_allclose(
        model(kernel=RBF(length_scale=2.0), gamma="scale").fit(X, y).predict(X), ours, rtol=1e-9
    )
    np.testing.assert_allclose(model(gamma=np.full(3, 0.125)).fit(X, y).predict(X), ours, rtol=1e-9)
    median = np.median(pdist(X))  # of all pairs: there are few rows
    np.testing.assert_allclose(
        model(gamma="median").fit(X, y).predict(X),
        model(gamma=0.5 / median**2).fit(X, y).predict(X),
        rtol=1e-7,
    )


def test_works_where_scikit_learn_puts_it():
    X, y = data(200)
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), model(gamma="scale")),
        {"kernelridge__alpha": [1e-3, 1e3]},
        cv=3,
    ).fit(X, y)
    assert grid.best_params_ == {"kernelridge__alpha": 1e-3}
    copied = pickle.loads(pickle.dumps(grid))
    np.testing.assert_array_equal(copied.predict(X), grid.predict(X))
    fresh = clone(grid.best_estimator_[-1])
    assert not hasattr(fresh, "statistics_")


def test_what_is_wrong_is_named():
    X, y = data()
    with pytest.raises(ValueError, match="alpha='best' must be a number, 'gcv' or 'loo'"):
        model(alpha="best").fit(X, y)
    with pytest.raises(ValueError, match="alpha=-1"):
        model(alpha=-1.0).fit(X, y)
    with pytest.raises(ValueError, match="precision='half' must be"):
        model(precision="half").fit(X, y)
    with pytest.raises(ValueError, match="y has 2 targets; the first call had 1"):
        model().partial_fit(X, y).partial_fit(X, np.stack([y, y], axis=1))
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        model().fit(X, y, sample_weight=np.full(ROWS, -1.0))


def test_verbose_shows_a_bar_on_standard_error(capsys):
    X, y = data()
    model(verbose=1).fit(X, y)
    shown = capsys.readouterr()
    assert "rows" in shown.err
    assert shown.out == ""
    model().fit(X, y)
    assert capsys.readouterr().err == ""


def test_merge_adds_sums_taken_elsewhere():
    X, y = data()
    first = model(alpha=0.1).fit(X[:20], y[:20])
    first.predict(X)  # solved before
    merged = first.merge(accumulate(first.features_, X[20:], y[20:, None]))
    all_at_once = ridge(accumulate(first.features_, X, y[:, None]), 0.1)
    np.testing.assert_allclose(merged.coef_, all_at_once.coef[:, 0], rtol=1e-9, atol=1e-12)
    assert merged.statistics_.num_rows == len(X)
    with pytest.raises(ValueError, match=r"of 16 features and 2 targets, the model has 16 and 1; "):
        first.merge(accumulate(first.features_, X, np.stack([y, y], axis=1)))


def test_sums_and_features_fit_on_a_line():
    fitted = model().fit(*data())
    assert repr(fitted.statistics_).startswith(
        "GramStatistics(num_rows=60, weight=60, num_features=16"
    )
    assert repr(fitted.features_).startswith("BlockFeatures(RandomFeatures, 3 -> 16, Gaussian()")
