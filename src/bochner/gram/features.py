"""Features of blocks of rows: what the passes over the data call, thread by thread.

Rows are centred and scaled in their own precision before they become float32: a column of time stamps has
no room for its differences in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from bochner.feature_map import FeatureMap
from bochner.kernels import Kernel

_CACHED = 1 << 18  # projections worked on at one time: 1 MB in float32, which stays in L2


class BlockFeatures:
    """phi((x - offset) / lengthscales) for rows of numpy or CSR arrays; picklable, safe in threads.

    Arguments:
        feature_map: a symmetric one, on R^d, without batch_shape.
        inverse_lengthscales: [d] or a number, 1 by default.
        offset: [d], taken off the rows; must be None for sparse rows to stay sparse.
        dtype: of the features, np.float32 or np.float64.
    Shapes:     rows [n, d] -> [n, m], C-contiguous.
    Raises:     ValueError for a map that is not symmetric or has a batch_shape.
    Cost:       O(n d r) time, O(n m) memory for the result and 1 MB beside it (trigonometric maps).
    Example:
        >>> import bochner
        >>> phi = bochner.make("trigonometric", dim=3, num_features=64, kernel="gaussian",
        ...                    generator=torch.Generator().manual_seed(0))
        >>> rows = BlockFeatures(phi)(np.zeros((2, 3)))
        >>> rows.shape, rows.dtype, round(float(rows[0] @ rows[1]), 6)
        ((2, 64), dtype('float32'), 1.0)
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        inverse_lengthscales: NDArray[np.float64] | float = 1.0,
        offset: NDArray[np.float64] | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        if not feature_map.symmetric:
            raise ValueError(
                f"{type(feature_map).__name__} treats queries and keys differently; a kernel machine needs"
                " one function for all rows: a symmetric map."
            )
        if feature_map.batch_shape:
            raise ValueError(
                f"feature_map has batch_shape={feature_map.batch_shape}; rows want a single map."
            )
        self.feature_map = feature_map
        self.inverse_lengthscales = np.broadcast_to(
            np.asarray(inverse_lengthscales, dtype=np.float64), (feature_map.dim,)
        ).copy()
        self.offset = offset
        self.dtype = np.dtype(dtype)

    @property
    def num_features(self) -> int:
        """m."""
        return self.feature_map.num_features

    @property
    def dim(self) -> int:
        """d."""
        return self.feature_map.dim

    @property
    def kernel(self) -> Kernel:
        """The kernel of scaled rows."""
        return self.feature_map.kernel

    def with_dtype(self, dtype: type[np.floating[Any]]) -> BlockFeatures:
        """The same features in another precision."""
        return BlockFeatures(
            self.feature_map,
            inverse_lengthscales=self.inverse_lengthscales,
            offset=self.offset,
            dtype=dtype,
        )

    def scaled(self, rows: Any) -> NDArray[np.floating[Any]]:
        """(rows - offset) / lengthscales, dense, in the features' dtype: what the kernel takes."""
        if sparse.issparse(rows):
            rows = rows.toarray()
        rows = np.asarray(rows)
        if rows.dtype != np.float32:
            rows = rows.astype(np.float64, copy=False)
        if self.offset is not None:
            rows = rows - self.offset.astype(rows.dtype)
        return (rows * self.inverse_lengthscales.astype(rows.dtype)).astype(self.dtype, copy=False)

    def __call__(self, rows: Any) -> NDArray[np.floating[Any]]:
        """The features of rows [n, d]."""
        frequencies = getattr(self.feature_map, "frequencies", None)
        if frequencies is None:
            return self._through_torch(rows)
        return self._waves(rows, frequencies.numpy().astype(self.dtype, copy=False))

    def _through_torch(self, rows: Any) -> NDArray[np.floating[Any]]:
        with torch.no_grad():
            points = torch.from_numpy(np.ascontiguousarray(self.scaled(rows)))
            features = self.feature_map.query(points).materialise()
        return np.ascontiguousarray(features.numpy())

    def _waves(
        self, rows: Any, frequencies: NDArray[np.floating[Any]]
    ) -> NDArray[np.floating[Any]]:
        """[cos, sin] / sqrt(r) of the projections, or cosines with offsets, a cacheful of rows at a time."""
        count = len(frequencies)
        offsets = getattr(self.feature_map, "offsets", None)
        shift = None if offsets is None else offsets.numpy().astype(self.dtype, copy=False)
        weights = np.ascontiguousarray(frequencies.T)
        stays_sparse = sparse.issparse(rows) and self.offset is None
        if stays_sparse:
            weights = (weights * self.inverse_lengthscales[:, None]).astype(self.dtype)
            rows = rows.astype(self.dtype)
        out = np.empty((rows.shape[0], self.num_features), dtype=self.dtype)
        step = max(64, _CACHED // count)
        scale = self.dtype.type(count**-0.5 if shift is None else (2 / count) ** 0.5)
        for start in range(0, rows.shape[0], step):
            part = slice(start, start + step)
            projected = rows[part] @ weights if stays_sparse else self.scaled(rows[part]) @ weights
            block = out[part]
            if shift is None:
                np.sin(projected, out=block[:, count:])
            else:
                projected += shift
            np.cos(projected, out=block[:, :count])
            block *= scale
        return out
