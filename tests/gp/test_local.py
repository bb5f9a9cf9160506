"""Local models: against dense formulas with noise that differs from row to row, and refits without a row."""

import numpy as np
import pytest
import torch
from scipy.special import gammainc

from bochner.gp.local import LeftOut, LocalCell, best_alpha, farthest_points, fit_cells, lacking


@pytest.fixture
def data():
    """200 points in a square of 3 lengthscales, one function."""
    random = np.random.default_rng(0)
    points = random.uniform(-1.5, 1.5, (200, 2))
    return points, np.sin(2 * points[:, 0]) * points[:, 1] + 0.1 * random.normal(size=200)


def cell_of(points, rows, num_features=40):
    generator = torch.Generator().manual_seed(0)
    return LocalCell.of(
        points[rows].mean(0), points, rows, num_features=num_features, generator=generator
    )


def test_farthest_points_by_hand():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [10.0, 0.0], [4.0, 0.0]])
    cells = farthest_points(points, radius=1.0, most=9)
    assert cells.centres[:, 0].tolist() == [4.0, 10.0, 0.0]
    assert cells.nearest.tolist() == [2, 2, 1, 1, 0]
    assert cells.radius == 1.0
    few = farthest_points(points, radius=1.0, most=2)
    assert (len(few.centres), few.radius) == (2, 4.0)


@pytest.mark.parametrize("dim", [1, 3])
def test_every_point_is_within_the_radius_of_its_nearest_centre(dim):
    points = np.random.default_rng(1).normal(size=(500, dim))
    cells = farthest_points(points, radius=0.8, most=500)
    distances = np.linalg.norm(points[:, None] - cells.centres, axis=-1)
    assert (distances.argmin(axis=1) == cells.nearest).all()
    assert distances.min(axis=1).max() == pytest.approx(cells.radius)
    assert cells.radius <= 0.8
    apart = np.linalg.norm(cells.centres[:, None] - cells.centres, axis=-1)
    assert apart[np.triu_indices(len(apart), 1)].min() > 0.8, "no centre without need"


def test_what_the_series_lacks(data):
    points, _ = data
    cell = cell_of(points, np.arange(50))
    phi = cell.features.feature_map
    squares = np.square(points - phi.centre.numpy()).sum(1)
    assert np.allclose(lacking(cell.features, points), gammainc(phi.plan.first_random, squares))
    assert 4 < phi.plan.first_random < 24


@pytest.mark.parametrize("alpha", [1e-3, 0.5])
def test_against_the_dense_formula(data, alpha):
    """y = phi w + e with noise alpha + lacking, conditioned in the space of rows."""
    points, y = data
    cell = cell_of(points, np.arange(50))
    model = cell.fitted(points, y, alpha)
    assert len(cell.near) == 200
    test = np.random.default_rng(2).uniform(-2, 2, (30, 2))
    phi, new = cell.features(points), cell.features(test)
    gram = phi @ phi.T + np.diag(alpha + lacking(cell.features, points))
    weights = np.linalg.solve(gram, phi @ new.T)
    assert np.allclose(model.mean(test), weights.T @ y, atol=1e-8)
    left = np.square(new).sum(1) - np.einsum("ij,ij->j", phi @ new.T, weights)
    assert np.allclose(model.variance(test), left + lacking(cell.features, test), atol=1e-9)


def test_left_out_rows_are_refits_without_them(data):
    points, y = data
    rows = np.arange(50)
    alpha = 0.05
    cell = cell_of(points, rows)
    found = cell.fitted(points, y, alpha).left_out(points[rows], y[rows])
    for index in (0, 17, 49):
        others = np.delete(np.arange(200), index)
        without = LocalCell(cell.features, cell.cell, others).fitted(points, y, alpha)
        at = points[index : index + 1]
        assert found.errors[index] == pytest.approx(y[index] - without.mean(at)[0], rel=1e-8)
        assert found.variances[index] == pytest.approx(without.variance(at)[0] + alpha, rel=1e-8)


def test_densities_and_outputscales():
    errors, variances = np.random.default_rng(3).normal(size=(2, 100))
    variances = np.exp(variances)
    found = LeftOut(errors, variances)
    scale = found.outputscale

    def density(o):
        total = o * variances
        return float(-0.5 * np.mean(np.log(2 * np.pi * total) + errors**2 / total))

    assert found.log_density == pytest.approx(density(scale))
    assert density(scale) > max(density(0.9 * scale), density(1.1 * scale))
    assert LeftOut(np.zeros(3), np.ones(3)).log_density == np.inf


def test_the_best_alpha_is_the_noise(data):
    points, y = data
    cells = farthest_points(points, radius=1.2, most=99)
    local = [cell_of(points, np.flatnonzero(cells.nearest == c)) for c in range(len(cells.centres))]
    alpha = best_alpha(local, points, y)
    _, left_out = fit_cells(local, points, y, alpha)
    assert (alpha * left_out.outputscale) ** 0.5 == pytest.approx(0.1, rel=0.2)
    densities = [fit_cells(local, points, y, a)[1].log_density for a in (alpha / 10, 10 * alpha)]
    assert left_out.log_density > max(densities)


def test_rows_out_of_reach_are_left_out():
    points = np.linspace(0.0, 30.0, 301)[:, None]
    cell = cell_of(points, np.arange(20))
    assert len(cell.near) == 61 or points[cell.near].max() == pytest.approx(0.95 * 2 + 5.0, abs=0.2)
    assert cell.features.num_features == 24, "one column has no more monomials than degrees"
