"""`RandomFeatures`: the transformer that takes the place of RBFSampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from bochner.gram import BlockFeatures
from bochner.sklearn.kernel_error import (
    KernelError,
    NumFeatures,
    kernel_error,
    suggest_num_features,
)
from bochner.sklearn.model import FeatureParameters
from bochner.sklearn.rows import FLOATS, lazy_on_dask, validated


class RandomFeatures(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, FeatureParameters, BaseEstimator
):
    """Rows -> features whose inner products estimate a kernel: phi(x).phi(y) ~ K(x, y).

    Any symmetric map of the catalogue, with any projection: `RandomFeatures()` in place of scikit-learn's
    `RBFSampler()` keeps the pipeline and lowers the kernel's error. Inputs are dense or CSR, float32 or
    float64, and keep their precision; there is no inverse.

    Parameters:
        kernel: "gaussian" (or "rbf"), "laplacian", "matern-3/2", ..., a bochner Kernel, or scikit-learn's
            RBF, Matern or RationalQuadratic with its length_scale (one for each column: ARD).
        features: "trigonometric", any other name of a symmetric map of the catalogue, or a FeatureMap.
        projection: "orthogonal", "iid", "sobol", ...; None takes the map's own default.
        n_components: m, the number of columns of the result; a map that makes two at a time takes the next
            even number.
        gamma: "scale" (1 / (d Var X)), "median", a number or one for each column.
        random_state: an int for the same features again.
    Attributes:
        features_: the `BlockFeatures` that rows go through; `features_.feature_map` has the directions.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    Error:      unbiased for random maps; `error_estimate(X)` measures it, `suggest_num_features(X, tol)`
                says how many columns a tolerance asks for.
    Cost:       transform: O(n m d) time; its result [n, m] is all that is kept. The models of
                `bochner.sklearn` never make it: they stream.
    Differs:    from RBFSampler: cosine and sine of one direction instead of a cosine with a random phase,
                orthogonal directions instead of independent ones, gamma="scale" by default.
    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> sampler = RandomFeatures(n_components=128, random_state=0)
        >>> sampler.fit_transform(X).shape, float(sampler.error_estimate(X).rmse.value) < 0.1
        ((150, 128), True)
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

    def fit(self, X: Any, y: Any = None) -> RandomFeatures:
        """Draw the features that suit X [n, d]."""
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS)
        self.features_ = self._build_features(X, features_dtype(X))
        self._n_features_out = self.features_.num_features
        return self

    @lazy_on_dask
    def transform(self, X: Any) -> NDArray[np.floating[Any]]:
        """Features [n, m] of rows [n, d], in their precision."""
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        return self._features_of(X)(X)

    def error_estimate(self, X: Any) -> KernelError:
        """The kernel's error on the law that the rows X [n, d] come from, with intervals.

        Error:      95% intervals over disjoint groups of rows, for the features as they were drawn.
        Cost:       at most 2,000 rows are looked at, whatever n.
        Raises:     ValueError for fewer than 4 rows.
        Example:
            >>> X = np.random.default_rng(0).standard_normal((1000, 4))
            >>> error = RandomFeatures(n_components=512, random_state=0).fit(X).error_estimate(X)
            >>> error.rmse.low < error.rmse.value < error.rmse.high < 0.05
            True
        """
        check_is_fitted(self)
        X = validated(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        return kernel_error(self.features_, X, self._rng())

    def suggest_num_features(
        self, X: Any, tol: float, *, max_features: int = 1 << 16
    ) -> NumFeatures:
        """How many columns bring the root mean square error of a kernel value down to tol.

        Nothing needs to be fitted, and nothing is changed: set n_components yourself.

        Arguments:  tol: of K(x, y) for two rows, where the kernels are 1 at x = y.
        Raises:     ValueError if max_features columns do not reach tol; a FeatureMap instead of its name.
        Cost:       pairs of at most 500 rows.
        Example:
            >>> X = np.random.default_rng(0).standard_normal((1000, 4))
            >>> found = RandomFeatures(projection="iid", random_state=0).suggest_num_features(X, 0.02)
            >>> found.closed_form, found.rmse.low < 0.02 < found.rmse.high
            (True, True)
        """
        if not isinstance(self.features, str):
            raise ValueError(
                "features is a FeatureMap, whose number of features is fixed; give it by name."
            )
        probe = clone(self)
        X = validated(probe, X, accept_sparse="csr", dtype=FLOATS)
        generator = torch.Generator().manual_seed(int(self._rng().integers(2**31)))
        probe.set_params(random_state=0)  # the same gamma="median" for every number

        def make(num_features: int) -> BlockFeatures:
            return clone(probe).set_params(n_components=num_features)._build_features(X, np.float64)

        return suggest_num_features(make, X, tol, most=max_features, generator=generator)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))

    def _features_of(self, X: Any) -> BlockFeatures:
        """The features in the precision of X."""
        return (
            self.features_
            if self.features_.dtype == X.dtype
            else self.features_.with_dtype(X.dtype)
        )

    def __sklearn_tags__(self) -> Tags:
        """Sparse rows are taken; float32 stays float32."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def features_dtype(X: Any) -> type[np.floating[Any]]:
    """The precision of checked rows."""
    return np.float32 if X.dtype == np.float32 else np.float64
