"""Positive features fitted to the edges that a chain takes: its mean edge, and the best spread around it.

    s_e = A (a_x - mean a) + A^-T (b_y - mean b)       over sampled edges e = (x, y)
    omega ~ N(0, v I),   v = argmin chi(v),   chi(v) = mean over pairs of edges of
                                              c(rho)^n exp( (rho-1)/4 (|s|^2+|s'|^2) + (1+rho)/2 s.s' )

with rho = 1/(2v-1), c = (1+rho) / (2 sqrt(rho)): GERF with A = (1-v)/4, chosen for what the error of
log Z depends on, (T-1) sqrt((chi-1)/m), instead of for the average pair of states.

Reference:  docs/theory.md 3, 14; Likhosherstov et al., Chefs' Random Tables, 2022 (GERF).
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.fitting import positive_features
from bochner.moments import log_cross_moment, rho_of
from bochner.projections import Orthogonal
from bochner.proposals import GaussianProposal
from bochner.request import Request, fresh_generator
from bochner.statistics import evenly
from bochner.structured.edges.embedded import balancing_coordinates
from bochner.validation import check_finite, check_points

_LARGEST_VARIANCE = 32.0
_MOST_EDGES = 1024  # whose pairs are looked at: 8 MB in float64


def log_chi(exponents: Tensor, variance: float) -> float:
    """log chi of edges with exponents s [k, n] for directions from N(0, variance I); all k^2 pairs.

    Example:
        >>> s = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(math.exp(log_chi(s, 1.0)), 4)                       # (e + 1) / 2
        1.8591
    """
    s = exponents.double()
    scale = torch.full(s.shape[-1:], variance, dtype=s.dtype, device=s.device)
    logs = log_cross_moment(s, s, rho_of(scale), oscillating=False, even=False)
    return float(torch.logsumexp(logs.flatten(), 0)) - 2.0 * math.log(len(s))


def best_variance(exponents: Tensor) -> float:
    """The v in (1/2, 32) that minimises `log_chi`; 1 where all edges have the exponent 0.

    Example:
        >>> round(best_variance(torch.tensor([[2.0, 0.0], [0.0, 2.0]])), 3)
        3.261
    """
    low, high = math.log(0.501), math.log(_LARGEST_VARIANCE)
    found = minimize_scalar(
        lambda log: log_chi(exponents, math.exp(log)), bounds=(low, high), method="bounded"
    )
    return math.exp(float(found.x))


def fit_to_edges(
    left: Tensor,
    right: Tensor,
    *,
    num_features: int,
    generator: torch.Generator | None = None,
) -> FeatureMap:
    """Positive features of exp(a.b) for edges like the given ones, as `feature_map` of a chain.

    Shapes:     left, right [k, n]: a_x and b_y of k edges (x, y), drawn from the chain's own law (a
                first chain's samples; at most 1,024 of them are looked at).
    Arguments:  num_features: columns of one edge; generator: of the directions.
    Error:      unbiased for every pair. Relative variance chi - 1 over num_features on edges like these,
                and larger than that of a map fitted to all pairs on edges that are unlike them.
    Cost:       O(k^2 n) for each of some 20 trial variances.
    Raises:     ValueError for shapes that do not match, NaN.
    Example:
        >>> from bochner.structured import ExactChain, LowRankChain
        >>> g = torch.Generator().manual_seed(0)
        >>> a, b = 0.5 * torch.randn(2, 300, 8, generator=g)
        >>> u = 3 * torch.randn(12, 300, generator=g)
        >>> exact = ExactChain.from_embeddings(a, b, u)
        >>> paths = exact.sample((50,), generator=g)
        >>> before, after = paths[:, :-1].flatten(), paths[:, 1:].flatten()
        >>> phi = fit_to_edges(a[before], b[after], num_features=64, generator=g)
        >>> chain = LowRankChain.from_embeddings(a, b, u, feature_map=phi)
        >>> bool((chain.log_partition - exact.log_partition).abs() < 1.5)
        True
    """
    check_points("left", left, left.shape[-1])
    if left.ndim != 2 or left.shape != right.shape:
        raise ValueError(
            f"left has shape {list(left.shape)}, right {list(right.shape)}; expected [k, n] for both,"
            " one row an edge."
        )
    check_finite("left", left)
    check_finite("right", right)
    left, right = (evenly(x.detach(), _MOST_EDGES).double() for x in (left, right))
    transform = balancing_coordinates(left, right)
    variance = best_variance(transform.queries(left).points + transform.keys(right).points)
    dim = left.shape[-1]
    request = Request(
        dim=dim,
        num_features=num_features,
        projection=Orthogonal(),
        generator=fresh_generator() if generator is None else generator,
    )
    eye = torch.eye(dim, dtype=torch.float64, device=left.device)
    proposal = GaussianProposal(torch.zeros_like(eye[0]), variance * eye)
    return positive_features(request, proposal, transform)
