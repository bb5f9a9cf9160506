"""Points, matrices and printed forms that the formula tests share."""

import math

import torch
from torch import Tensor

DIM = 4
KINDS = ["positive", "hyperbolic", "trigonometric"]


def normals(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(dim: int, radius: float, theta: float) -> tuple[Tensor, Tensor]:
    """Two points of norm `radius` at an angle, [1, d] each."""
    x, y = torch.zeros(2, 1, dim, dtype=torch.float64)
    x[0, 0] = radius
    y[0, :2] = radius * torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64)
    return x, y


def relvar(feature_map, x: Tensor, y: Tensor) -> float:
    value = feature_map.relative_variance(x, y)
    assert value is not None
    return float(value.flatten()[0])


def spd(generator: torch.Generator, dim: int, size: float) -> Tensor:
    """A random covariance with trace dim * size."""
    a = normals(generator, dim, dim)
    covariance = a @ a.T + 0.3 * torch.eye(dim, dtype=torch.float64)
    return covariance * (dim * size / covariance.trace())


def root(matrix: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(matrix)
    return (axes * values.sqrt()) @ axes.T


def log_e2(rho: Tensor, s: Tensor) -> Tensor:
    """log prod c(rho_l) exp(sum rho_l s_l^2), the printed second moment of 5.1, 5.2."""
    c = (1 + rho) / (2 * rho.sqrt())
    return c.log().sum(-1) + (rho * s.square()).sum(-1)


def calibration(generator, *, mean: float = 0.5, count: int = 200) -> tuple[Tensor, Tensor]:
    q = mean + normals(generator, count, DIM) @ (0.3 * normals(generator, DIM, DIM))
    k = -0.3 + normals(generator, count, DIM) @ (0.3 * normals(generator, DIM, DIM))
    return q, k
