"""The exact posterior of a Gaussian process, and its paths with a random-feature prior.

    mean k_*' C^-1 y,   covariance k_** - k_*' C^-1 k_*,   C = k(X, X) + s I,   k = a times the kernel

Reference:  Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.gp.evidence import Array
from bochner.gp.paths import PosteriorPaths
from bochner.gp.posterior import Posterior, check_one_output, diagonal, normals
from bochner.gram.solve import PrecisionError


class ExactPosterior(Posterior):
    """Exact mean and covariance from all n rows; paths start from random features.

    Arguments:  feature_map: its kernel is the prior's, its features draw the paths; x: scaled rows
                [n, d]; y: centred targets [n, k]; outputscale, noise: a and s.
    Numerics:   Cholesky of C in float64, nothing added to it.
    Error:      none in mean, variance and covariance. Paths have exactly this mean over draws of the
                weights; their covariance differs by the features' error in what the data leave open.
    Cost:       O(n^3) once; O(n d) a mean, O(n^2) a variance; O(n^2) memory.
    Raises:     PrecisionError if C is not positive definite in float64.
    Example:
        >>> import bochner
        >>> phi = bochner.make("trigonometric", dim=1, num_features=8, kernel="gaussian")
        >>> x = torch.zeros(1, 1, dtype=torch.float64)
        >>> posterior = ExactPosterior(phi, x, np.ones((1, 1)), outputscale=1.0, noise=0.25)
        >>> [round(v.item(), 4) for v in (posterior.mean(x), posterior.variance(x))]
        [0.8, 0.2]
    """

    name = "exact"

    def __init__(
        self, feature_map: FeatureMap, x: Tensor, y: Array, *, outputscale: float, noise: float
    ) -> None:
        self.feature_map, self.kernel = feature_map, feature_map.kernel
        self.x, self.y = x.detach().double(), np.asarray(y, dtype=np.float64)
        self.outputscale, self.noise = float(outputscale), float(noise)
        covariance = self._covariance(self.x, self.x)
        covariance[np.diag_indices_from(covariance)] += self.noise
        try:
            self.factor = cholesky(covariance, lower=True, overwrite_a=True)
        except LinAlgError as error:
            raise PrecisionError(
                f"noise={self.noise:.3g} is too small for {len(y)} rows and outputscale"
                f" {self.outputscale:.3g}: k(X, X) + noise I is not positive definite in float64;"
                " take a larger noise."
            ) from error
        self.solution: Array = cho_solve((self.factor, True), self.y)

    @property
    def log_evidence(self) -> float:
        """log N(y; 0, C), summed over the outputs."""
        n, k = self.y.shape
        log_det = 2.0 * float(np.log(np.diagonal(self.factor)).sum())
        quadratic = float((self.y * self.solution).sum())
        return -0.5 * (quadratic + k * (log_det + n * math.log(2 * math.pi)))

    @property
    def effective_dof(self) -> float:
        """tr(k(X, X) C^-1), between 0 and n."""
        inverse = solve_triangular(self.factor, np.eye(len(self.y)), lower=True)
        return len(self.y) - self.noise * float(np.square(inverse).sum())

    @property
    def num_directions(self) -> int:
        """n."""
        return len(self.y)

    def _covariance(self, z: Tensor, x: Tensor) -> Array:
        return self.outputscale * self.kernel(z.double(), x.double()).numpy()

    def mean(self, z: Tensor) -> Array:
        """k_*' C^-1 y."""
        return self._covariance(z, self.x) @ self.solution

    def variance(self, z: Tensor) -> Array:
        """k_** - |L^-1 k_*|^2."""
        explained = np.square(self._whitened(z)).sum(0)
        # rounding may put a Schur complement below zero, by 1e-16 of its first term
        return np.maximum(self.outputscale * diagonal(self.kernel, z.double()) - explained, 0.0)

    def covariance(self, z: Tensor) -> Array:
        """k_** - k_*' C^-1 k_*."""
        whitened = self._whitened(z)
        return self._covariance(z, z) - whitened.T @ whitened

    def _whitened(self, z: Tensor) -> Array:
        return solve_triangular(self.factor, self._covariance(self.x, z), lower=True)

    def paths(self, num_paths: int, generator: torch.Generator) -> PosteriorPaths:
        """Matheron's rule with the exact update."""
        check_one_output(self.y.shape[-1])
        scale = math.sqrt(self.outputscale)
        weights = scale * normals(self.feature_map.num_features, num_paths, generator)
        noise = math.sqrt(self.noise) * normals(len(self.y), num_paths, generator)
        prior = self.feature_map.query(self.x).materialise().detach().numpy() @ weights
        update = self.outputscale * cho_solve((self.factor, True), self.y - prior - noise)
        return PosteriorPaths(
            self.feature_map,
            torch.from_numpy(weights),
            centres=self.x,
            coefficients=torch.from_numpy(update),
        )
