"""`RandomBinning`: a transformer whose rows are sparse, one entry for every random grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from bochner import binning
from bochner.gram import BlockFeatures
from bochner.kernels import kernel_from_name
from bochner.request import Request
from bochner.sklearn.features import build_features
from bochner.sklearn.rows import FLOATS
from bochner.validation import check_count


class BinningParameters:
    """A mixin for estimators on random binning features.

    Parameters:
        kernel: "laplacian" or "spline-binning" (smooth), or a bochner Laplacian or SplineBinning.
        n_grids: R, random grids: the entries of a row, and what the kernel's error goes down with.
        n_buckets: B, columns of one grid that its cells are hashed to. Collisions add 1/(B K) times the
            variance K (1 - K)/R that grids have without: a few hundred are plenty for values of K above 0.1.
        gamma: "scale", "median", a number or one for each column: exp(-gamma |x-y|_1), and for the smooth
            kernel 1 - gamma |x-y|^2 + ... near 0.
        random_state: an int for the same grids again.
    """

    kernel: Any
    n_grids: int
    n_buckets: int
    gamma: Any
    random_state: Any

    def _build_binning(self, X: Any, dtype: Any, sample_weight: Any = None) -> BlockFeatures:
        """Grids that suit checked rows X [n, d]."""
        for name in ("n_grids", "n_buckets"):
            value = getattr(self, name)
            check_count(name, int(value) if isinstance(value, np.integer) else value)
        random = check_random_state(self.random_state)
        kernel = kernel_from_name(self.kernel)
        request = Request(
            dim=X.shape[1],
            num_features=int(self.n_grids) * int(self.n_buckets),
            kernel=kernel,
            generator=torch.Generator().manual_seed(int(random.randint(2**31 - 1))),
        )
        grids = binning.RandomBinning(request, buckets=int(self.n_buckets))
        return build_features(
            X,
            kernel=kernel,
            features=grids,
            gamma=self.gamma,
            random_state=random,
            dtype=dtype,
            sample_weight=sample_weight,
        )


def sparse_rows(features: BlockFeatures, X: Any) -> sparse.csr_matrix:
    """The features of rows X [n, d] as a sparse matrix [n, m]."""
    grids = features.feature_map
    assert isinstance(grids, binning.RandomBinning)
    with torch.no_grad():
        return grids.sparse_features(torch.from_numpy(np.ascontiguousarray(features.scaled(X))))


class RandomBinning(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BinningParameters, BaseEstimator
):
    """Rows -> sparse features whose inner products estimate the Laplacian or a smooth kernel.

    Every grid cuts the space into random cells, and a row has one entry for each grid, in the column that
    its cell is hashed to: n_grids entries whatever n_buckets is. For linear models that take sparse rows
    (`SGDClassifier`, `LinearSVC`, `Ridge`), and `BinningRidge`.

    Parameters:
        kernel: "laplacian" or "spline-binning" (smooth), or a bochner Laplacian or SplineBinning.
        n_grids: R, random grids: the entries of a row, and what the kernel's error goes down with.
        n_buckets: B, columns of one grid that its cells are hashed to; a few hundred are plenty.
        gamma: "scale", "median", a number or one for each column: exp(-gamma |x-y|_1), and for the smooth
            kernel 1 - gamma |x-y|^2 + ... near 0.
        random_state: an int for the same grids again.
        sparse_output: whether `transform` gives CSR; dense arrays [n, n_grids * n_buckets] otherwise.
    Attributes: features_, n_features_in_, feature_names_in_.
    Error:      unbiased; variance (K - K^2)/R + (1 - K)/(R B) for the Laplacian. The smooth kernel has
                (1.8^d - 1)/R at x = y: for a few columns only.
    Cost:       O(n R d) time and 12 n R bytes, in float32.
    Example:
        >>> X = np.random.default_rng(0).standard_normal((200, 3))
        >>> Z = RandomBinning(gamma=0.5, n_grids=512, random_state=0).fit_transform(X)
        >>> from sklearn.metrics.pairwise import laplacian_kernel
        >>> error = (Z @ Z.T).toarray() - laplacian_kernel(X, gamma=0.5)
        >>> Z.shape, Z.nnz // 200, round(float(np.sqrt(np.mean(error**2))), 3)
        ((200, 131072), 512, 0.015)
    """

    def __init__(
        self,
        *,
        kernel: Any = "laplacian",
        n_grids: int = 128,
        n_buckets: int = 256,
        gamma: Any = "scale",
        sparse_output: bool = True,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.n_grids = n_grids
        self.n_buckets = n_buckets
        self.gamma = gamma
        self.sparse_output = sparse_output
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> RandomBinning:
        """Draw the grids that suit X [n, d]."""
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS)
        self.features_ = self._build_binning(X, X.dtype.type)
        self._n_features_out = self.features_.num_features
        return self

    def transform(self, X: Any) -> sparse.csr_matrix | NDArray[np.floating[Any]]:
        """Features [n, n_grids * n_buckets] of rows [n, d], in their precision."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        rows = sparse_rows(self.features_.with_dtype(X.dtype.type), X)
        return rows if self.sparse_output else rows.toarray()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
