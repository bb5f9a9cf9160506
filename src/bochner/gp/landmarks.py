"""Landmarks: the exact kernel in as many columns as there are distinct landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor

from bochner.gram.features import BlockFeatures
from bochner.kernels import Kernel

Array = NDArray[np.float64]

RELATIVE_CUTOFF = 1e-10
"""Eigenvalues of k(Z, Z) below this share of the largest are dropped: landmarks that repeat others."""

_PIECE = 512  # rows whose kernel with the landmarks is held at one time


class Landmarks:
    """psi(z) = R' k(Z, z) with psi(z).psi(z') = k(z, Z) k(Z, Z)^+ k(Z, z').

    Arguments:  kernel: exact; centres: Z [p, d] in scaled coordinates.
    Numerics:   float64; eigenvalues below RELATIVE_CUTOFF of the largest are dropped, so that the number
                of columns may be below p.
    Cost:       O(p^3) once; O(n p (d + p)) for n rows.
    Example:
        >>> from bochner.kernels import Gaussian
        >>> z = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)   # one of them twice
        >>> landmarks = Landmarks(Gaussian(), z)
        >>> psi = landmarks(z)
        >>> landmarks.num_features, bool(np.allclose(psi @ psi.T, Gaussian()(z, z)))
        (2, True)
    """

    def __init__(self, kernel: Kernel, centres: Tensor) -> None:
        self.kernel, self.centres = kernel, centres.detach().double()
        values, vectors = eigh(kernel(self.centres, self.centres).numpy())
        kept = values > RELATIVE_CUTOFF * values[-1]
        self.whitening: Array = vectors[:, kept] / np.sqrt(values[kept])

    @property
    def num_features(self) -> int:
        """Columns: landmarks that are not repeated."""
        return self.whitening.shape[1]

    def __call__(self, z: Tensor) -> Array:
        """psi, [t, columns]."""
        return self.kernel(z.double(), self.centres).numpy() @ self.whitening


class JointFeatures:
    """The columns [psi, phi] of blocks of rows: what `NystromPosterior` wants the sums of.

    Arguments:  landmarks: psi, their centres in the scaled coordinates of features; features: phi.
    Shapes:     rows [n, d] -> [n, p + m] in the dtype of features.
    Numerics:   psi is computed in float64, whose whitening would magnify float32's rounding.
    Example:
        >>> import bochner
        >>> from bochner.kernels import Gaussian
        >>> phi = bochner.make("trigonometric", dim=1, num_features=4, kernel="gaussian")
        >>> landmarks = Landmarks(Gaussian(), torch.tensor([[0.0], [1.0]]))
        >>> JointFeatures(landmarks, BlockFeatures(phi))(np.zeros((3, 1))).shape
        (3, 6)
    """

    def __init__(self, landmarks: Landmarks, features: BlockFeatures) -> None:
        self.landmarks, self.features = landmarks, features
        self._exact = features.with_dtype(np.float64)

    @property
    def num_features(self) -> int:
        """p + m."""
        return self.landmarks.num_features + self.features.num_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of phi."""
        return self.features.dtype

    def with_dtype(self, dtype: type[np.floating[Any]]) -> JointFeatures:
        """The same columns in another precision."""
        return JointFeatures(self.landmarks, self.features.with_dtype(dtype))

    def __call__(self, rows: Any) -> NDArray[np.floating[Any]]:
        """[psi, phi]."""
        out = np.empty((rows.shape[0], self.num_features), dtype=self.dtype)
        count = self.landmarks.num_features
        for start in range(0, rows.shape[0], _PIECE):  # the kernel's temporaries stay in cache
            part = slice(start, start + _PIECE)
            out[part, :count] = self.landmarks(torch.from_numpy(self._exact.scaled(rows[part])))
            out[part, count:] = self.features(rows[part])
        return out
