"""What every posterior over functions answers: mean, covariance, and draws that are functions."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bochner.gp.paths import PosteriorPaths
from bochner.kernels import Kernel

Array = NDArray[np.float64]


class Posterior(ABC):
    """p(f | y) of a Gaussian process with k independent outputs, in scaled coordinates.

    Shapes:     points z [t, d] (inputs divided by their lengthscales), float64 -> mean [t, k],
                variance [t], covariance [t, t] of the noise-free function; the same for every output.
    """

    name: str

    @property
    @abstractmethod
    def log_evidence(self) -> float:
        """log p(y) of the model that predicts, summed over the outputs."""

    @property
    @abstractmethod
    def effective_dof(self) -> float:
        """Directions that the data determine, out of `num_directions`."""

    @property
    @abstractmethod
    def num_directions(self) -> int:
        """Dimension of the model: rows, landmarks or features."""

    @abstractmethod
    def mean(self, z: Tensor) -> Array:
        """E f(z)."""

    @abstractmethod
    def variance(self, z: Tensor) -> Array:
        """Var f(z)."""

    @abstractmethod
    def covariance(self, z: Tensor) -> Array:
        """Cov[f(z_i), f(z_j)]."""

    @abstractmethod
    def paths(self, num_paths: int, generator: torch.Generator) -> PosteriorPaths:
        """Draws as functions of z.

        Raises:     ValueError for more than one output.
        """


def diagonal(kernel: Kernel, z: Tensor) -> Array:
    """k(z_i, z_i), [t]."""
    points = z.unsqueeze(-2)
    return kernel(points, points).flatten().numpy()


def normals(rows: int, columns: int, generator: torch.Generator) -> Array:
    """Standard normals [rows, columns] in float64."""
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).numpy()


def check_one_output(outputs: int) -> None:
    """Raise ValueError unless there is one output: paths are scalar functions."""
    if outputs != 1:
        raise ValueError(
            f"the targets have {outputs} columns; paths are scalar functions: fit one output at a time."
        )
