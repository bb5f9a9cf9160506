"""The posterior through landmarks: what n rows say, kept in p columns, without starved variances.

    psi(z) = R' k(Z, z),   k(Z, Z) ~ (R R')^+,   A = Psi'Psi + (s/a) I = L L'

    mean      psi'A^-1 Psi'y
    variance  a (k(z, z) - |psi|^2) + s |L^-1 psi|^2
    paths     f_p + psi'A^-1 Psi'(y - f_p(X) - e),   f_p = sqrt(a) phi'w

The first term of the variance is what the landmarks cannot express at z: away from them the prior comes back,
which is what plain regression on features forgets. All of it is read from sums over rows of the columns
[psi, phi]: Psi'Psi, Psi'y, and Psi'Phi for the paths, with Psi'e ~ N(0, s Psi'Psi).

Reference:  Quiñonero-Candela and Rasmussen, A Unifying View of Sparse Approximate Gaussian Processes,
            2005 (DTC); Titsias, 2009 (the same predictive law); Wilson et al., 2020 (the update of paths).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.gp.evidence import Array, Sums, WeightPosterior
from bochner.gp.landmarks import Landmarks
from bochner.gp.paths import PosteriorPaths
from bochner.gp.posterior import Posterior, check_one_output, diagonal, normals


@dataclass(frozen=True)
class _Part:
    gram: Array
    cross: Array
    target_products: Array
    num_rows: int


class NystromPosterior(Posterior):
    """Mean, covariance and paths from landmarks and the sums over rows of the columns [psi, phi].

    Arguments:  landmarks: psi; feature_map: phi, which draws the paths; sums: over [psi, phi] and the
                centred targets; outputscale, noise: a and s.
    Error:      at z on a landmark's side of the data as the exact posterior's; in between the mean lacks
                what the landmarks cannot express, and the variance says so.
    Cost:       O(p^3) once; O(p (d + p)) for each point.
    Raises:     PrecisionError if the sums were computed too coarsely for this noise.
    Example:
        >>> import bochner
        >>> from types import SimpleNamespace
        >>> phi = bochner.make("trigonometric", dim=1, num_features=8, kernel="gaussian")
        >>> z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> landmarks, y = Landmarks(phi.kernel, z), np.array([[1.0], [0.0]])
        >>> columns = np.concatenate([landmarks(z), phi.query(z).materialise().numpy()], axis=1)
        >>> sums = SimpleNamespace(gram=columns.T @ columns, cross=columns.T @ y,
        ...                        target_products=y.T @ y, num_rows=2)
        >>> posterior = NystromPosterior(landmarks, phi, sums, outputscale=1.0, noise=0.25)
        >>> posterior.variance(torch.tensor([[0.0], [9.0]])).round(4).tolist()
        [0.1846, 1.0]
    """

    name = "nystrom"

    def __init__(
        self,
        landmarks: Landmarks,
        feature_map: FeatureMap,
        sums: Sums,
        *,
        outputscale: float,
        noise: float,
    ) -> None:
        self.landmarks, self.feature_map = landmarks, feature_map
        p = landmarks.num_features
        if len(sums.gram) != p + feature_map.num_features:
            raise ValueError(
                f"sums are over {len(sums.gram)} columns; expected {p} of the landmarks and"
                f" {feature_map.num_features} of the features, in this order."
            )
        own = _Part(sums.gram[:p, :p], sums.cross[:p], sums.target_products, sums.num_rows)
        self.weights = WeightPosterior(own, outputscale=outputscale, noise=noise)
        self.with_features: Array = sums.gram[:p, p:]

    @property
    def log_evidence(self) -> float:
        """That of regression on psi."""
        return self.weights.log_evidence

    @property
    def effective_dof(self) -> float:
        """Weights of psi that the data determine."""
        return self.weights.effective_dof

    @property
    def num_directions(self) -> int:
        """Landmarks: more than the columns of psi where they repeat each other, and then enough."""
        return len(self.landmarks.centres)

    def mean(self, z: Tensor) -> Array:
        """psi'A^-1 Psi'y."""
        return self.landmarks(z) @ self.weights.mean

    def variance(self, z: Tensor) -> Array:
        """What the landmarks cannot express, and what the data leave open."""
        z = z.double()
        psi = self.landmarks(z)
        rest = diagonal(self.landmarks.kernel, z) - np.square(psi).sum(-1)
        # rounding may put a Schur complement below zero, by 1e-16 / RELATIVE_CUTOFF
        return self.weights.outputscale * np.maximum(rest, 0.0) + self.weights.variance(psi)

    def covariance(self, z: Tensor) -> Array:
        """As `variance`, between all points."""
        z = z.double()
        psi = self.landmarks(z)
        rest = self.landmarks.kernel(z, z).numpy() - psi @ psi.T
        return self.weights.outputscale * rest + self.weights.covariance(psi)

    def paths(self, num_paths: int, generator: torch.Generator) -> PosteriorPaths:
        """Matheron's rule with the landmarks' update; needs no row of the data any more."""
        own = self.weights.sums
        check_one_output(own.cross.shape[-1])
        m, scale = self.feature_map.num_features, math.sqrt(self.weights.outputscale)
        weights = scale * normals(m, num_paths, generator)
        values, vectors = eigh(own.gram)
        # Psi'e has covariance s Psi'Psi, whose smallest eigenvalues may be rounded below zero
        root = vectors * np.sqrt(self.weights.noise * np.maximum(values, 0.0))
        noise = root @ normals(len(values), num_paths, generator)
        update = self.weights.solve(own.cross - self.with_features @ weights - noise)
        return PosteriorPaths(
            self.feature_map,
            torch.from_numpy(weights),
            centres=self.landmarks.centres,
            coefficients=torch.from_numpy(self.landmarks.whitening @ update),
        )
