"""Bayesian linear regression on features: posterior, evidence and its gradient, from sums over rows.

    y = phi(x)'w + e,   w ~ N(0, a I),   e ~ N(0, s I);   G = Phi'Phi, h = Phi'y,  A = G + (s/a) I = L L'

    posterior      w | y ~ N(A^-1 h, s A^-1),    f(x) | y ~ N(phi'A^-1 h, s |L^-1 phi|^2)
    evidence       log p(y) = -1/2 [ (y'y - h'w)/s + m log a + log det A + (n - m) log s + n log 2 pi ]
    gradient       d/dlog a = -1/2 [ eff - |w|^2/a ],   d/dlog s = 1/2 [ |y - Phi w|^2/s - (n - eff) ],
                   d/dG = -1/2 [ A^-1 + w w'/s ],       d/dh = w/s,       eff = tr(A^-1 G)

a is the outputscale (the features carry a kernel of 1 at distance 0), s the variance of the noise. The
gradient in the features themselves is Phi (d/dG + d/dG') + y (d/dh)': one more pass over the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from bochner.gram.solve import PrecisionError

Array = NDArray[np.float64]


class Sums(Protocol):
    """What the posterior needs of `bochner.gram.GramStatistics`: sums over n rows of m features."""

    @property
    def gram(self) -> Array:
        """Phi'Phi, [m, m]."""

    @property
    def cross(self) -> Array:
        """Phi'Y, [m, k]."""

    @property
    def target_products(self) -> Array:
        """Y'Y, [k, k]."""

    @property
    def num_rows(self) -> int:
        """n."""


@dataclass(frozen=True)
class EvidenceGradient:
    """Derivatives of the log evidence: in log a, log s (numbers), Phi'Phi [m, m] and Phi'Y [m, k]."""

    log_outputscale: float
    log_noise: float
    gram: Array
    cross: Array


class WeightPosterior:
    """p(w | y) for features with k independent outputs, which share all hyper-parameters.

    Arguments:  sums: of features and (centred) targets; outputscale: a > 0, the prior variance of a
                weight; noise: s > 0, the variance of the noise.
    Shapes:     mean [m, k]; features go in as [n, m].
    Numerics:   Cholesky of G + (s/a) I in float64, nothing added to it.
    Error:      exact for the model; the model itself has only m directions, so that its deviation
                collapses where effective_dof comes near m: variance starvation.
    Cost:       O(m^3) once, O(n m^2) for n deviations.
    Raises:     PrecisionError if A is not positive definite, which rounding of G causes.
    Example:
        >>> from types import SimpleNamespace
        >>> phi, y = np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]])
        >>> sums = SimpleNamespace(gram=phi.T @ phi, cross=phi.T @ y, target_products=y.T @ y, num_rows=2)
        >>> posterior = WeightPosterior(sums, outputscale=1.0, noise=0.5)
        >>> posterior.mean.round(4).tolist(), round(float(posterior.variance(phi)[0]), 4)
        ([[0.9091]], 0.0909)
    """

    def __init__(self, sums: Sums, *, outputscale: float, noise: float) -> None:
        for name, value in (("outputscale", outputscale), ("noise", noise)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value!r} must be a positive, finite number.")
        self.sums, self.outputscale, self.noise = sums, float(outputscale), float(noise)
        self.num_features = len(sums.gram)
        matrix = np.array(sums.gram, dtype=np.float64)
        matrix[np.diag_indices_from(matrix)] += noise / outputscale
        try:
            self.factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=True)
        except LinAlgError as error:
            raise PrecisionError(
                f"noise / outputscale = {noise / outputscale:.3g} is below what the precision of this"
                " Gram matrix resolves: it is not positive definite. Accumulate it in double"
                " precision, or take a larger noise."
            ) from error
        self.mean = self.solve(sums.cross)

    def solve(self, right: Array) -> Array:
        """A^-1 right."""
        half = solve_triangular(self.factor, right, lower=True, check_finite=False)
        return solve_triangular(self.factor, half, lower=True, trans=1, check_finite=False)

    def variance(self, features: Array) -> Array:
        """Of f at features [n, m]: s |L^-1 phi|^2, [n]."""
        return self.noise * np.square(self.whitened(features)).sum(0)

    def covariance(self, features: Array) -> Array:
        """Of f between all rows of features [n, m], [n, n]."""
        whitened = self.whitened(features)
        return self.noise * (whitened.T @ whitened)

    def whitened(self, features: Array) -> Array:
        """L^-1 phi for every row of features [n, m], [m, n]."""
        right = np.asarray(features, dtype=np.float64).T
        return solve_triangular(self.factor, right, lower=True, check_finite=False)

    def draws(self, normals: Array) -> Array:
        """Weights w = mean + sqrt(s) L^-T normals, [m, S], of one output, from normals [m, S]."""
        spread = solve_triangular(self.factor, normals, lower=True, trans=1, check_finite=False)
        return self.mean[:, :1] + math.sqrt(self.noise) * spread

    @property
    def effective_dof(self) -> float:
        """tr(A^-1 G) = m - (s/a) tr A^-1: the weights that the data determine, between 0 and m."""
        inverse = solve_triangular(
            self.factor, np.eye(self.num_features), lower=True, check_finite=False
        )
        return self.num_features - self.noise / self.outputscale * float(np.square(inverse).sum())

    @property
    def log_evidence(self) -> float:
        """log p(Y), summed over the outputs."""
        m, k = self.sums.cross.shape
        n, s = self.sums.num_rows, self.noise
        quadratic = float(np.trace(self.sums.target_products)) - float(
            (self.sums.cross * self.mean).sum()
        )
        log_det = 2.0 * float(np.log(np.diagonal(self.factor)).sum())
        constants = m * math.log(self.outputscale) + (n - m) * math.log(s)
        return -0.5 * (quadratic / s + k * (log_det + constants + n * math.log(2 * math.pi)))

    @property
    def residual_squares(self) -> float:
        """|Y - Phi w|^2 over all outputs, from the sums."""
        fitted = self.sums.gram @ self.mean
        cross = float((self.sums.cross * self.mean).sum())
        products = float(np.trace(self.sums.target_products))
        return products - 2.0 * cross + float((fitted * self.mean).sum())

    def gradient(self) -> EvidenceGradient:
        """Derivatives of `log_evidence`; O(m^3)."""
        (_, k), n = self.sums.cross.shape, self.sums.num_rows
        inverse = self.solve(np.eye(self.num_features))
        dof = self.num_features - self.noise / self.outputscale * float(np.trace(inverse))
        squares = float(np.square(self.mean).sum())
        return EvidenceGradient(
            log_outputscale=-0.5 * (k * dof - squares / self.outputscale),
            log_noise=0.5 * (self.residual_squares / self.noise - k * (n - dof)),
            gram=-0.5 * (k * inverse + self.mean @ self.mean.T / self.noise),
            cross=self.mean / self.noise,
        )
