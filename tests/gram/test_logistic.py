"""Streamed logistic regression against scikit-learn's, on features in float64."""

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LogisticRegression

from bochner.gram.grid import BlockGrid
from bochner.gram.likelihood import Binary, Multinomial
from bochner.gram.logistic import LogisticPass, LogisticSums
from bochner.gram.majorised import majorised
from bochner.gram.newton import Penalty, newton
from bochner.gram.solve import PrecisionError
from bochner.gram.statistics import GramStatistics

ROWS, FEATURES = 230, 7


class Identity:
    num_features = FEATURES

    def __call__(self, rows):
        return rows


def problem(num_classes, seed=0, separation=1.5):
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(ROWS, FEATURES)) + 0.3
    truth = separation * rng.normal(size=(FEATURES, num_classes))
    noisy = phi @ truth + rng.gumbel(size=(ROWS, num_classes))
    weights = rng.integers(0, 4, size=ROWS).astype(np.float64)
    return phi, noisy.argmax(axis=1), weights


def streamed(phi, codes, weights, likelihood, *, curvature=False, block_rows=64):
    grid = BlockGrid(len(phi), block_rows)

    def sums(coefficients, curvature=curvature):
        one_pass = LogisticPass(Identity(), likelihood, coefficients, curvature, block_rows)
        parts = [one_pass(phi[g], codes[g], weights[g]) for g in grid.groups()]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    return sums


def reference(phi, codes, weights, alpha, fit_intercept):
    model = LogisticRegression(
        C=1 / alpha,
        fit_intercept=fit_intercept,
        tol=1e-13,
        max_iter=10_000,
        solver="newton-cholesky",
    )
    return model.fit(phi, codes, sample_weight=weights)


@pytest.mark.parametrize("likelihood", [Binary(), Multinomial(3)], ids=["binary", "multinomial"])
def test_gradient_is_that_of_the_loss(likelihood):
    phi, codes, weights = problem(max(2, likelihood.num_outputs))
    sums = streamed(phi, codes, weights, likelihood)
    point = np.random.default_rng(1).normal(size=(FEATURES + 1, likelihood.num_outputs))
    numeric = scipy.optimize.approx_fprime(
        point.ravel(), lambda flat: sums(flat.reshape(point.shape)).loss, 1e-6
    )
    np.testing.assert_allclose(sums(point).gradient.ravel(), numeric, rtol=1e-4, atol=1e-4)


def test_hessian_is_that_of_the_loss():
    phi, codes, weights = problem(2)
    sums = streamed(phi, codes, weights, Binary(), curvature=True)
    point = np.random.default_rng(1).normal(size=(FEATURES + 1, 1))
    found = sums(point).hessian
    for column in range(FEATURES + 1):
        ahead, behind = point.copy(), point.copy()
        ahead[column] += 1e-5
        behind[column] -= 1e-5
        slope = (sums(ahead).gradient - sums(behind).gradient)[:, 0] / 2e-5
        np.testing.assert_allclose(found[:, column], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.01, 3.0])
def test_newton_finds_scikit_learns_minimum(alpha, fit_intercept):
    phi, codes, weights = problem(2)
    sums = streamed(phi, codes, weights, Binary(), curvature=True)
    penalty = Penalty(alpha, fit_intercept)
    fit = newton(sums, np.zeros((FEATURES + 1, 1)), penalty, tol=1e-8, max_iter=50)
    model = reference(phi, codes, weights, alpha, fit_intercept)
    assert fit.converged
    assert fit.num_passes <= 12
    np.testing.assert_allclose(fit.coefficients[:-1, 0], model.coef_[0], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fit.coefficients[-1], model.intercept_, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.01, 3.0])
def test_majorised_finds_scikit_learns_minimum(alpha, fit_intercept):
    phi, codes, weights = problem(4)
    sums = streamed(phi, codes, weights, Multinomial(4))
    statistics = GramStatistics.of(phi, sample_weight=weights)
    fit = majorised(
        sums, statistics, Penalty(alpha, fit_intercept), num_classes=4, tol=1e-14, max_iter=500
    )
    model = reference(phi, codes, weights, alpha, fit_intercept)
    assert fit.converged
    np.testing.assert_allclose(fit.coefficients[:-1].sum(axis=1), 0, atol=1e-10)
    np.testing.assert_allclose(fit.coefficients[:-1].T, model.coef_, rtol=1e-5, atol=1e-6)
    centred = model.intercept_ - np.mean(model.intercept_)
    np.testing.assert_allclose(fit.coefficients[-1], centred, rtol=1e-5, atol=1e-6)


