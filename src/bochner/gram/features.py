"""Features of blocks of rows: what the passes over the data call, thread by thread.

Rows are centred and scaled in their own precision before they become float32: a column of time stamps has
no room for its differences in float32.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from bochner.feature_map import FeatureMap
from bochner.kernels import Kernel

_CACHED = 1 << 18  # projections worked on at one time: 1 MB in float32, which stays in L2
_PIECE = 1 << 19  # features at one time of a map that goes through torch, beside its temporaries


class BlockFeatures:
    """phi((x - offset) / lengthscales) for rows of numpy or CSR arrays; picklable, safe in threads.

    Arguments:
        feature_map: a symmetric one, on R^d, without batch_shape.
        inverse_lengthscales: [d] or a number, 1 by default.
        offset: [d], taken off the rows; must be None for sparse rows to stay sparse.
        dtype: of the features, np.float32 or np.float64.
    Shapes:     rows [n, d] -> [n, m], C-contiguous.
    Raises:     ValueError for a map that is not symmetric or has a batch_shape.
    Cost:       O(n d r) time, O(n m) memory for the result and some MB beside it, whatever n.
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

    def __repr__(self) -> str:
        name = type(self.feature_map).__name__
        return (
            f"BlockFeatures({name}, {self.dim} -> {self.num_features}, {self.kernel}, {self.dtype})"
        )

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

    def __call__(
        self, rows: Any, out: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.floating[Any]]:
        """The features of rows [n, d], written to `out` [n, m] if it is given (of the features' dtype)."""
        if out is None:
            out = np.empty((rows.shape[0], self.num_features), dtype=self.dtype)
        frequencies = getattr(self.feature_map, "frequencies", None)
        if frequencies is None:
            self._through_torch(rows, out)
        else:
            self._waves(rows, frequencies.numpy().astype(self.dtype, copy=False), out)
        return out

    def _through_torch(self, rows: Any, out: NDArray[np.floating[Any]]) -> None:
        """As the map itself does it, a few hundred rows at a time: its temporaries then stay in cache and
        come from memory that the process already has."""
        step = max(64, _PIECE // self.num_features)
        with torch.no_grad():
            for start in range(0, rows.shape[0], step):
                part = slice(start, start + step)
                points = torch.from_numpy(np.ascontiguousarray(self.scaled(rows[part])))
                out[part] = self.feature_map.query(points).materialise().numpy()

    def _waves(
        self,
        rows: Any,
        frequencies: NDArray[np.floating[Any]],
        out: NDArray[np.floating[Any]],
    ) -> None:
        """[cos, sin] / sqrt(r) of the projections, or cosines with offsets, a cacheful of rows at a time."""
        count = len(frequencies)
        offsets = getattr(self.feature_map, "offsets", None)
        shift = None if offsets is None else offsets.numpy().astype(self.dtype, copy=False)
        weights = np.ascontiguousarray(frequencies.T)
        stays_sparse = sparse.issparse(rows) and self.offset is None
        if stays_sparse:
            weights = (weights * self.inverse_lengthscales[:, None]).astype(self.dtype)
            rows = rows.astype(self.dtype)
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


class Reused:
    """Features of blocks of rows that are written over the same memory block after block, thread by thread.

    What they return holds until the same thread asks for the next block. A fresh block of 64 MB costs as much
    as its cosines: the system clears its pages.

    Made anew for every pass, and gone with it: nothing is held between passes.

    Arguments:  features: `BlockFeatures`, or others, which are then asked as they are.
    Example:
        >>> import bochner
        >>> phi = BlockFeatures(bochner.make("trigonometric", dim=3, num_features=4, kernel="gaussian"))
        >>> again = Reused(phi)
        >>> first = again(np.zeros((2, 3)))
        >>> np.shares_memory(first, again(np.ones((1, 3))))
        True
    """

    def __init__(self, features: Any) -> None:
        self.features = features
        self._held = threading.local()

    @property
    def num_features(self) -> int:
        """m."""
        count: int = self.features.num_features
        return count

    def __call__(self, rows: Any) -> NDArray[np.floating[Any]]:
        """The features of rows [n, d], until the next call."""
        if not isinstance(self.features, BlockFeatures):
            return np.asarray(self.features(rows))
        held = getattr(self._held, "block", None)
        if held is None or len(held) < rows.shape[0]:
            held = np.empty((rows.shape[0], self.num_features), dtype=self.features.dtype)
            self._held.block = held
        return self.features(rows, held[: rows.shape[0]])

    def __reduce__(self) -> tuple[type[Reused], tuple[Any]]:
        return Reused, (self.features,)
