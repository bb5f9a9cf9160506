"""KernelClassifier against scikit-learn's RidgeClassifier and LogisticRegression on the same features."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from bochner.gram import Precision, PrecisionError
from bochner.gram.likelihood import Binary
from bochner.gram.logistic import LogisticPass
from bochner.sklearn.kernel_classifier import KernelClassifier
from tests.gram import dense

ROWS, BLOCK = 150, 8192


def data(num_classes, count=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, 3))
    scores = np.sin(2 * X @ rng.normal(size=(3, num_classes))) + 0.5 * rng.gumbel(
        size=(count, num_classes)
    )
    names = np.array(["d", "a", "c", "b"])[:num_classes]
    return X, names[scores.argmax(axis=1)], rng.integers(0, 4, size=count).astype(np.float64)


def model(loss="ridge", **parameters):
    return KernelClassifier(
        loss, **{"n_components": 16, "gamma": 0.1, "random_state": 0, **parameters}
    )


@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 3.0}])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_ridge_is_scikit_learns(num_classes, class_weight):
    X, y, weights = data(num_classes)
    if class_weight == "balanced":
        weights = np.ones(ROWS)  # scikit-learn's ridge counts rows here, whatever their weights
    fitted = model(alpha=0.5, class_weight=class_weight).fit(X, y, sample_weight=weights)
    phi = fitted.features_(X)
    theirs = RidgeClassifier(alpha=0.5, class_weight=class_weight, solver="svd")
    theirs.fit(phi, y, sample_weight=weights)
    np.testing.assert_array_equal(fitted.classes_, theirs.classes_)
    theirs_coef, theirs_intercept = np.atleast_2d(theirs.coef_), np.ravel(theirs.intercept_)
    np.testing.assert_allclose(fitted.coef_, theirs_coef, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fitted.intercept_, theirs_intercept, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(
        fitted.decision_function(X), theirs.decision_function(phi), rtol=1e-7, atol=1e-9
    )
    np.testing.assert_array_equal(fitted.predict(X), theirs.predict(phi))


@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 3.0}])
@pytest.mark.parametrize(("num_classes", "tolerance"), [(2, 1e-7), (4, 1e-5)])
def test_logistic_is_scikit_learns(num_classes, tolerance, class_weight):
    X, y, weights = data(num_classes)
    fitted = model("logistic", alpha=0.2, class_weight=class_weight, tol=1e-13).fit(X, y, weights)
    phi = fitted.features_(X)
    theirs = LogisticRegression(
        C=1 / 0.2, class_weight=class_weight, tol=1e-13, max_iter=10_000, solver="newton-cholesky"
    ).fit(phi, y, sample_weight=weights)
    np.testing.assert_allclose(fitted.coef_, theirs.coef_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        fitted.predict_proba(X), theirs.predict_proba(phi), rtol=tolerance, atol=tolerance
    )
    np.testing.assert_array_equal(fitted.predict(X), theirs.predict(phi))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_default_tolerances_give_probabilities_to_four_digits(num_classes):
    X, y, _ = data(num_classes)
    fitted = model("logistic", alpha=0.01).fit(X, y)
    phi = fitted.features_(X)
    theirs = LogisticRegression(C=100, tol=1e-13, max_iter=10_000, solver="newton-cholesky")
    theirs.fit(phi, y)
    np.testing.assert_allclose(
        fitted.predict_proba(X), theirs.predict_proba(phi), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("num_classes", [2, 4])
def test_probabilities_are_probabilities(num_classes):
    X, y, _ = data(num_classes)
    fitted = model("logistic").fit(X, y)
    probabilities = fitted.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.log(probabilities), fitted.predict_log_proba(X), rtol=1e-10)
    np.testing.assert_array_equal(fitted.classes_[probabilities.argmax(axis=1)], fitted.predict(X))


def test_what_a_loss_cannot_do_is_not_there():
    ridge, logistic = model(), model("logistic")
    assert not hasattr(ridge, "predict_proba")
    assert not hasattr(ridge, "predict_log_proba")
    assert not hasattr(logistic, "partial_fit")
    assert not hasattr(logistic, "path")
    assert hasattr(ridge, "partial_fit")
    assert hasattr(logistic, "predict_proba")


@pytest.mark.parametrize("loss", ["ridge", "logistic"])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_weights_count_as_repetitions(loss, num_classes):
    X, y, weights = data(num_classes)
    times = weights.astype(int)
    weighted = model(loss, gamma="scale", tol=1e-14).fit(X, y, sample_weight=weights)
    repeated = model(loss, gamma="scale", tol=1e-14).fit(
        np.repeat(X, times, axis=0), np.repeat(y, times)
    )
    np.testing.assert_allclose(
        weighted.decision_function(X), repeated.decision_function(X), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("loss", ["ridge", "logistic"])
def test_sparse_rows_are_the_same_rows(loss):
    X, y, _ = data(3)
    X[X < 0] = 0
    dense_fit, sparse_fit = model(loss).fit(X, y), model(loss).fit(sparse.csr_array(X), y)
    np.testing.assert_allclose(
        sparse_fit.decision_function(sparse.csr_array(X)),
        dense_fit.decision_function(X),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("num_classes", [2, 4])
def test_partial_fit_adds_rows(num_classes):
    X, y, weights = data(num_classes)
    weight_of = {"a": 2.0}
    streamed = model(precision="double", class_weight=weight_of)
    for start in range(0, ROWS, 40):
        part = slice(start, start + 40)
        classes = np.unique(y) if start == 0 else None
        streamed.partial_fit(X[part], y[part], classes=classes, sample_weight=weights[part])
    phi = streamed.features_(X)
    theirs = RidgeClassifier(class_weight=weight_of, solver="svd").fit(phi, y, weights)
    np.testing.assert_allclose(
        streamed.decision_function(X), theirs.decision_function(phi), rtol=1e-8, atol=1e-9
    )


def test_partial_fit_names_what_is_wrong():
    X, y, _ = data(4)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model().partial_fit(X, y)
    first = model().partial_fit(X, y, classes=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"y has classes \['e'\] beyond those of the first call"):
        first.partial_fit(X[:1], ["e"])
    with pytest.raises(ValueError, match="are not those of the first call"):
        first.partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match="'balanced' needs the frequencies of all rows"):
        model(class_weight="balanced").partial_fit(X, y, classes=["a", "b", "c", "d"])


def test_penalty_of_ridge_by_leave_one_out():
    X, y, _ = data(2)
    fitted = model(alpha="loo", alphas=[1e-3, 1.0, 1e3]).fit(X, y)
    targets = np.where(y == fitted.classes_[1], 1.0, -1.0)
    expected = [
        dense.leave_one_out(fitted.features_(X), targets, alpha).mean() for alpha in fitted.alphas_
    ]
    np.testing.assert_allclose(fitted.criterion_, expected, rtol=1e-8)
    assert fitted.path([1.0]).coef.shape == (1, 16, 1)


def many_rows():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(BLOCK + 500, 2))
    return X, (np.sin(3 * X[:, 0]) * X[:, 1] + 0.2 * rng.normal(size=len(X)) > 0).astype(int)


def gradient_of(fitted, X, y, alpha):
    """Gradient of the penalised loss at the fitted coefficients, of the features that it used."""
    coefficients = np.vstack([fitted.coef_.T, fitted.intercept_[None]])
    one_pass = LogisticPass(fitted.features_, Binary(), coefficients)
    slope = one_pass(X, y).gradient
    slope[:-1] += alpha * coefficients[:-1]
    return slope


def test_single_precision_moves_the_steps_and_not_the_minimum():
    X, y = many_rows()
    single = model("logistic", n_components=64, gamma=0.5).fit(X, y)
    double = model("logistic", n_components=64, gamma=0.5, precision="double").fit(X, y)
    assert single.features_.dtype == np.float32
    assert abs(gradient_of(single, X, y, 1.0)).max() < 1e-4 * len(X) ** 0.5
    np.testing.assert_allclose(single.predict_proba(X), double.predict_proba(X), rtol=0, atol=1e-4)


def test_a_penalty_that_single_precision_does_not_bear_is_solved_in_double_precision_or_refused():
    X, y = many_rows()
    alpha = 1e-7
    parameters = {"n_components": 64, "gamma": 0.5, "alpha": alpha}
    with pytest.raises(PrecisionError, match="precision='double'"):
        model("logistic", precision="single", **parameters).fit(X, y)
    fitted = model("logistic", **parameters).fit(X, y)
    assert fitted.features_.dtype == np.float64
    assert abs(gradient_of(fitted, X, y, alpha)).max() < 1e-3
    with pytest.raises(PrecisionError, match="precision='double'"):
        model(precision="single", **parameters).fit(X, y)
    assert model(**parameters).fit(X, y).statistics_.precision is Precision.DOUBLE


def test_what_is_wrong_is_named():
    X, y, _ = data(3)
    with pytest.raises(ValueError, match="loss='hinge' must be 'ridge' or 'logistic'"):
        model("hinge").fit(X, y)
    with pytest.raises(
        ValueError, match="alpha='gcv' must be a finite number >= 0 for loss='logistic'"
    ):
        model("logistic", alpha="gcv").fit(X, y)
    with pytest.raises(ValueError, match="one class"):
        model().fit(X, np.zeros(ROWS))
    with pytest.raises(ValueError, match=r"positive weight; \['a'\] have none"):
        model("logistic").fit(X, y, sample_weight=(y != "a").astype(float))
    with pytest.raises(ValueError, match=r"class_weight has \['z'\]"):
        model(class_weight={"z": 1.0}).fit(X, y)


@pytest.mark.parametrize("alpha", [np.inf, np.nan, None, -1.0, "gcv"])
def test_penalties_of_logistic_are_finite_numbers(alpha):
    X, y = np.arange(6.0)[:, None], [0, 1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"alpha=.* must be a finite number"):
        KernelClassifier("logistic", alpha=alpha).fit(X, y)


def test_a_refit_with_another_loss_leaves_no_sums():
    X, y = np.arange(6.0)[:, None], [0, 1, 0, 1, 0, 1]
    fitted = KernelClassifier(alpha="gcv", random_state=0).fit(X, y)
    fitted.set_params(loss="logistic", alpha=1.0).fit(X, y)
    assert not {"statistics_", "alphas_", "criterion_"} & set(vars(fitted))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_minimum_that_is_not_reached_is_a_warning(num_classes):
    X, y, _ = data(num_classes)
    with pytest.warns(ConvergenceWarning, match="1 steps did not reach tol=1e-12"):
        model("logistic", alpha=1e-3, max_iter=1, tol=1e-12).fit(X, y)


@pytest.mark.parametrize("loss", ["ridge", "logistic"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_rows_of_dask_give_the_same_bits(loss, num_classes):
    da = pytest.importorskip("dask.array")
    X, y, weights = data(num_classes, count=BLOCK + 300)
    distant = da.from_array(X, chunks=(3000, 3))
    fitted = model(loss, class_weight="balanced").fit(X, y, sample_weight=weights)
    elsewhere = model(loss, class_weight="balanced").fit(
        distant, da.from_array(y, chunks=5000), da.from_array(weights, chunks=2000)
    )
    np.testing.assert_array_equal(elsewhere.classes_, fitted.classes_)
    np.testing.assert_array_equal(elsewhere.coef_, fitted.coef_)
    predicted = elsewhere.predict(distant)
    assert hasattr(predicted, "dask")
    np.testing.assert_array_equal(predicted.compute(), fitted.predict(X))
