"""`KernelWhitening`: an isotropic feature space, from streamed moments.

z = (C_a)^{-1/2} (phi(x) - mean phi),   C = Cov(phi),   C_a = (1 - a) C + a tr(C)/m I
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from bochner.gram import GramStatistics, Precision, accumulate
from bochner.sklearn.model import FeatureParameters
from bochner.sklearn.rows import FLOATS, is_distant, lazy_on_dask, validated, validated_weight

Matrix = NDArray[np.float64]
_ROWS = 8192


class KernelWhitening(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, FeatureParameters, BaseEstimator
):
    """Features with mean 0 and covariance I: no direction of the kernel's feature space dominates.

    Embeddings of pretrained encoders crowd into a cone: a few directions carry most of the variance, and
    everything is similar to everything. Whitening them removes that linearly; whitening features of a
    kernel also removes what is not linear, correlations between any functions of the kernel's space.

    Parameters:
        shrinkage: a in [0, 1], towards an isotropic covariance. 0 whitens exactly and wants more rows than
            features; noise directions are then as large as all others.
        rank: None for the symmetric square root, the m columns closest to the features; k for the k
            leading principal components, each scaled to variance 1 (but for the shrinkage).
        kernel, features, projection, n_components, gamma, random_state: as in `RandomFeatures`.
    Attributes:
        mean_ [m], covariance_ [m, m] of the features; whitening_ [m, m] or [m, k]: z = (phi - mean_) @
        whitening_; statistics_: the sums over rows; features_.
    Numerics:   sums in float64 whatever the rows are: the smallest eigenvalues decide.
    Cost:       n m^2 operations, and one eigendecomposition of m x m.
    Raises:     ValueError if C_a is singular (to float64 rounding), with the number of directions it has.
    Reference:  Gao et al., Kernel-Whitening: Overcome Dataset Bias with Isotropic Sentence Embedding, 2022.
    Differs:    a map that is fitted once, from all rows, and applies to new ones; theirs reweights batches
                (`decorrelation_weights`) and takes every point of a batch as a landmark.
    Example:
        >>> X = np.random.default_rng(0).standard_normal((2000, 3)) * [10, 1, 0.1] + 5
        >>> Z = KernelWhitening(n_components=32, shrinkage=0.0, random_state=0).fit_transform(X)
        >>> bool(np.abs(np.cov(Z.T, bias=True) - np.eye(32)).max() < 1e-6), round(float(abs(Z.mean())), 6)
        (True, 0.0)
    """

    def __init__(
        self,
        *,
        shrinkage: float = 1e-3,
        rank: int | None = None,
        kernel: Any = "gaussian",
        features: Any = "trigonometric",
        projection: Any = None,
        n_components: int = 256,
        gamma: Any = "scale",
        random_state: Any = None,
    ) -> None:
        self.shrinkage = shrinkage
        self.rank = rank
        self.kernel = kernel
        self.features = features
        self.projection = projection
        self.n_components = n_components
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Mean and covariance of the features of X [n, d] with weights [n]."""
        self._check_parameters()
        X, weight = self._checked(X, sample_weight, reset=True)
        self.features_ = self._build_features(X, X.dtype.type, sample_weight=weight)
        self.statistics_ = self._sums(X, weight)
        return self._solve()

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Add rows to what has been seen; the first call chooses the features (and gamma)."""
        self._check_parameters()
        first = not hasattr(self, "statistics_")
        X, weight = self._checked(X, sample_weight, reset=first)
        if first:
            self.features_ = self._build_features(X, X.dtype.type, sample_weight=weight)
        new = self._sums(X, weight)
        self.statistics_ = new if first else self.statistics_ + new
        return self._solve()

    @lazy_on_dask
    def transform(self, X: Any) -> NDArray[np.floating[Any]]:
        """Whitened features [n, m] or [n, k] of rows [n, d], in their precision."""
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        features = self.features_.with_dtype(X.dtype.type)
        out = np.empty((X.shape[0], self.whitening_.shape[1]), dtype=X.dtype)
        for start in range(0, X.shape[0], _ROWS):
            part = slice(start, start + _ROWS)
            out[part] = (features(X[part]) - self.mean_) @ self.whitening_
        return out

    def _sums(self, X: Any, weight: Any) -> GramStatistics:
        return accumulate(self.features_, X, sample_weight=weight, precision=Precision.DOUBLE)

    def _solve(self) -> Self:
        sums = self.statistics_
        self.mean_ = sums.feature_sum / sums.weight
        self.covariance_ = sums.centred().gram / sums.weight
        values, vectors = np.linalg.eigh(self.covariance_)
        size = len(values)
        rank = size if self.rank is None else self.rank
        if rank > size:
            raise ValueError(f"rank={rank} exceeds the {size} features; raise n_components.")
        shrunk = (1.0 - self.shrinkage) * values + self.shrinkage * values.sum() / size
        # rounding of the sums themselves, not of what centring leaves of them
        smallest = size**0.5 * np.finfo(np.float64).eps * np.trace(sums.gram) / sums.weight
        kept = slice(size - rank, None)
        if not shrunk[kept].min() > smallest:
            raise ValueError(
                f"the covariance of the features has {int((shrunk > smallest).sum())} directions above"
                f" rounding, {rank} are to be whitened; use shrinkage > 0 (it is"
                f" {self.shrinkage:g}), a lower rank, fewer n_components or more rows."
            )
        roots = vectors[:, kept] / np.sqrt(shrunk[kept])
        if self.rank is None:
            self.whitening_ = roots @ vectors.T
        else:
            leading = roots[:, ::-1]
            largest = np.abs(leading).argmax(axis=0)  # an eigenvector's sign is free: fix it
            self.whitening_ = leading * np.sign(leading[largest, np.arange(rank)])
        self._n_features_out = rank
        return self

    def _checked(self, X: Any, sample_weight: Any, *, reset: bool) -> tuple[Any, Any]:
        X = validated(
            self, X, accept_sparse="csr", dtype=FLOATS, ensure_min_samples=1 + reset, reset=reset
        )
        if is_distant(X):
            return X, validated_weight(X, sample_weight)
        if sample_weight is None:
            return X, None
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, weight

    def _check_parameters(self) -> None:
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage={self.shrinkage!r} must be in [0, 1].")
        rank = self.rank
        if rank is not None and (not isinstance(rank, int | np.integer) or rank < 1):
            raise ValueError(f"rank={rank!r} must be None or an integer of at least 1.")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
