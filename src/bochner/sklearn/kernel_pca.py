"""`KernelPCA`: principal components in feature space, from streamed moments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from bochner.gram import BlockFeatures, GramStatistics, Precision, accumulate
from bochner.sklearn.features import build_features
from bochner.sklearn.mean_embedding import checked_weights
from bochner.sklearn.random_features import features_dtype
from bochner.sklearn.rows import FLOATS, lazy_on_dask, validated

_BLOCK = 4096


class KernelPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The directions of largest variance of phi(x): z = V' (phi(x) - mean phi).

    V are the eigenvectors of the m x m covariance of the features, instead of those of the n x n kernel
    matrix: the same components, up to the error of the features, with memory that does not grow with the
    rows, and `partial_fit`. There is no inverse: a point of feature space has no row of its own.

    Parameters:
        n_components: principal components to keep, as in scikit-learn; None keeps all that are above
            rounding.
        kernel, features, projection, gamma, random_state: as in `RandomFeatures`.
        n_random_features: m, the features that components are found in (`n_components` of
            `RandomFeatures`).
    Attributes:
        components_: V', [k, m], orthonormal; the largest entry of each is positive.
        eigenvalues_: of the centred kernel matrix, as scikit-learn's KernelPCA has them, [k].
        explained_variance_: eigenvalues_ / (n - 1), the variances of the columns of the result, [k].
        explained_variance_ratio_: shares of the variance of phi, [k].
        mean_: mean of the features, [m]; statistics_: the sums over all rows; features_.
    Numerics:   the Gram matrix of float32 rows is multiplied in float32 and summed in float64; components
                below its rounding, sqrt(m) eps of the largest eigenvalue, are noise and are not kept.
    Cost:       fit: O(n m^2 + m^3) time, O(m^2) memory; transform: O(n m (d + k)).
    Reference:  Schölkopf, Smola and Müller, Nonlinear component analysis as a kernel eigenvalue problem,
                1998; Lopez-Paz et al., Randomized nonlinear component analysis, 2014.
    Differs:    from scikit-learn's KernelPCA: no inverse transform, no precomputed kernel; `partial_fit`.
    Example:
        >>> X = np.random.default_rng(0).standard_normal((2000, 3))
        >>> Z = KernelPCA(n_components=2, random_state=0).fit_transform(X)
        >>> Z.shape, bool(abs(Z.mean(axis=0)).max() < 1e-10), round(float(abs(np.corrcoef(Z.T)[0, 1])), 6)
        ((2000, 2), True, 0.0)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        kernel: Any = "gaussian",
        features: Any = "trigonometric",
        projection: Any = None,
        n_random_features: int = 256,
        gamma: Any = "scale",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.features = features
        self.projection = projection
        self.n_random_features = n_random_features
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KernelPCA:
        """Draw the features that suit X [n, d], and find their principal components."""
        self._check_count()
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, ensure_min_samples=2)
        weights = checked_weights(sample_weight, X)
        self.features_ = build_features(
            X,
            kernel=self.kernel,
            features=self.features,
            projection=self.projection,
            n_components=self.n_random_features,
            gamma=self.gamma,
            random_state=self.random_state,
            dtype=features_dtype(X),
            sample_weight=weights,
        )
        self.statistics_ = self._statistics(X, weights)
        return self._solve()

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KernelPCA:
        """Add rows X [n, d] and find the components of all; the first call draws the features.

        Cost:       O(n m^2) and O(m^3) for the eigendecomposition: give many rows at a time.
        """
        if not hasattr(self, "statistics_"):
            return self.fit(X, y, sample_weight)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        weights = checked_weights(sample_weight, X)
        self.statistics_ = self.statistics_ + self._statistics(X, weights)
        return self._solve()

    @lazy_on_dask
    def transform(self, X: Any) -> NDArray[np.floating[Any]]:
        """Scores [n, k] of rows [n, d], in their precision."""
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        features: BlockFeatures = self.features_.with_dtype(X.dtype)
        basis = self.components_.T.astype(X.dtype)
        shift = (self.components_ @ self.mean_).astype(X.dtype)
        blocks = (X[s : s + _BLOCK] for s in range(0, X.shape[0], _BLOCK))
        return np.concatenate([features(block) @ basis - shift for block in blocks])

    def _statistics(self, X: Any, weights: Any) -> GramStatistics:
        double = self.features_.dtype == np.float64
        precision = Precision.DOUBLE if double else Precision.SINGLE
        return accumulate(self.features_, X, sample_weight=weights, precision=precision)

    def _solve(self) -> KernelPCA:
        """Components from the sums."""
        sums = self.statistics_
        if sums.weight <= 1.0:
            raise ValueError(
                f"sample_weight sums to {sums.weight:.3g}; weights count as repetitions of rows, and a"
                " variance wants more than one row."
            )
        centred = sums.centred().gram
        values, vectors = np.linalg.eigh(centred)
        values, vectors = values[::-1], vectors[:, ::-1]
        eps = np.finfo(np.float32 if sums.precision is Precision.SINGLE else np.float64).eps
        # rounding of G itself, not of what is left of it after centring
        floor = np.sqrt(len(values)) * eps * float(np.trace(sums.gram))
        above = int(np.sum(values > floor))
        wanted = above if self.n_components is None else self.n_components
        if wanted > len(values):
            raise ValueError(
                f"n_components={wanted} exceeds the {len(values)} random features; raise"
                " n_random_features."
            )
        kept = max(wanted, 1)
        largest = np.abs(vectors[:, :kept]).argmax(axis=0)
        signs = np.sign(
            vectors[largest, np.arange(kept)]
        )  # the sign is free: make it the same again
        self.components_ = np.ascontiguousarray((vectors[:, :kept] * signs).T)
        self.mean_ = sums.feature_sum / sums.weight
        self.eigenvalues_ = values[:kept].copy()
        self.explained_variance_ = self.eigenvalues_ / (sums.weight - 1.0)
        total = float(np.trace(centred))
        some = total > floor  # equal rows have no variance to share
        self.explained_variance_ratio_ = self.eigenvalues_ / total if some else np.zeros(kept)
        self._n_features_out = kept
        return self

    def _check_count(self) -> None:
        count = self.n_components
        if count is not None and (not isinstance(count, int | np.integer) or count < 1):
            raise ValueError(f"n_components={count!r} must be None or an integer of at least 1.")

    def __sklearn_tags__(self) -> Tags:
        """Sparse rows are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
