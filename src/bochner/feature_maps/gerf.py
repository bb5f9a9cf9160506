"""Generalised exponential features with the optimal A (FAVOR++).

    phi(x) = (1-4A)^{d/4} exp(A|w|^2 + sqrt(1-4A) w.x - |x|^2/2) / sqrt(r),   w ~ N(0, I)

that is, positive features with the proposal N(0, (1-4A) I). With phi = E|x+y|^2 of the data,

    A* = (1 - 2p - sqrt((2p+1)^2 + 8p)) / 16,   p = phi/d                       (d is in the formula)

Error:      relative variance (c(rho)^d e^{rho |x+y|^2} - 1) / r, rho = 1/(1-8A), c = (1+rho)/(2 sqrt(rho)).
Reference:  Likhosherstov et al., Chefs' Random Tables, 2022 (OPRF, FAVOR++); docs/theory.md 3.
Differs:    a third-party formula without d gives A = -2.26 where -0.23 is optimal (d = 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap, positive_features
from bochner.proposals import GaussianProposal
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import Moments


def optimal_a(squared_norm: Tensor, dim: int) -> Tensor:
    """A* for phi = E|x+y|^2: minimises log E[Z^2] at that phi; always <= 0.

    Example:
        >>> round(float(optimal_a(torch.tensor(4.0), 6)), 4)
        -0.226
    """
    p = squared_norm / dim
    return (1.0 - 2.0 * p - torch.sqrt((2.0 * p + 1.0).square() + 8.0 * p)) / 16.0


def isotropic_proposal(squared_norm: Tensor, dim: int) -> GaussianProposal:
    """N(0, (1-4A*) I) for phi [*batch]."""
    variance = 1.0 - 4.0 * optimal_a(squared_norm.double(), dim)
    eye = torch.eye(dim, dtype=torch.float64, device=variance.device)
    covariance = variance[..., None, None] * eye
    return GaussianProposal(torch.zeros_like(covariance[..., 0]), covariance)


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """A* from phi = E|q|^2 + E|k|^2 + 2 E[q].E[k], in O(n d)."""
    m = Moments.of(queries, keys, batch_shape=request.batch_shape, ridge=0.0)
    traces = m.query_covariance + m.key_covariance
    phi = traces.diagonal(dim1=-2, dim2=-1).sum(-1) + (m.query_mean + m.key_mean).square().sum(-1)
    return positive_features(request, isotropic_proposal(phi, request.dim))


def build(request: Request) -> FeatureMap:
    """An unfitted FAVOR++ map."""
    return UnfittedMap("gerf", request, fit)


SPEC = FeatureMapSpec(
    name="gerf",
    summary="FAVOR++: positive features whose spread suits the size of |x+y| in the data.",
    reference="Likhosherstov et al. 2022 (OPRF); theory 3",
    build=build,
    needs_data=True,
)
