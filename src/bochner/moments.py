"""Closed-form second moments of single random features: where every predicted error comes from.

One feature estimates K by Z(w). With a = x + y (positive maps) or a = x - y (trigonometric maps) and
b the same for a second pair, E[Z_a Z_b] / (K_a K_b) is a Gaussian integral; its eigen-coordinates are
those of the proposal N(mean, S), with rho = 1 / (2 S - 1) per coordinate:

    positive       prod c(rho) exp( sum (1+rho)/4 (a+b)^2 - (|a|^2+|b|^2)/2 ),   c = (1+rho)/(2 sqrt(rho))
    hyperbolic     mean of the above over (a, b) and (a, -b)
    trigonometric  mean over signs of prod c(rho) exp( -sum (1+rho)/4 (a±b)^2 + (|a|^2+|b|^2)/2 )

rho = 1 (S = I) gives e^{a.b}, cosh(a.b) and cosh(a.b). Infinite where an eigenvalue of S is <= 1/2.
Reference:  Likhosherstov et al., 2022 and 2023 (rho, c); derived and checked in tests/test_moments.py.
"""

from __future__ import annotations

import numpy as np
import scipy.special
import torch
from torch import Tensor

_ANGLE_NODES = 96  # Gauss-Legendre nodes of the one-dimensional integral in `coupled_pair`


def rho_of(scale: Tensor) -> Tensor:
    """rho = 1 / (2 s - 1) for proposal variances s; inf where s <= 1/2 (infinite variance)."""
    return torch.where(scale > 0.5, 1.0 / (2.0 * scale - 1.0), torch.inf)


def log_c(rho: Tensor) -> Tensor:
    """log c(rho) = log((1 + rho) / (2 sqrt(rho))), >= 0, summed over the last dimension."""
    return (torch.log1p(rho) - 0.5 * torch.log(rho) - np.log(2.0)).sum(dim=-1)


def log_cross_moment(a: Tensor, b: Tensor, rho: Tensor, *, oscillating: bool, even: bool) -> Tensor:
    """log E[Z_a Z_b] / (K_a K_b) of one feature, for all pairs of a grid.

        ± [ sum (rho-1)/4 (a^2 + b^2) + sum (1+rho)/2 a b ]  +  log c,    minus if oscillating

    Shapes:     a [..., n, d], b [..., n', d], rho [..., d] -> [..., n, n'].
    Arguments:  oscillating: trigonometric (a = x - y) instead of exponential (a = x + y);
                even: the feature averages over +w and -w (always so when oscillating).
    Example:
        >>> a = torch.tensor([[1.0, 0.0]])
        >>> float(log_cross_moment(a, a, torch.ones(2), oscillating=False, even=False))  # |a|^2
        1.0
    """
    sign = -1.0 if oscillating else 1.0
    finite = torch.where(torch.isinf(rho), 1.0, rho).unsqueeze(-2)
    norms_a = (0.25 * (finite - 1.0) * a.square()).sum(-1).unsqueeze(-1)
    norms_b = (0.25 * (finite - 1.0) * b.square()).sum(-1).unsqueeze(-2)
    products = (0.5 * (1.0 + finite) * a) @ b.transpose(-1, -2)
    if even or oscillating:
        products = torch.logaddexp(products, -products) - np.log(2.0)
    else:
        products = sign * products
    value = log_c(rho)[..., None, None] + sign * (norms_a + norms_b) + products
    return _finite_or_inf(value, rho[..., None, None, :])


def log_second_moment_pairs(
    x: Tensor, y: Tensor, rho: Tensor, *, oscillating: bool, even: bool
) -> Tensor:
    """log E[Z^2] / K^2 for all pairs, without forming [n, n', d].

    Shapes:     x [*b, n, d], y [*b, n', d], rho [*b, d] -> [*b, n, n'].
    """
    sign = -1.0 if oscillating else 1.0
    # (1+rho)/4 (2a)^2 - a^2 = rho a^2 for the equal sign, -a^2 for the opposite one
    stretched = _squares_of_pairs(x, y, torch.where(torch.isinf(rho), 1.0, rho), sign)
    equal = sign * stretched
    if even or oscillating:
        opposite = -sign * _squares_of_pairs(x, y, torch.ones_like(rho), sign)
        equal = torch.logaddexp(equal, opposite) - np.log(2.0)
    return _finite_or_inf(log_c(rho)[..., None, None] + equal, rho[..., None, None, :])


def _squares_of_pairs(x: Tensor, y: Tensor, weight: Tensor, sign: float) -> Tensor:
    """sum_l weight_l (x + sign y)_l^2 for all pairs, never below 0."""
    scaled = x * weight.unsqueeze(-2)
    squares = (scaled * x).sum(-1).unsqueeze(-1) + (y.square() * weight.unsqueeze(-2)).sum(
        -1
    ).unsqueeze(-2)
    return (squares + 2.0 * sign * scaled @ y.transpose(-1, -2)).clamp_min(0.0)


def _finite_or_inf(value: Tensor, rho: Tensor) -> Tensor:
    return torch.where(torch.isinf(rho).any(-1), torch.inf, value)


def coupled_pair(
    squared_norm: Tensor, dim: int, cosine: float, *, oscillating: bool, even: bool
) -> Tensor:
    """E[Z_i Z_j] / K^2 for two features whose directions enclose a fixed angle (isotropic proposals).

        e^-phi E_theta 1F1(d; d/2; phi (1 + cos sin(theta)) / 2),     theta ~ sin^(d-1) on [0, pi]

    with phi = |x+y|^2; phi -> -|x-y|^2 for trigonometric maps; averaged over ±cos for even maps.
    For a right angle this is e^-phi 1F1(d; d/2; phi/2) (docs/theory.md 2).

    Shapes:     squared_norm [...] -> [...], float64.
    """
    values = squared_norm.detach().to(torch.float64)
    phi = -values.cpu().numpy() if oscillating else values.cpu().numpy()
    cosines = [0.0] if cosine == 0.0 else [cosine, -cosine] if even or oscillating else [cosine]
    with np.errstate(over="ignore", invalid="ignore"):  # beyond e^709 the variance is inf anyway
        total = sum(_pair(phi, dim, c) for c in cosines) / len(cosines)
    return torch.from_numpy(np.asarray(total)).to(values.device)


def _pair(phi: np.ndarray, dim: int, cosine: float) -> np.ndarray:
    if cosine == 0.0:
        return _pair_at(phi, 0.5 * phi, dim)
    nodes, weights = np.polynomial.legendre.leggauss(_ANGLE_NODES)
    sines = np.sin(0.5 * np.pi * (nodes + 1.0))
    with np.errstate(divide="ignore"):
        log_density = (dim - 1) * np.log(sines)
    weights = weights * np.exp(log_density - log_density.max())
    weights /= weights.sum()
    total = np.zeros_like(phi)
    for sine, weight in zip(sines, weights, strict=True):
        total += weight * _pair_at(phi, 0.5 * phi * (1.0 + cosine * sine), dim)
    return total


def _pair_at(phi: np.ndarray, argument: np.ndarray, dim: int) -> np.ndarray:
    """e^-phi 1F1(d; d/2; argument) by Kummer's transformation, which cannot overflow early."""
    return np.exp(argument - phi) * scipy.special.hyp1f1(-0.5 * dim, 0.5 * dim, -argument)
