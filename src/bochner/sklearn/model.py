"""What every estimator of features has in common: the parameters that choose them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bochner.gram import BlockFeatures
from bochner.sklearn.features import build_features


class FeatureParameters:
    """A mixin for estimators whose constructor takes the parameters of `build_features`.

    Parameters:
        kernel: "gaussian" (or "rbf"), "laplacian", "matern-3/2", ..., a bochner Kernel, or scikit-learn's
            RBF, Matern or RationalQuadratic with its length_scale.
        features: "trigonometric", any other name of a symmetric map of the catalogue, or a FeatureMap.
        projection: "orthogonal", "iid", "sobol", ...; None takes the map's own default.
        n_components: m, the number of features; the next even number for a cosine with a sine each.
        gamma: "scale", "median", a number or one for each column.
        random_state: an int for the same features again.
    """

    kernel: Any
    features: Any
    projection: Any
    n_components: int
    gamma: Any
    random_state: Any

    def _build_features(
        self, X: Any, dtype: Any = np.float32, *, sample_weight: Any = None
    ) -> BlockFeatures:
        """Features that suit checked rows X [n, d] with weights [n] or None."""
        return build_features(
            X,
            kernel=self.kernel,
            features=self.features,
            projection=self.projection,
            n_components=self.n_components,
            gamma=self.gamma,
            random_state=self.random_state,
            dtype=dtype,
            sample_weight=sample_weight,
        )
