"""Ridge and its path against scikit-learn and brute-force refits; the precision rule."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bochner.gram import (
    GramStatistics,
    Precision,
    PrecisionError,
    Spectrum,
    lowest_alpha,
    ridge,
)

ALPHAS = [1e-3, 0.1, 10.0]


def problem(n: int = 60, m: int = 7, k: int = 2, seed: int = 0):
    random = np.random.default_rng(seed)
    phi = random.normal(size=(n, m)) + 2.0
    return phi, random.normal(size=(n, k)) + 5.0, random.uniform(0.1, 2, size=n)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_ridge_and_path_are_scikit_learn_s(intercept: bool, weighted: bool) -> None:
    phi, y, w = problem()
    w = w if weighted else None
    sums = GramStatistics.of(phi, y, w)
    path = Spectrum.of(sums, fit_intercept=intercept)
    for i, alpha in enumerate(ALPHAS):
        truth = Ridge(alpha=alpha, fit_intercept=intercept).fit(phi, y, sample_weight=w)
        found = ridge(sums, alpha, fit_intercept=intercept)
        for coef, b in (
            (found.coef, found.intercept),
            (path.coef(ALPHAS)[i], path.intercept(ALPHAS)[i]),
        ):
            np.testing.assert_allclose(coef, truth.coef_.T, atol=1e-10)
            np.testing.assert_allclose(b, truth.intercept_, atol=1e-9)
        residual = y - truth.predict(phi)
        weights = np.ones(60) if w is None else w
        np.testing.assert_allclose(path.residual_squares(alpha)[0], weights @ residual**2)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_leave_one_out_is_refitting(intercept: bool, weighted: bool) -> None:
    phi, y, w = problem(n=25)
    w = w if weighted else None
    weights = np.ones(25) if w is None else w
    path = Spectrum.of(GramStatistics.of(phi, y, w), fit_intercept=intercept)
    found = path.leave_one_out(ALPHAS, lambda rows: rows, phi, y, w)
    for i, alpha in enumerate(ALPHAS):
        errors = np.empty_like(y)
        for row in range(25):
            keep = np.arange(25) != row
            model = Ridge(alpha=alpha, fit_intercept=intercept)
            model.fit(phi[keep], y[keep], sample_weight=None if w is None else w[keep])
            errors[row] = (y[row] - model.predict(phi[row : row + 1])[0]) ** 2
        np.testing.assert_allclose(found[i], weights @ errors / weights.sum(), rtol=1e-8)


def test_effective_dof_and_gcv_are_those_of_the_hat_matrix() -> None:
    phi, y, _ = problem()
    path = Spectrum.of(GramStatistics.of(phi, y))
    centred = phi - phi.mean(0)
    for alpha in ALPHAS:
        hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(7), centred.T) + 1 / 60
        assert path.effective_dof(alpha)[0] == pytest.approx(np.trace(hat))
        rss = ((y - hat @ y) ** 2).sum(0)
        np.testing.assert_allclose(path.gcv(alpha)[0], 60 * rss / (60 - np.trace(hat)) ** 2)


def test_log_evidence_is_the_dense_one() -> None:
    phi, y, _ = problem()
    path = Spectrum.of(GramStatistics.of(phi, y), fit_intercept=False)
    for noise, scale in ((0.3, 1.0), (2.0, 0.5)):
        covariance = scale * phi @ phi.T + noise * np.eye(60)
        _, logdet = np.linalg.slogdet(covariance)
        misfit = (y * np.linalg.solve(covariance, y)).sum(0)
        expected = -0.5 * (misfit + logdet + 60 * np.log(2 * np.pi))
        np.testing.assert_allclose(path.log_evidence(noise, scale), expected, rtol=1e-10)
    with pytest.raises(ValueError, match="noise=0"):
        path.log_evidence(0)
    with pytest.raises(ValueError, match="without intercept"):
        Spectrum.of(GramStatistics.of(phi, y)).log_evidence(1.0)


def test_zero_penalty_is_least_squares_where_the_features_allow_it() -> None:
    phi, y, _ = problem()
    sums = GramStatistics.of(phi, y)
    design = np.column_stack([phi, np.ones(60)])
    truth = np.linalg.lstsq(design, y, rcond=None)[0]
    found = ridge(sums, 0.0)
    np.testing.assert_allclose(found.coef, truth[:-1], atol=1e-9)
    np.testing.assert_allclose(found.intercept, truth[-1], atol=1e-9)
    np.testing.assert_allclose(Spectrum.of(sums).coef(0.0)[0], truth[:-1], atol=1e-9)


def smooth(m: int = 100, n: int = 4000):
    """Features whose Gram matrix has eigenvalues down to nothing."""
    x = np.random.default_rng(0).uniform(-1, 1, size=(n, 1))
    grid = np.linspace(-1.2, 1.2, m)
    phi = np.exp(-0.5 * (x - grid) ** 2 / 0.25) / m**0.5
    return phi.astype(np.float32), np.sin(3 * x)


def test_a_penalty_below_what_the_sums_can_bear_is_refused_not_clipped() -> None:
    phi, y = smooth()
    single = GramStatistics.of(phi, y, precision=Precision.SINGLE)
    double = GramStatistics.of(phi, y, precision=Precision.DOUBLE)
    largest = np.linalg.eigvalsh(double.gram)[-1]
    assert lowest_alpha(single) == pytest.approx(1e-8 * largest, rel=0.02)
    assert lowest_alpha(double) == pytest.approx(1e-14 * largest, rel=0.02)
    alpha = 1e-10 * largest
    for use in (lambda: ridge(single, alpha), lambda: Spectrum.of(single).coef(alpha)):
        with pytest.raises(PrecisionError, match="float32 can bear.*or take the sums in float64"):
            use()
    design = phi.astype(np.float64)
    design = design - design.mean(0)
    truth = np.linalg.solve(design.T @ design + alpha * np.eye(100), design.T @ (y - y.mean()))
    for coef in (ridge(double, alpha).coef, Spectrum.of(double).coef(alpha)[0]):
        prediction = design @ coef
        np.testing.assert_allclose(prediction, design @ truth, atol=1e-6)
    with pytest.raises(PrecisionError, match="float64 can bear.*use fewer features"):
        ridge(double, 0.0)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_what_is_no_penalty_is_refused(bad: float) -> None:
    phi, y, _ = problem()
    sums = GramStatistics.of(phi, y)
    with pytest.raises(ValueError, match="must be a finite number"):
        ridge(sums, bad)
    with pytest.raises(ValueError, match="must be a finite number"):
        Spectrum.of(sums).coef([1.0, bad])
    with pytest.raises(ValueError, match="expected a list of penalties"):
        Spectrum.of(sums).coef([])