def test_majorised_is_not_slowed_by_features_far_from_zero():
    phi, codes, weights = problem(4)
    passes = []
    for offset in (0.0, 30.0):
        sums = streamed(phi + offset, codes, weights, Multinomial(4))
        statistics = GramStatistics.of(phi + offset, sample_weight=weights)
        fit = majorised(sums, statistics, Penalty(0.1), num_classes=4, tol=1e-9, max_iter=500)
        assert fit.converged
        passes.append(fit.num_passes)
    assert passes[1] <= passes[0] + 3, passes


def test_newton_reaches_separable_classes_of_huge_margins():
    phi = np.array([[-1e3], [-1.0], [1.0], [1e3]])
    codes, weights = np.array([0, 0, 1, 1]), np.ones(4)
    sums = streamed(phi, codes, weights, Binary(), curvature=True)
    fit = newton(sums, np.zeros((2, 1)), Penalty(1e-6), tol=1e-10, max_iter=200)
    gradient = sums(fit.coefficients).gradient + Penalty(1e-6).gradient(fit.coefficients)
    assert fit.converged
    assert abs(gradient).max() < 1e-8


def test_newton_halves_a_step_that_overshoots():
    phi, codes, weights = problem(2, separation=6.0)
    sums = streamed(phi, codes, weights, Binary(), curvature=True)
    start = np.full((FEATURES + 1, 1), 8.0)  # far out, where the quadratic model is wrong
    fit = newton(sums, start, Penalty(0.1), tol=1e-9, max_iter=100)
    model = reference(phi, codes, weights, 0.1, True)
    assert fit.num_passes > fit.num_iterations + 1
    np.testing.assert_allclose(fit.coefficients[:-1, 0], model.coef_[0], rtol=1e-6)


def test_sums_do_not_depend_on_the_blocks():
    phi, codes, weights = problem(3)
    point = np.random.default_rng(1).normal(size=(FEATURES + 1, 3))
    cut = streamed(phi, codes, weights, Multinomial(3), block_rows=50)(point)
    whole = streamed(phi, codes, weights, Multinomial(3), block_rows=1000)(point)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-12)
    np.testing.assert_allclose(cut.gradient, whole.gradient, rtol=1e-10, atol=1e-10)


def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(40_000, FEATURES)).astype(np.float32)
    codes, weights = rng.integers(0, 2, size=len(phi)), rng.uniform(size=len(phi))
    one_pass = LogisticPass(Identity(), Binary(), rng.normal(size=(FEATURES + 1, 1)), True)
    one = one_pass.over(phi, codes, weights, num_threads=1)
    three = one_pass.over(phi, codes, weights, num_threads=3)
    assert one.loss == three.loss
    np.testing.assert_array_equal(one.gradient, three.gradient)
    np.testing.assert_array_equal(one.hessian, three.hessian)


def test_an_indefinite_hessian_is_an_error_not_a_step():
    def sums(coefficients, curvature):
        return LogisticSums(1.0, np.ones((2, 1)), np.array([[-1e-3, 0.0], [0.0, 1.0]]))

    with pytest.raises(PrecisionError, match="alpha=0.0001"):
        newton(sums, np.zeros((2, 1)), Penalty(1e-4), tol=1e-8, max_iter=5)


def test_the_last_pass_of_newton_takes_no_hessian():
    phi, codes, weights = problem(2)
    sums, asked = streamed(phi, codes, weights, Binary()), []

    def counted(coefficients, curvature):
        asked.append(curvature)
        return sums(coefficients, curvature)

    fit = newton(counted, np.zeros((FEATURES + 1, 1)), Penalty(0.01), tol=1e-8, max_iter=50)
    assert fit.converged
    assert asked == [True] * (fit.num_passes - 1) + [False]


def test_newton_says_that_it_has_not_arrived():
    phi, codes, weights = problem(2)
    sums = streamed(phi, codes, weights, Binary(), curvature=True)
    fit = newton(sums, np.zeros((FEATURES + 1, 1)), Penalty(0.01), tol=1e-12, max_iter=1)
    assert not fit.converged
