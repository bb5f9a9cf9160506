"""Sums of one streamed pass of logistic regression: what Newton's method and L-BFGS need of the rows.

    f_i = phi_i' w + b,   loss = sum w_i l(f_i),   gradient = sum w_i l'(f_i) [phi_i, 1]
    hessian = sum h_i [phi_i, 1] [phi_i, 1]',      h_i = w_i l''(f_i)          (two classes)

As in `bochner.gram.statistics` rows come in blocks of one global grid and a group of blocks is the
unit of work, so that one process, threads and a cluster add up the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bochner.gram.accumulate import RowFeatures
from bochner.gram.features import Reused
from bochner.gram.grid import BLOCK_ROWS
from bochner.gram.likelihood import Codes, Likelihood
from bochner.gram.rows import sum_over_groups

Float64 = NDArray[np.float64]
_CHUNK = 2048  # rows whose features are held in float64 at once


@dataclass(frozen=True)
class LogisticSums:
    """Loss, gradient and, with curvature, the Hessian over some rows, at one set of coefficients.

    Shapes:     gradient [m + 1, k], the intercept last; hessian [m + 1, m + 1] or None; float64.
    """

    loss: float
    gradient: Float64
    hessian: Float64 | None

    def __add__(self, other: LogisticSums) -> LogisticSums:
        """Sums over both sets of rows."""
        hessian = None
        if self.hessian is not None and other.hessian is not None:
            hessian = self.hessian + other.hessian
        return LogisticSums(self.loss + other.loss, self.gradient + other.gradient, hessian)

    def add_(self, other: LogisticSums) -> LogisticSums:
        """`self + other`, written over the arrays of self: for sums that nobody else holds."""
        self.gradient.__iadd__(other.gradient)
        if self.hessian is not None and other.hessian is not None:
            self.hessian.__iadd__(other.hessian)
        return replace(self, loss=self.loss + other.loss)


@dataclass(frozen=True)
class LogisticPass:
    """One pass at fixed coefficients: the work of `sum_over_groups`; pickles if `features` does.

    Arguments:  features: rows [b, d] -> features [b, m]; likelihood: `Binary()` or `Multinomial(K)`;
                coefficients [m + 1, k], the intercept last; curvature: whether the Hessian is summed
                (two classes).
    Numerics:   margins and gradient are float64 products of the features as they come, so the minimum
                is that of these features, whatever their dtype; the Hessian is multiplied in the dtype
                of the features and summed in float64, which moves steps but not the minimum.
    Cost:       O(n m (d + k)) time, and n m^2 for the Hessian; O(block m + m^2) memory.
    """

    features: RowFeatures
    likelihood: Likelihood
    coefficients: Float64
    curvature: bool = False
    block_rows: int = BLOCK_ROWS

    def __call__(self, rows: Any, codes: Codes, weights: Float64 | None = None) -> LogisticSums:
        """Sums over the rows [n, d] of a group, of classes codes [n] in 0..K-1, block after block."""
        size = len(self.coefficients)
        hessian = np.zeros((size, size)) if self.curvature else None
        total = LogisticSums(0.0, np.zeros_like(self.coefficients), hessian)
        for start in range(0, rows.shape[0], self.block_rows):
            part = slice(start, start + self.block_rows)
            block = rows[part]
            weight = np.ones(block.shape[0]) if weights is None else weights[part]
            total = total.add_(self._block(block, codes[part], weight))
        return total

    def over(
        self,
        rows: Any,
        codes: Any,
        weights: Any = None,
        *,
        num_threads: int | None = None,
    ) -> LogisticSums:
        """Sums over all rows, wherever they are: the same bits for any number of workers."""
        work = replace(self, features=Reused(self.features))
        sums: LogisticSums = sum_over_groups(work, rows, codes, weights, num_threads=num_threads)
        return sums

    def _block(self, rows: Any, codes: Codes, weights: Float64) -> LogisticSums:
        phi = self.features(rows)
        loss, gradient = 0.0, np.zeros_like(self.coefficients)
        roots = np.zeros(len(phi))
        for start in range(0, len(phi), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            wide = phi[chunk].astype(np.float64, copy=False)
            margins = wide @ self.coefficients[:-1] + self.coefficients[-1]
            terms = self.likelihood.terms(margins, codes[chunk])
            weighted = terms.slope * weights[chunk, None]
            loss += float(terms.loss @ weights[chunk])
            gradient[:-1] += wide.T @ weighted
            gradient[-1] += weighted.sum(axis=0)
            if self.curvature:
                assert terms.curvature is not None, "a Hessian needs two classes"
                roots[chunk] = np.sqrt(terms.curvature * weights[chunk])
        return LogisticSums(loss, gradient, _hessian(phi, roots) if self.curvature else None)


def _hessian(phi: NDArray[np.floating[Any]], roots: Float64) -> Float64:
    """sum_i roots_i^2 [phi_i, 1] [phi_i, 1]'."""
    scaled = phi * roots[:, None].astype(phi.dtype)
    size = phi.shape[1]
    hessian = np.empty((size + 1, size + 1))
    hessian[:size, :size] = scaled.T @ scaled
    hessian[:size, size] = hessian[size, :size] = scaled.T @ roots.astype(phi.dtype)
    hessian[size, size] = roots @ roots
    return hessian
