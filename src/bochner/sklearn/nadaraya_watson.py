"""`NadarayaWatson`: regression by local averages, from two sums of features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from bochner.gram.feature_sums import FeatureSums, accumulate_sums
from bochner.sklearn.mean_embedding import checked_weights
from bochner.sklearn.model import FeatureParameters
from bochner.sklearn.random_features import features_dtype
from bochner.sklearn.rows import FLOATS, lazy_on_dask, validated

_BLOCK = 4096


class VanishingDenominatorWarning(UserWarning):
    """Some points have no neighbours that the features can see: their prediction is nan."""


class NadarayaWatson(RegressorMixin, MultiOutputMixin, FeatureParameters, BaseEstimator):
    """f(x) = sum_i K(x, x_i) y_i / sum_i K(x, x_i), with K(x, x_i) ~ phi(x).phi(x_i).

    Two sums over the rows are all that is learned, [m, k] and [m]: no system is solved, rows stream
    (`partial_fit`), and a prediction takes O(m d) instead of O(n d). The kernel's width is the whole
    regularisation: choose gamma by cross-validation.

    With positive features (the default) every estimated weight is positive, and a prediction lies between
    the smallest and the largest target. Signed features (trigonometric) estimate some weights below 0:
    away from the data predictions leave that range, and a denominator that is not positive gives nan and
    a `VanishingDenominatorWarning`.

    Parameters:
        features: "gerf", positive and fitted to the spread of X; any other symmetric map by name.
        kernel, projection, n_components, gamma, random_state: as in `RandomFeatures`.
    Attributes:
        sums_: the sums over all rows; features_: the `BlockFeatures` that rows go through.
    Cost:       fit: O(n m (d + k)) time, O(m k) memory.
    Reference:  Nadaraya 1964; Watson 1964.
    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.uniform(-2, 2, size=(4000, 1))
        >>> y = np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(4000)
        >>> model = NadarayaWatson(gamma=10.0, n_components=512, random_state=0).fit(X, y)
        >>> bool(abs(model.predict([[0.5]])[0] - np.sin(1.0)) < 0.1)
        True
    """

    def __init__(
        self,
        *,
        kernel: Any = "gaussian",
        features: Any = "gerf",
        projection: Any = None,
        n_components: int = 256,
        gamma: Any = "scale",
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.features = features
        self.projection = projection
        self.n_components = n_components
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NadarayaWatson:
        """Draw the features that suit X [n, d], and take their sums with y [n] or [n, k]."""
        self.sums_ = self._sums(X, y, sample_weight, first=True)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> NadarayaWatson:
        """Add rows X [n, d] with their targets; the first call draws the features."""
        if not hasattr(self, "sums_"):
            return self.fit(X, y, sample_weight)
        self.sums_ = self.sums_ + self._sums(X, y, sample_weight, first=False)
        return self

    @lazy_on_dask
    def predict(self, X: Any) -> NDArray[np.float64]:
        """Local averages [n] or [n, k]; nan, with a warning, where the denominator is not positive."""
        numerators, denominators = self._ratio(X)
        lost = ~(denominators > 0)
        if lost.any():
            warnings.warn(
                f"{int(lost.sum())} of {len(lost)} rows have a denominator that is not positive: their"
                f" prediction is nan. {self._advice()}",
                VanishingDenominatorWarning,
                stacklevel=2,
            )
        kept = np.where(lost, np.nan, denominators)[:, None]
        means = numerators / kept
        return means[:, 0] if self._single_output else means

    @lazy_on_dask
    def support(self, X: Any) -> NDArray[np.float64]:
        """sum_i w_i K(x, x_i) / sum_i w_i, as estimated: the denominators of `predict`, [n]. Small where
        the data are thin and the average rests on few rows."""
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        blocks = (X[s : s + _BLOCK] for s in range(0, X.shape[0], _BLOCK))
        return np.concatenate([self.features_(block) @ self.sums_.mean for block in blocks])

    def _ratio(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Numerators [n, k] and denominators [n], both without the scale of their row."""
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        both = np.column_stack([self.sums_.cross, self.sums_.feature_sum])
        rows = []
        for start in range(0, X.shape[0], _BLOCK):
            points = self.features_.scaled(X[start : start + _BLOCK])
            with torch.no_grad():
                phi = self.features_.feature_map.query(
                    torch.from_numpy(np.ascontiguousarray(points))
                )
            # values alone: exp(log_scale) cancels, and underflows far from the data
            rows.append(phi.values.numpy().astype(np.float64, copy=False) @ both)
        products = np.concatenate(rows)
        return products[:, :-1], products[:, -1]

    def _advice(self) -> str:
        if self.features_.feature_map.positive:
            return "They are too far from all data for the precision; give a smaller gamma."
        return (
            "The features are signed; use positive ones, such as features='gerf', a smaller gamma or more"
            " features."
        )

    def _sums(self, X: Any, y: Any, sample_weight: Any, *, first: bool) -> FeatureSums:
        """The sums over checked rows; the first call draws the features."""
        if y is None:
            raise ValueError("NadarayaWatson requires y to be passed, but the target y is None.")
        options = {"accept_sparse": "csr", "dtype": FLOATS, "y_numeric": True, "multi_output": True}
        X, y = validated(self, X, y, reset=first, **options)
        targets, weights = y.astype(np.float64), checked_weights(sample_weight, X)
        if first:
            self.features_ = self._build_features(X, features_dtype(X), sample_weight=weights)
            self._single_output = targets.ndim == 1
        columns = targets[:, None] if targets.ndim == 1 else targets
        if not first and columns.shape[1] != self.sums_.cross.shape[1]:
            raise ValueError(
                f"y has {columns.shape[1]} targets; the first call had {self.sums_.cross.shape[1]}."
            )
        return accumulate_sums(self.features_, X, columns, sample_weight=weights)

    def __sklearn_tags__(self) -> Tags:
        """Sparse rows are taken; local averages of few rows in ten dimensions score low, as exact ones do."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.regressor_tags.poor_score = True
        return tags
