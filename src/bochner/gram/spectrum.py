"""The whole path of penalties from one eigendecomposition: weights, degrees of freedom, GCV, LOO, evidence.

G = U diag(e) U',   c = U' h:     w(alpha) = U c / (e + alpha)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from bochner.gram.accumulate import RowFeatures
from bochner.gram.rows import sum_over_groups
from bochner.gram.solve import PrecisionError, check_alpha, intercept_of
from bochner.gram.statistics import GramStatistics, Matrix, Precision

_LEAST_FREE = {Precision.SINGLE: 1e-4, Precision.DOUBLE: 1e-11}  # 1 - h_i, well above its rounding

_LEFT_OUT_ROWS = 1024
"""Rows whose features are held in float64, three times, while each is left out."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and vectors of the (centred) Gram matrix, with the targets in their coordinates.

    Shapes:     eigenvalues [m], ascending, vectors [m, m], coordinates c [m, k].
    Cost:       about 9 m^3 operations once; then O(m k) a penalty, O(m^2 k) for its weights.
    Example:
        >>> g = np.random.default_rng(0)
        >>> s = GramStatistics.of(g.normal(size=(50, 3)), g.normal(size=(50, 1)))
        >>> path = Spectrum.of(s)
        >>> path.effective_dof([0.0, 1e9]).round(3).tolist()      # 3 weights and an intercept
        [4.0, 1.0]
    """

    statistics: GramStatistics
    eigenvalues: Matrix
    vectors: Matrix
    coordinates: Matrix
    fit_intercept: bool

    @classmethod
    def of(cls, statistics: GramStatistics, *, fit_intercept: bool = True) -> Spectrum:
        """Decompose the Gram matrix; with an intercept, means are taken off first."""
        centred = statistics.centred() if fit_intercept else statistics
        values, vectors = linalg.eigh(centred.gram, check_finite=False)
        return cls(statistics, values, vectors, vectors.T @ centred.cross, fit_intercept)

    def coef(self, alphas: Any) -> Matrix:
        """Weights for every penalty, [a, m, k].

        Raises:     PrecisionError for a penalty below what the sums can bear, ValueError for a negative one.
        """
        alphas = self._checked(alphas)
        scaled = self.coordinates / (self.eigenvalues[:, None] + alphas[:, None, None])
        weights: Matrix = self.vectors @ scaled
        return weights

    def intercept(self, alphas: Any) -> Matrix:
        """Intercepts for every penalty, [a, k]."""
        return intercept_of(self.statistics, self.coef(alphas), fit_intercept=self.fit_intercept)

    def effective_dof(self, alphas: Any) -> Matrix:
        """Trace of the hat matrix for every penalty, [a]: sum e / (e + alpha), plus 1 for an intercept."""
        alphas = self._checked(alphas)
        shares = self.eigenvalues / (self.eigenvalues + alphas[:, None])
        return shares.sum(axis=-1) + float(self.fit_intercept)

    def residual_squares(self, alphas: Any) -> Matrix:
        """Weighted sums of squared training residuals, [a, k], without another pass over the rows."""
        alphas = self._checked(alphas)[:, None, None]
        values, squares = self.eigenvalues[:, None], self.coordinates**2
        centred = self.statistics.centred() if self.fit_intercept else self.statistics
        explained = (squares * (values + 2 * alphas) / (values + alphas) ** 2).sum(axis=-2)
        left: Matrix = np.diag(centred.target_products) - explained
        return np.maximum(left, 0.0)  # a sum of squares: what is below 0 is rounding

    def gcv(self, alphas: Any) -> Matrix:
        """Generalised cross-validation for every penalty, [a, k]: an estimate of the mean squared error.

            n RSS / (n - dof)^2,    weights scaled to mean 1

        Reference:  Golub, Heath and Wahba, 1979.
        """
        count = self.statistics.num_rows
        squares = self.residual_squares(alphas) * count / self.statistics.weight
        return count * squares / (count - self.effective_dof(alphas)[:, None]) ** 2

    def leave_one_out(
        self,
        alphas: Any,
        features: RowFeatures,
        rows: Any,
        targets: NDArray[np.floating[Any]],
        sample_weight: NDArray[np.floating[Any]] | None = None,
    ) -> Matrix:
        """Weighted mean squared leave-one-out error for every penalty, [a, k], exact.

            r_i / (1 - h_i),    h_i = w_i (sum_j (phi_i . u_j)^2 / (e_j + alpha) + 1/w)

        Cost:       one more pass over the rows: 2 n m^2 operations for all penalties together.
        Raises:     PrecisionError where a row has leverage 1 to rounding (a weight far above all others).
        """
        alphas = self._checked(alphas)
        shrunk = 1.0 / (self.eigenvalues[:, None] + alphas)  # [m, a]
        statistics = self.statistics
        mean = statistics.feature_sum / statistics.weight if self.fit_intercept else None
        offset = statistics.target_sum / statistics.weight if self.fit_intercept else 0.0

        # the weights of all penalties, in the coordinates of the eigenvectors: one product for all
        paths = (self.coordinates[:, None, :] * shrunk[:, :, None]).reshape(len(shrunk), -1)

        def work(group: Any, wanted: Any, weights: Any) -> Matrix:
            total = np.zeros((len(alphas), wanted.shape[1]))
            for start in range(0, group.shape[0], _LEFT_OUT_ROWS):
                part = slice(start, start + _LEFT_OUT_ROWS)
                phi = features(group[part]).astype(np.float64)
                weight = np.ones(len(phi))
                if weights is not None:
                    weight = weights[part].astype(np.float64)
                projected = (phi if mean is None else phi - mean) @ self.vectors  # [n, m]
                leverage = weight[:, None] * (
                    projected**2 @ shrunk + (0.0 if mean is None else 1.0 / statistics.weight)
                )
                if 1.0 - leverage.max() < _LEAST_FREE[statistics.precision]:
                    raise PrecisionError(
                        f"a row has leverage {leverage.max():.15g}: the model follows it wherever it lies,"
                        " and rounding hides what the others say; take larger alphas, less unequal weights,"
                        " or the sums in float64 (precision='double')."
                    )
                predicted = (projected @ paths).reshape(len(phi), len(alphas), -1)
                residual = (wanted[part] - offset)[:, None, :] - predicted
                left_out = residual / (1.0 - leverage)[:, :, None]
                total += np.einsum("i,iak->ak", weight, np.square(left_out, out=left_out))
            return total

        total: Matrix = sum_over_groups(work, rows, targets, sample_weight)
        return total / statistics.weight

    def log_evidence(self, noise: float, outputscale: float = 1.0) -> Matrix:
        """log p(y) of y = f + e, f = sqrt(outputscale) phi . w, w ~ N(0, I), e ~ N(0, noise), for each of
        the k targets [k]; without an intercept and without sample weights.

        Reference:  Rasmussen and Williams, 2006, eq. 2.30 in the weight space of theorem A.9.
        """
        if self.fit_intercept:
            raise ValueError(
                "the evidence is that of a model without intercept: centre the targets."
            )
        if not (noise > 0 and outputscale > 0):
            raise ValueError(f"noise={noise} and outputscale={outputscale} must be positive.")
        count, alpha = self.statistics.num_rows, noise / outputscale
        check_alpha(self.statistics, alpha, float(self.eigenvalues[0]))
        explained = (self.coordinates**2 / (self.eigenvalues + alpha)[:, None]).sum(axis=0)
        misfit = (np.diag(self.statistics.target_products) - explained) / noise
        logs = np.log1p(self.eigenvalues / alpha).sum() + count * np.log(2 * np.pi * noise)
        return -0.5 * (misfit + logs)

    def _checked(self, alphas: Any) -> Matrix:
        found = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
        if found.ndim != 1 or not found.size:
            raise ValueError(f"alphas has shape {list(found.shape)}; expected a list of penalties.")
        for alpha in (found.min(), found.max()):
            check_alpha(self.statistics, float(alpha), float(self.eigenvalues[0]))
        return found
