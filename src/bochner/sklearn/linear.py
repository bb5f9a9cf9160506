"""Predictions of linear models on streamed features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bochner.gram import BlockFeatures, BlockGrid, RidgeSolution
from bochner.gram.features import Reused
from bochner.gram.threads import in_order


def linear_scores(
    features: BlockFeatures, X: Any, solution: RidgeSolution
) -> NDArray[np.floating[Any]]:
    """phi(x) . coef + intercept for rows X [n, d], dense or CSR -> [n, k], float64.

    Numerics:   products in the features' dtype, the intercept added in float64: float32 has no room for a
                mean of many deviations, nor for coefficients of 1e39.
    Cost:       O(n m (d + k)) time; memory of a block of features per thread.
    """
    dtype = features.dtype
    size = np.ldexp(1.0, np.frexp(np.abs(solution.coef).max(axis=0))[1])
    coef = (solution.coef / size).astype(dtype)
    out = np.empty((X.shape[0], coef.shape[1]))
    grid, blocks = BlockGrid(X.shape[0]), Reused(features)

    def work(group: slice) -> None:
        for start in range(group.start, group.stop, grid.block_rows):
            part = slice(start, min(start + grid.block_rows, group.stop))
            out[part] = blocks(X[part]) @ coef * size + solution.intercept

    for _ in in_order(work, grid.groups()):
        pass
    return out
