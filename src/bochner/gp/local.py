"""Gaussian processes near a centre: Bayesian linear regression on local features, one model for each centre.

    K(x, y) ~ phi(x) . phi(y)   for x near c: the series about c, ended before degree T
    y_i = phi(x_i) . w + e_i,   w ~ N(0, o I),   e_i ~ N(0, o (alpha + P(T, |x_i-c|^2)))

P, the regularised incomplete gamma function, is what the ended series lacks of K(x, x) = 1. In a row it is
noise: without it rows far from c would be believed, although hardly any of their function is in phi. At a
new point it is variance: far from c the deviation returns to the prior's.

    mean    = phi(x) . w,   w = (G + alpha I)^-1 Phi' W y,   G = Phi' W Phi,   W_i = alpha / (alpha + P_i)
    variance of f / o = alpha phi(x)' (G + alpha I)^-1 phi(x) + P(T, |x-c|^2)

Reference:  Wacker and Filippone, Local Random Feature Approximations of the Gaussian Kernel, 2022; Snelson
            and Ghahramani, Sparse Gaussian Processes using Pseudo-inputs, 2006 (lacking variance as noise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize_scalar
from scipy.special import gammainc

from bochner.degree_plan import LARGEST_DEGREE, DegreePlan, monomials_below
from bochner.gram import BlockFeatures, Precision, group_statistics
from bochner.gram.threads import in_order
from bochner.kernels import Gaussian
from bochner.maclaurin import LocalFeatures
from bochner.request import Request

REACH = 5.0
"""Lengthscales beyond its cell up to which a model takes rows: exp(-REACH^2 / 2) = 4e-6 is the prior
correlation of what is left out."""
_REFERENCES = 64  # points of either side whose pairs a plan is optimised on
_SEARCHED = 8  # cells that alpha is chosen on
_GRID = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0)  # log10 of alpha

Array = NDArray[np.float64]


class Cells(NamedTuple):
    """Centres, the centre of every row, and how far the furthest row is from its own."""

    centres: Array
    nearest: NDArray[np.int64]
    radius: float


def farthest_points(points: Array, *, radius: float, most: int) -> Cells:
    """Centres so that no point is further than `radius` from the nearest, or `most` of them.

    The first is the point nearest to the mean, every other one the point furthest from all before it.

    Shapes:     points [n, d].
    Cost:       O(n d) a centre.
    Example:
        >>> farthest_points(np.array([[0.0], [1.0], [5.0]]), radius=1.0, most=9).centres.tolist()
        [[1.0], [5.0]]
    """
    chosen = int(np.square(points - points.mean(axis=0)).sum(axis=1).argmin())
    centres = [points[chosen]]
    squares = np.square(points - centres[0]).sum(axis=1)
    nearest = np.zeros(len(points), dtype=np.int64)
    while len(centres) < most and squares.max() > radius**2:
        centres.append(points[int(squares.argmax())])
        new = np.square(points - centres[-1]).sum(axis=1)
        closer = new < squares
        squares[closer], nearest[closer] = new[closer], len(centres) - 1
    return Cells(np.stack(centres), nearest, float(np.sqrt(squares.max())))


@dataclass(frozen=True, eq=False)
class LocalModel:
    """The posterior of one centre's weights.

    Shapes:     factor L [m, m] of G + alpha I, coef [m].
    """

    features: BlockFeatures
    alpha: float
    factor: Array
    coef: Array

    def mean(self, points: Array) -> Array:
        """Posterior mean, [n]."""
        mean: Array = self.features(points) @ self.coef
        return mean

    def variance(self, points: Array) -> Array:
        """Posterior variance of f in units of the outputscale, [n]."""
        return self.alpha * self._weight_variance(points) + lacking(self.features, points)

    def left_out(self, points: Array, targets: Array) -> LeftOut:
        """Predictions of training rows by the model without them."""
        noise = self.alpha + lacking(self.features, points)
        leverage = self.alpha / noise * self._weight_variance(points)
        residuals = targets - self.mean(points)
        return LeftOut(residuals / (1.0 - leverage), noise / (1.0 - leverage))

    def _weight_variance(self, points: Array) -> Array:
        """phi' (G + alpha I)^-1 phi, [n]."""
        solved = solve_triangular(self.factor, self.features(points).T, lower=True)
        squares: Array = np.square(solved).sum(axis=0)
        return squares


