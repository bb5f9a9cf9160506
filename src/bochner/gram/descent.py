"""Gradient descent on least squares, all of its iterations from one eigendecomposition.

    w_0 = 0,   w_{t+1} = w_t - eta (G w_t - h) / n        G = Phi' Phi,  h = Phi' Y
    w_t = sum_i  (1 - (1 - eta lambda_i)^t) / lambda_i  u_i u_i' h / n,   G / n = sum_i lambda_i u_i u_i'

There is no penalty: stopping early regularises, eta t in the place of n / alpha of ridge regression.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bochner.gram.statistics import GramStatistics

Float = NDArray[np.float64]


class GradientPath:
    """The path of gradient descent from w = 0.

    Shapes:     coefficients [t, m, k] for t iterations asked for.
    Arguments:  statistics: of all rows, as they are (centre them first for an intercept);
                step_size: eta, at most 2 / lambda_max; 1 / |phi|^2 is always safe, which is 1 for
                features of a kernel with k(x, x) = 1 whose cosines come with their sines.
    Numerics:   float64; the powers by log1p and expm1 where eta lambda is small, so that late iterates do
                not cancel.
    Cost:       one eigendecomposition of [m, m], then O(m^2 k) for each iteration asked for.
    Raises:     ValueError for no rows or a step with which descent diverges.
    Reference:  Yao, Rosasco, Caponnetto, On Early Stopping in Gradient Descent Learning, 2007.
    Example:
        >>> two = np.array([[2.0, 0.0], [0.0, 0.0]])
        >>> h = np.array([[1.0], [0.0]])
        >>> path = GradientPath.from_matrices(two, h, num_rows=1, step_size=0.5)
        >>> path.coefficients([0, 1, 2, 1000])[:, 0, 0].tolist()
        [0.0, 0.5, 0.5, 0.5]
    """

    def __init__(self, statistics: GramStatistics, *, step_size: float) -> None:
        self._decompose(statistics.gram, statistics.cross, float(statistics.weight), step_size)

    @classmethod
    def from_matrices(
        cls, gram: Float, cross: Float, *, num_rows: float, step_size: float
    ) -> GradientPath:
        """The path from G [m, m] and h [m, k] of `num_rows` rows (or their total weight)."""
        path = cls.__new__(cls)
        path._decompose(gram, cross, num_rows, step_size)
        return path

    def _decompose(self, gram: Float, cross: Float, rows: float, step_size: float) -> None:
        if not rows > 0:
            raise ValueError(f"statistics of weight {rows}; descent needs rows of positive weight.")
        self.eigenvalues, self._vectors = np.linalg.eigh(gram / rows)
        self._projected = self._vectors.T @ (cross / rows)
        self.step_size = checked_step(step_size, float(self.eigenvalues[-1]))

    def coefficients(self, iterations: Sequence[int]) -> Float:
        """w_t for every t in `iterations`, [t, m, k]."""
        shrinkages = [_shrinkage(self.eigenvalues, self.step_size, t) for t in iterations]
        return np.stack([self._vectors @ (s[:, None] * self._projected) for s in shrinkages])

    def effective_dof(self, iterations: Sequence[int]) -> Float:
        """tr of the map from targets to fitted values, sum_i 1 - (1 - eta lambda_i)^t, [t]."""
        values = [
            float((self.eigenvalues * _shrinkage(self.eigenvalues, self.step_size, t)).sum())
            for t in iterations
        ]
        return np.array(values)


def checked_step(step_size: float, largest: float) -> float:
    """eta, if descent on a Hessian with this largest eigenvalue does not diverge.

    Raises:     ValueError otherwise.
    """
    if not 0 < step_size <= 2.0 / largest if largest > 0 else not step_size > 0:
        raise ValueError(
            f"step_size={step_size:g} with a Gram matrix (mean over rows) whose largest eigenvalue is"
            f" {largest:.6g}: descent wants 0 < step_size <= {2.0 / max(largest, 5e-324):.6g};"
            " 1 / |phi|^2 is safe."
        )
    return float(step_size)


def _shrinkage(eigenvalues: Float, step: float, iterations: int) -> Float:
    """(1 - (1 - eta lambda)^t) / lambda; eta t where lambda is 0."""
    if iterations < 0:
        raise ValueError(f"iterations={iterations} must not be negative.")
    moved = step * eigenvalues
    small = moved < 0.5
    power = np.empty_like(moved)
    power[small] = -np.expm1(iterations * np.log1p(-moved[small]))
    power[~small] = 1.0 - (1.0 - moved[~small]) ** iterations
    flat = abs(moved) * max(iterations, 1) < np.finfo(np.float64).eps
    return np.where(flat, step * iterations, power / np.where(flat, 1.0, eigenvalues))
