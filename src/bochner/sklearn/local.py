"""Gaussian process regression by local features: one small model for every part of the inputs."""

from __future__ import annotations

import numbers
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from bochner.gp.local import LocalCell, best_alpha, farthest_points, fit_cells
from bochner.sklearn.features import build_features


class LocalGaussianProcess(RegressorMixin, BaseEstimator):
    """Gaussian process regression with a Gaussian kernel, approximated near many centres at once.

    A kernel that varies quickly over the inputs (a small lengthscale) takes very many global random
    features. Here every centre has `n_components` features of its own, a Taylor series of the kernel about
    it, and predicts only what is close to it. Centres are the inputs' farthest points.

    Parameters:
        n_components: features of one centre, at most (one input column needs 24).
        radius: in lengthscales; centres are added until every training row is that close to one.
        max_centers: no more than so many; a warning says when that stops before `radius` is reached.
        gamma: "scale", "median", a number or one for each column: exp(-gamma |x-y|^2).
        alpha: noise variance / outputscale; "loo" takes the best between 1e-8 and 100 by the predictive
            density of left-out rows, in at most 8 cells.
        random_state: an int for the same features again.
    Attributes:
        centers_, radius_: [c, d], and how far a row may be, in lengthscales.
        alpha_, outputscale_, noise_, y_mean_: what was found.
        log_predictive_density_: mean over left-out rows, in nats; for choosing gamma.
    Error:      predictions jump where cells meet, by about the error of the series at the radius; the
                error is small while n_components exceeds the monomials that matter, so: few columns (d <= 5).
    Numerics:   float64 throughout.
    Cost:       for every centre n' m^2 + m^3 / 3, n' rows within radius + 5 lengthscales; alpha="loo": about
                15 times that for 8 centres.
    Raises:     ValueError, naming the parameter.
    Reference:  Wacker and Filippone, Local Random Feature Approximations of the Gaussian Kernel, 2022.
    Differs:    centres cover the training rows, not the test rows; each model takes the rows within reach
                of its cell, not all; the deviation holds what the ended series lacks.
    Example:
        >>> X = np.linspace(0, 10, 400)[:, None]
        >>> y = np.sin(8 * X[:, 0]) + 0.1 * np.cos(97 * np.arange(400))
        >>> gp = LocalGaussianProcess(gamma=8.0, random_state=0).fit(X, y)
        >>> mean, std = gp.predict([[5.01], [30.0]], return_std=True)
        >>> bool(abs(mean[0] - np.sin(8 * 5.01)) < 0.1), round(gp.noise_ ** 0.5, 1)
        (True, 0.1)
        >>> bool(abs(mean[1] - gp.y_mean_) < 1e-6), round(float(std[1]) / gp.outputscale_ ** 0.5, 6)  # prior
        (True, 1.0)
    """

    def __init__(
        self,
        *,
        n_components: int = 256,
        radius: float = 1.5,
        max_centers: int = 64,
        gamma: Any = "scale",
        alpha: Any = "loo",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.radius = radius
        self.max_centers = max_centers
        self.gamma = gamma
        self.alpha = alpha
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> LocalGaussianProcess:
        """Place the centres and fit their models: X [n, d], y [n]."""
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        random = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
        # two columns are never looked at: what is wanted is gamma's meaning, the offset and lengthscales
        self._units = build_features(
            X, n_components=2, gamma=self.gamma, random_state=random, dtype=np.float64
        )
        points = self._scaled(X)
        self.y_mean_ = float(np.mean(y))
        targets = np.asarray(y, dtype=np.float64) - self.y_mean_
        cells = farthest_points(points, radius=float(self.radius), most=int(self.max_centers))
        self._centres, self.radius_ = cells.centres, cells.radius
        offset = 0.0 if self._units.offset is None else self._units.offset
        self.centers_ = cells.centres / self._units.inverse_lengthscales + offset
        if self.radius_ > self.radius:
            warnings.warn(
                f"max_centers={self.max_centers} centres leave rows {self.radius_:.3g} lengthscales away"
                f" from all of them, radius={self.radius} was asked for: predictions there are poor and"
                " their deviations large. Take more centres, or a smaller gamma.",
                ConvergenceWarning,
                stacklevel=2,
            )
        local = [
            LocalCell.of(
                centre,
                points,
                np.flatnonzero(cells.nearest == index),
                num_features=int(self.n_components),
                generator=generator,
            )
            for index, centre in enumerate(cells.centres)
        ]
        chosen = isinstance(self.alpha, str)
        self.alpha_ = best_alpha(local, points, targets) if chosen else float(self.alpha)
        self._models, left_out = fit_cells(local, points, targets, self.alpha_)
        self.outputscale_ = left_out.outputscale
        self.noise_ = self.alpha_ * self.outputscale_
        self.log_predictive_density_ = left_out.log_density
        return self

    def _scaled(self, X: Any) -> NDArray[np.float64]:
        """Rows in units of the lengthscales."""
        return self._units.scaled(X).astype(np.float64, copy=False)

    def _check_parameters(self) -> None:
        for name in ("n_components", "max_centers"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1.")
        if not (isinstance(self.radius, numbers.Real) and self.radius > 0):
            raise ValueError(f"radius={self.radius!r} must be a positive number of lengthscales.")
        fixed = isinstance(self.alpha, numbers.Real) and self.alpha > 0
        if not (fixed or (isinstance(self.alpha, str) and self.alpha == "loo")):
            raise ValueError(f"alpha={self.alpha!r} must be 'loo' or a positive number.")

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Mean of the noise-free function, with its standard deviation if asked for.

        An observation's deviation is sqrt(std**2 + noise_).

        Shapes:     X [t, d] -> mean [t]; std [t].
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        points = self._scaled(X)
        squares = [np.square(points - centre).sum(axis=1) for centre in self._centres]
        nearest = np.argmin(squares, axis=0)
        mean, variance = np.empty(len(points)), np.empty(len(points))
        for index in np.unique(nearest):
            some = nearest == index
            mean[some] = self._models[index].mean(points[some])
            if return_std:
                variance[some] = self._models[index].variance(points[some])
        mean += self.y_mean_
        return (mean, np.sqrt(self.outputscale_ * variance)) if return_std else mean