def lacking(features: BlockFeatures, points: Array) -> Array:
    """P(T, |x-c|^2): the part of K(x, x) = 1 that the degrees below T do not have, [n]."""
    phi = features.feature_map
    assert isinstance(phi, LocalFeatures)
    squares = np.square(points - phi.centre.numpy()).sum(axis=1)
    missing: Array = gammainc(phi.plan.first_random, squares)
    return missing


@dataclass(frozen=True, eq=False)
class LocalCell:
    """A centre's features, the rows whose nearest centre it is, and those within its reach."""

    features: BlockFeatures
    cell: NDArray[np.int64]
    near: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        centre: Array,
        points: Array,
        cell: NDArray[np.int64],
        *,
        num_features: int,
        generator: torch.Generator,
    ) -> LocalCell:
        """For a centre [d], from all points [n, d] in lengthscales."""
        distances = np.sqrt(np.square(points - centre).sum(axis=1))
        near = np.flatnonzero(distances <= distances[cell].max() + REACH)
        inner, outer = (torch.from_numpy(_some(points[rows]) - centre) for rows in (cell, near))
        count = min(num_features, monomials_below(LARGEST_DEGREE, points.shape[1]))
        plan = DegreePlan.optimal(inner, outer, count, unbiased=False)
        request = Request(
            dim=points.shape[1],
            num_features=count,
            kernel=Gaussian(),
            generator=generator,
            dtype=torch.float64,
        )
        phi = LocalFeatures(request, torch.from_numpy(centre.copy()), plan)
        return cls(BlockFeatures(phi, dtype=np.float64), cell, near)

    def fitted(self, points: Array, targets: Array, alpha: float) -> LocalModel:
        """The posterior given the rows within reach of points [n, d] with targets [n] of mean zero.

        Call it within `in_order`, as everything that multiplies in several threads.
        """
        rows = points[self.near]
        sums = group_statistics(
            self.features,
            rows,
            targets[self.near, None],
            sample_weight=alpha / (alpha + lacking(self.features, rows)),
            precision=Precision.DOUBLE,
        )
        factor = cholesky(sums.gram + alpha * np.eye(len(sums.gram)), lower=True)
        return LocalModel(self.features, alpha, factor, cho_solve((factor, True), sums.cross[:, 0]))


class LeftOut(NamedTuple):
    """Left-out rows: errors [n] of their predictions, and variances [n] in units of the outputscale."""

    errors: Array
    variances: Array

    @classmethod
    def joined(cls, parts: Sequence[LeftOut]) -> LeftOut:
        """The rows of all parts."""
        return cls(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    @property
    def outputscale(self) -> float:
        """The outputscale of the highest predictive density."""
        return float(np.mean(self.errors**2 / self.variances))

    @property
    def log_density(self) -> float:
        """Mean log predictive density of a row, at that outputscale; inf for constant targets."""
        if self.outputscale == 0.0:
            return math.inf
        logs = np.log(2.0 * np.pi * self.outputscale * self.variances)
        return float(-0.5 * (logs.mean() + 1.0))


def fit_cells(
    cells: Sequence[LocalCell], points: Array, targets: Array, alpha: float
) -> tuple[list[LocalModel], LeftOut]:
    """The models of cells, on all threads, and every row of the cells left out of its own model."""

    def work(cell: LocalCell) -> tuple[LocalModel, LeftOut]:
        model = cell.fitted(points, targets, alpha)
        return model, model.left_out(points[cell.cell], targets[cell.cell])

    models, parts = zip(*(found for _, found in in_order(work, list(cells))), strict=True)
    return list(models), LeftOut.joined(parts)


def best_alpha(cells: Sequence[LocalCell], points: Array, targets: Array) -> float:
    """The alpha of the highest predictive density of left-out rows, on at most 8 of the cells.

    A coarse grid, then a search between the neighbours of its best.
    """
    kept = np.linspace(0, len(cells) - 1, min(len(cells), _SEARCHED)).round().astype(int)
    some = [cells[int(index)] for index in kept]

    def loss(log_alpha: float) -> float:
        return -fit_cells(some, points, targets, 10.0**log_alpha)[1].log_density

    best = int(np.argmin([loss(log_alpha) for log_alpha in _GRID]))
    bounds = _GRID[max(best - 1, 0)], _GRID[min(best + 1, len(_GRID) - 1)]
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.1})
    return float(10.0**found.x)


def _some(points: Array) -> Array:
    """At most _REFERENCES points, evenly spaced."""
    kept = np.linspace(0, len(points) - 1, min(len(points), _REFERENCES)).round().astype(int)
    some: Array = points[kept]
    return some
