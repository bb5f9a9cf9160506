"""`BinningRidge`: ridge regression on sparse binning features by conjugate gradients.

    (Z_c' V Z_c + alpha I) w = Z_c' V y_c,   Z [n, m] with R entries in a row, m = R B too large for m x m

The mean of a Gaussian process whose kernel is the features', with noise variance alpha.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bochner.sklearn.binning import BinningParameters, sparse_rows
from bochner.sklearn.rows import FLOATS

Matrix = NDArray[np.float64]
_ROWS = 1 << 16  # that are predicted at a time


class BinningRidge(MultiOutputMixin, RegressorMixin, BinningParameters, BaseEstimator):
    """Kernel ridge regression with random binning features, sparse, by conjugate gradients.

        minimise  sum_i v_i |y_i - z(x_i)' w - b|^2 + alpha |w|^2

    For a few columns (up to ten or so), many rows, and functions that are rough (Laplacian) or smooth
    ("spline-binning") but vary fast: a grid has as many cells as the data occupy, and none of them costs
    anything until a row falls into it.

    Parameters:
        alpha: the penalty, above 0; a Gaussian process' noise variance.
        kernel, n_grids, n_buckets, gamma, random_state: as in `RandomBinning`.
        fit_intercept: whether there is a constant, without penalty.
        tol: on the residual of the normal equations, relative to Z'Vy; max_iter: products with Z'Z at most.
    Attributes:
        coef_, intercept_: [m] or [k, m], as scikit-learn's Ridge.
        n_iter_: [k]; features_: the maps of the rows.
    Numerics:   float64, with the diagonal as preconditioner. The condition number is at most
                1 + lambda_max/alpha, and iterations go with its root.
    Cost:       O(n R) per iteration; 12 n R bytes. KernelRidge with m features pays n m^2 once.
    Raises:     ConvergenceWarning (a warning) when max_iter is not enough; ValueError for alpha <= 0.
    Example:
        >>> X = np.linspace(0, 6, 400)[:, None]
        >>> model = BinningRidge(alpha=1e-2, kernel="spline-binning", gamma=2.0, random_state=0)
        >>> model = model.fit(X, np.sin(X[:, 0]))
        >>> round(float(model.predict([[np.pi / 2]])[0]), 2), model.coef_.shape
        (1.0, (32768,))
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        kernel: Any = "laplacian",
        n_grids: int = 128,
        n_buckets: int = 256,
        gamma: Any = "scale",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.kernel = kernel
        self.n_grids = n_grids
        self.n_buckets = n_buckets
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows X [n, d], dense or CSR, and y [n] or [n, k], with weights [n]."""
        if not self.alpha > 0:
            raise ValueError(
                f"alpha={self.alpha!r} must be above 0: cells are fewer than columns, and without a"
                " penalty the equations are singular."
            )
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=FLOATS, multi_output=True, y_numeric=True
        )
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.features_ = self._build_binning(X, X.dtype.type, weight)
        rows = sparse_rows(self.features_, X).astype(np.float64)
        targets = y.astype(np.float64).reshape(len(y), -1)
        coef, intercept, self.n_iter_ = self._solve(rows, targets, weight)
        flat = y.ndim == 1
        self.coef_ = coef[:, 0] if flat else coef.T
        self.intercept_ = float(intercept[0]) if flat else intercept
        return self

    def _solve(
        self, rows: sparse.csr_matrix, targets: Matrix, weight: Matrix
    ) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
        """(w [m, k], b [k], iterations [k])."""
        total = weight.sum() if self.fit_intercept else np.inf
        sums, target_sums = rows.T @ weight, weight @ targets
        mean, target_mean = sums / total, target_sums / total
        columns = rows.T.tocsr()  # a product with CSR's transpose scatters: this one reads in order

        def product(w: Matrix) -> Matrix:
            w = w.ravel()
            fitted = weight * (rows @ w - mean @ w)  # sums to 0, so that Z' need not be centred
            return columns @ fitted + self.alpha * w

        squares = sparse.csr_matrix((rows.data**2, rows.indices, rows.indptr), shape=rows.shape)
        diagonal = squares.T @ weight - mean * sums + self.alpha
        size = rows.shape[1]
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        inverse = sparse.diags_array(1.0 / diagonal)
        right = columns @ (weight[:, None] * (targets - target_mean))
        coef, counts = np.empty_like(right), np.zeros(right.shape[1], dtype=np.int64)
        for k in range(right.shape[1]):

            def count(_: Matrix, k: int = k) -> None:
                counts[k] += 1

            coef[:, k], failed = cg(
                operator,
                right[:, k],
                rtol=self.tol,
                atol=0.0,
                maxiter=self.max_iter,
                M=inverse,
                callback=count,
            )
            if failed:
                warnings.warn(
                    f"conjugate gradients stopped after max_iter={self.max_iter} iterations above"
                    f" tol={self.tol:g}; raise max_iter, alpha or tol.",
                    ConvergenceWarning,
                    stacklevel=3,
                )
        return coef, target_mean - mean @ coef, counts

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predictions [n] or [n, k] for rows X [n, d]."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        blocks = [
            sparse_rows(self.features_, X[start : start + _ROWS]) @ self.coef_.T
            for start in range(0, X.shape[0], _ROWS)
        ]
        return np.concatenate(blocks) + self.intercept_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
