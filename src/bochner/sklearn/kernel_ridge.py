"""Kernel ridge regression on random features, streamed.

    minimise  sum_i v_i |y_i - phi(x_i)' w - b|^2 + alpha |w|^2

The rows are passed over once, block by block; what is kept of them are m^2 sums.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from bochner.gram import BlockFeatures, GramStatistics
from bochner.sklearn.linear import linear_scores
from bochner.sklearn.ridge_fit import Rows
from bochner.sklearn.ridge_model import RidgeModel
from bochner.sklearn.rows import FLOATS, is_distant, lazy_on_dask, validated, validated_weight

Matrix = NDArray[np.float64]


class KernelRidge(MultiOutputMixin, RegressorMixin, RidgeModel, BaseEstimator):
    """Kernel ridge regression with random features, for any number of rows.

    Parameters:
        alpha: the penalty, a number; or "gcv" (generalised cross-validation) or "loo" (the exact
            leave-one-out error, one more pass), which take the best of `alphas`.
        alphas: penalties for "gcv" and "loo"; None: 25 from 1e-7 to 1 times the trace of the Gram matrix.
        kernel, features, projection, n_components, gamma, random_state: as in `RandomFeatures`.
        fit_intercept: whether there is a constant, without penalty.
        precision: what blocks of rows are multiplied in. "single": float32, summed in float64. "double".
            "auto": float64 up to one block (8,192 rows); above, float32, and float64 in a second pass
            if alpha is too small for that.
        verbose: 1 shows a progress bar on standard error.
    Attributes:
        coef_ [m] or [k, m], intercept_: as scikit-learn's Ridge. features_: rows -> features.
        statistics_: the sums (see `merge`).
        alpha_, alphas_, criterion_: the penalty; of a path all of them and, [a], the mean squared error
            that "gcv" or "loo" expects, per unit of weight.
    Numerics:   weights count as repetitions (in "gcv" and "loo": as weights of single observations). With
                gamma="scale" the variance is weighted too.
    Cost:       n m^2 operations, half of a matrix product, n m (d + k), and m^3/3; "gcv" 9 m^3, "loo"
                also 2 n m^2. Memory: two blocks of features per thread and a few matrices m x m.
    Raises:     PrecisionError if alpha is too small for the precision asked for: never a clipped solution.
    Example:
        >>> X = np.linspace(0, 6, 200)[:, None]
        >>> model = KernelRidge(alpha=1e-3, gamma=1.0, random_state=0).fit(X, np.sin(X[:, 0]))
        >>> round(float(model.predict([[np.pi / 2]])[0]), 3)
        1.0
    """

    def __init__(
        self,
        alpha: float | str = 1.0,
        *,
        alphas: Any = None,
        kernel: Any = "gaussian",
        features: Any = "trigonometric",
        projection: Any = None,
        n_components: int = 256,
        gamma: Any = "scale",
        fit_intercept: bool = True,
        precision: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.alpha = alpha
        self.alphas = alphas
        self.kernel = kernel
        self.features = features
        self.projection = projection
        self.n_components = n_components
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X [n, d], dense or CSR, and y [n] or [n, k], with weights [n].

        Raises:     ValueError for what scikit-learn refuses too; PrecisionError (see the class).
        """
        self._fit_rows(self._checked_rows(X, y, sample_weight, reset=True))
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Add rows to what has been seen; the first call chooses the features (and gamma).

        The equations are solved when a prediction or a coefficient is asked for. "auto" is "single" here:
        rows that are gone cannot be taken again in float64.

        Raises:     PrecisionError, when they are solved, for an alpha that float32 sums cannot bear.
        """
        first = not hasattr(self, "statistics_")
        self._add_rows(self._checked_rows(X, y, sample_weight, reset=first), first=first)
        return self

    def merge(self, statistics: GramStatistics) -> Self:
        """Add sums over other rows that were taken elsewhere with this model's features.

        `bochner.gram.accumulate(model.features_, X, y[:, None])` takes them. The sums of a model that was
        fitted by itself do not belong here: it drew features, and centred its rows, for itself.

        Raises:     ValueError for sums of another shape.
        """
        check_is_fitted(self)
        shape, expected = statistics.cross.shape, self.statistics_.cross.shape
        if shape != expected:
            raise ValueError(
                f"statistics are of {shape[0]} features and {shape[1]} targets, the model has"
                f" {expected[0]} and {expected[1]}; take them with accumulate(model.features_, X, y)."
            )
        self.statistics_ = self.statistics_ + statistics
        self._solution = None
        return self

    @lazy_on_dask
    def predict(self, X: Any) -> NDArray[np.floating[Any]]:
        """Predictions [n] or [n, k] for rows X [n, d], streamed, float64."""
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        scores = linear_scores(self.features_, X, self._solved())
        return scores[:, 0] if self._one_dimensional else scores

    @property
    def coef_(self) -> Matrix:
        """Weights [m], or [k, m] for y [n, k]."""
        coef = self._solved().coef
        return coef[:, 0] if self._one_dimensional else coef.T

    @property
    def intercept_(self) -> Any:
        """A number, or [k] for y [n, k]."""
        intercept = self._solved().intercept
        return float(intercept[0]) if self._one_dimensional else intercept

    def _adopt(self, features: BlockFeatures, statistics: GramStatistics) -> Self:
        """Become the model of sums that were taken elsewhere (of rows that this model has checked)."""
        self.features_, self.statistics_ = features, statistics
        self._keep(self._chosen(None, features, statistics))
        return self

    def _checked_rows(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> Rows:
        if y is None:
            raise ValueError("KernelRidge requires y to be passed, but the target y is None.")
        X, y = validated(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=FLOATS,
            multi_output=True,
            y_numeric=True,
            reset=reset,
        )
        if is_distant(X):
            weight = validated_weight(X, sample_weight)
        elif sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        else:
            weight = None
        targets = y.astype(np.float64)
        one_dimensional = targets.ndim == 1
        targets = targets[:, None] if one_dimensional else targets
        if not reset and targets.shape[1] != self.statistics_.num_targets:
            raise ValueError(
                f"y has {targets.shape[1]} targets; the first call had"
                f" {self.statistics_.num_targets}."
            )
        self._one_dimensional = one_dimensional
        return Rows(X, targets, weight)

    def __sklearn_tags__(self) -> Tags:
        """Sparse rows are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
