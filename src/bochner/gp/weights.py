"""The posterior of regression on features alone: the cheapest one, and the one that starves."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.gp.evidence import Array, WeightPosterior
from bochner.gp.paths import PosteriorPaths
from bochner.gp.posterior import Posterior, check_one_output, normals


class FeaturePosterior(Posterior):
    """f = phi'w with w | y: exact for the model with m features, not for the kernel.

    Error:      the deviation shrinks everywhere once the data determine most of the m weights, also
                where there are no data: see `WeightPosterior.effective_dof` against m.
    Cost:       O(m d + m^2) for each point, whatever n was.
    Example:
        >>> import bochner, numpy as np
        >>> from types import SimpleNamespace
        >>> phi = bochner.make("trigonometric", dim=1, num_features=2, kernel="gaussian")
        >>> sums = SimpleNamespace(gram=np.zeros((2, 2)), cross=np.zeros((2, 1)),
        ...                        target_products=np.zeros((1, 1)), num_rows=0)     # no data: the prior
        >>> posterior = FeaturePosterior(phi, WeightPosterior(sums, outputscale=4.0, noise=1.0))
        >>> posterior.variance(torch.zeros(1, 1)).round(4).tolist()
        [4.0]
    """

    name = "features"

    def __init__(self, feature_map: FeatureMap, weights: WeightPosterior) -> None:
        self.feature_map, self.weights = feature_map, weights

    @property
    def log_evidence(self) -> float:
        """That of regression on phi."""
        return self.weights.log_evidence

    @property
    def effective_dof(self) -> float:
        """Weights of phi that the data determine."""
        return self.weights.effective_dof

    @property
    def num_directions(self) -> int:
        """Columns of phi."""
        return self.weights.num_features

    def _features(self, z: Tensor) -> Array:
        return self.feature_map.query(z.double()).materialise().detach().numpy()

    def mean(self, z: Tensor) -> Array:
        """phi'E[w]."""
        return self._features(z) @ self.weights.mean

    def variance(self, z: Tensor) -> Array:
        """phi'Cov[w] phi."""
        return self.weights.variance(self._features(z))

    def covariance(self, z: Tensor) -> Array:
        """phi_i'Cov[w] phi_j."""
        return self.weights.covariance(self._features(z))

    def paths(self, num_paths: int, generator: torch.Generator) -> PosteriorPaths:
        """Draws of the weights."""
        check_one_output(self.weights.mean.shape[-1])
        draws = self.weights.draws(normals(self.weights.num_features, num_paths, generator))
        return PosteriorPaths(self.feature_map, torch.from_numpy(draws))
