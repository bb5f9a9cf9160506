"""`KernelMeanEmbedding`, the mean of the features of a sample, and the two-sample tests that compare two."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from bochner.gram import BlockFeatures, Precision
from bochner.gram.feature_sums import FeatureSums, accumulate_sums
from bochner.sklearn.model import FeatureParameters
from bochner.sklearn.random_features import features_dtype
from bochner.sklearn.rows import FLOATS, is_distant, lazy_on_dask, validated, validated_weight
from bochner.sklearn.two_sample import MMDTest, asymptotic_test, mmd2, permutation_test


class KernelMeanEmbedding(FeatureParameters, BaseEstimator):
    """A sample as one vector: mu = sum_i w_i phi(x_i) / sum_i w_i, with <mu, phi(x)> ~ mean_i K(x_i, x).

    Distances between such vectors compare laws (`mmd2`), and their difference shows where two laws differ
    (`witness`). Streamed: `fit` and `partial_fit` keep m numbers, whatever the rows.

    Parameters:
        kernel, features, projection, n_components, gamma, random_state: as in `RandomFeatures`.
    Attributes:
        embedding_: mu, [m] float64.
        sums_: the sums it is made of; `a.sums_ + b.sums_` is the sample of both.
        features_: the `BlockFeatures` that rows go through.
    Cost:       O(n m d) time.
    Reference:  Smola, Gretton, Song and Schölkopf, A Hilbert space embedding for distributions, 2007.
    Example:
        >>> X = np.random.default_rng(0).standard_normal((500, 2))
        >>> mean = KernelMeanEmbedding(n_components=512, gamma=0.5, random_state=0).fit(X)
        >>> there, far = mean.evaluate([[0.0, 0.0], [4.0, 4.0]])  # E exp(-|x|^2/2) = 1/2 at the origin
        >>> bool(abs(there - 0.5) < 0.05), bool(abs(far) < 0.05)
        (True, True)
        >>> shifted, again = mean.embed(X + 0.5), mean.embed(-X)
        >>> mean.mmd2(shifted) > 10 * mean.mmd2(again)
        True
    """

    def __init__(
        self,
        *,
        kernel: Any = "gaussian",
        features: Any = "trigonometric",
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

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KernelMeanEmbedding:
        """Draw the features that suit X [n, d], and take their mean."""
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS)
        weights = checked_weights(sample_weight, X)
        self.features_ = self._build_features(X, features_dtype(X), sample_weight=weights)
        return self._set(accumulate_sums(self.features_, X, sample_weight=weights))

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KernelMeanEmbedding:
        """Add rows X [n, d] to the sample; the first call draws the features."""
        if not hasattr(self, "sums_"):
            return self.fit(X, y, sample_weight)
        return self._set(self.sums_ + self._sums(X, sample_weight))

    @lazy_on_dask
    def evaluate(self, X: Any) -> NDArray[np.float64]:
        """<mu, phi(x)> for rows X [n, d]: the mean of K(x_i, x) over the sample, [n].

        For the Gaussian kernel this is the kernel density estimate, but for the density's constant. Signed
        features may give a little less than 0 where there are no data; positive ones cannot.
        """
        return self._products(X, self.embedding_)

    def embed(self, X: Any, sample_weight: Any = None) -> KernelMeanEmbedding:
        """Another sample under the same features: what `mmd2` and `witness` compare."""
        check_is_fitted(self)
        other = clone(self)
        other.features_, other.n_features_in_ = self.features_, self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            other.feature_names_in_ = self.feature_names_in_
        return other._set(self._sums(X, sample_weight))

    def mmd2(self, other: KernelMeanEmbedding) -> float:
        """Unbiased estimate of MMD^2 between the laws of two samples: negative where it is 0 by luck.

        Raises:     ValueError if the samples went through other features, or have fewer than 2 rows.
        """
        return mmd2(self.sums_, self._comparable(other).sums_)

    def witness(self, other: KernelMeanEmbedding, X: Any) -> NDArray[np.float64]:
        """<mu - mu', phi(x)> for rows X [n, d]: positive where this sample has more mass, [n]."""
        return self._products(X, self.embedding_ - self._comparable(other).embedding_)

    def _products(self, X: Any, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        blocks = (X[s : s + 4096] for s in range(0, X.shape[0], 4096))
        return np.concatenate([self.features_(block) @ vector for block in blocks])

    def _comparable(self, other: KernelMeanEmbedding) -> KernelMeanEmbedding:
        check_is_fitted(self)
        check_is_fitted(other)
        if other.features_ is not self.features_:
            raise ValueError(
                "the two embeddings went through features drawn apart, and their inner products mean"
                " nothing; make the second by first.embed(X)."
            )
        return other

    def _sums(self, X: Any, sample_weight: Any) -> FeatureSums:
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        weights = checked_weights(sample_weight, X)
        return accumulate_sums(self.features_, X, sample_weight=weights)

    def _set(self, sums: FeatureSums) -> KernelMeanEmbedding:
        self.sums_, self.embedding_ = sums, sums.mean
        return self

    def __sklearn_tags__(self) -> Tags:
        """Sparse rows are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def mmd_test(
    X: Any,
    Y: Any,
    *,
    embedding: KernelMeanEmbedding | None = None,
    level: float = 0.05,
    num_permutations: int = 999,
) -> MMDTest:
    """Whether two samples come from one law, with an exact level for every n: by permutations.

    Arguments:  embedding: the parameters of the features; gamma="median" over both samples by default.
                level: the share of false alarms. num_permutations: of (bins of) rows.
    Error:      under equal laws a false alarm has probability `level` or less, whatever the sizes, kernel
                and features; what m and gamma decide is the power.
    Cost:       linear: O((n + n') m d), and O(2,048 m) for each permutation.
    Raises:     ValueError for another number of columns, fewer than 2 rows, a level that
                num_permutations cannot reach.
    Example:
        >>> rng = np.random.default_rng(2)
        >>> X, same, wider = (s * rng.standard_normal((400, 3)) for s in (1.0, 1.0, 1.4))
        >>> seeded = KernelMeanEmbedding(gamma="median", random_state=0)
        >>> mmd_test(X, same, embedding=seeded).rejected, mmd_test(X, wider, embedding=seeded).p_value
        (False, 0.001)
    """
    chosen = KernelMeanEmbedding(gamma="median") if embedding is None else embedding
    features, samples = _pooled(X, Y, chosen)
    seed = check_random_state(chosen.random_state).randint(2**31 - 1)
    return permutation_test(
        features,
        samples,
        level=level,
        num_permutations=num_permutations,
        rng=np.random.default_rng(seed),
    )


def mmd_asymptotic_test(
    X: Any, Y: Any, *, embedding: KernelMeanEmbedding | None = None, level: float = 0.05
) -> MMDTest:
    """Whether two samples come from one law, for many rows: by the statistic's limiting law.

    One pass and no permutations; p-values as small as they come. The level holds for large samples.

    Arguments:  as in `mmd_test`.
    Cost:       O((n + n') m^2 + m^3).
    Raises:     as `mmd_test`; ValueError if all rows have the same features.
    Example:
        >>> rng = np.random.default_rng(0)
        >>> X, wider = (s * rng.standard_normal((4000, 3)) for s in (1.0, 1.4))
        >>> seeded = KernelMeanEmbedding(gamma="median", random_state=0)
        >>> mmd_asymptotic_test(X, wider, embedding=seeded).p_value < 1e-20
        True
    """
    chosen = KernelMeanEmbedding(gamma="median") if embedding is None else embedding
    features, samples = _pooled(X, Y, chosen)
    double = features.dtype == np.float64
    return asymptotic_test(
        features, samples, level=level, precision=Precision.DOUBLE if double else Precision.SINGLE
    )


def _pooled(
    X: Any, Y: Any, embedding: KernelMeanEmbedding
) -> tuple[BlockFeatures, tuple[Any, Any]]:
    """Features that suit both samples together, and the checked samples.

    What features are fitted to must not know which row is of which sample, or the level is lost: rows are
    picked at random from both.
    """
    X, Y = (
        check_array(rows, accept_sparse="csr", dtype=FLOATS, input_name=name)
        for rows, name in ((X, "X"), (Y, "Y"))
    )
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"X has {X.shape[1]} columns and Y {Y.shape[1]}; they must be the same.")
    sparse_rows = sparse.issparse(X) or sparse.issparse(Y)
    both = sparse.vstack([X, Y], format="csr") if sparse_rows else np.concatenate([X, Y])
    return embedding._build_features(both, both.dtype), (both[: X.shape[0]], both[X.shape[0] :])


def checked_weights(sample_weight: Any, X: Any) -> Any:
    """None, or weights [n] float64: none negative, one at least positive."""
    if sample_weight is None:
        return None
    if is_distant(X):
        return validated_weight(X, sample_weight)
    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
