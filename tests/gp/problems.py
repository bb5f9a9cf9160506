"""Small regression problems and what dense formulas say of them."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

import bochner
from bochner.kernels import Gaussian


class Problem(NamedTuple):
    x: torch.Tensor
    y: np.ndarray
    feature_map: bochner.FeatureMap
    phi: np.ndarray


def problem(n=60, m=24, d=3, k=1, seed=0, outputscale=1.7, noise=0.3):
    """A draw of the exact Gaussian process with k independent outputs."""
    g = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(n, d, generator=g, dtype=torch.float64)
    covariance = outputscale * Gaussian()(x, x) + noise * torch.eye(n)
    factor = torch.linalg.cholesky(covariance)
    y = (factor @ torch.randn(n, k, generator=g, dtype=torch.float64)).numpy()
    feature_map = bochner.make(
        "trigonometric", dim=d, num_features=m, kernel="gaussian", generator=g, dtype=torch.float64
    )
    return Problem(x, y, feature_map, feature_map.query(x).materialise().numpy())


def sums_of(columns, y):
    """The sums over rows, all at once."""
    return SimpleNamespace(
        gram=columns.T @ columns,
        cross=columns.T @ y,
        target_products=y.T @ y,
        num_rows=len(y),
    )


def log_density(y, covariance):
    """log N(y; 0, covariance), summed over the columns of y."""
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (y.shape[1] * log_det + float((y * np.linalg.solve(covariance, y)).sum()))
