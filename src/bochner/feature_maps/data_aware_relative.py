"""The proposal of least mean relative variance: S = I + 4 diag(sigma) in balanced coordinates.

    S = I + 2 (Lq + Lk),   sigma = sqrt(eig(Lq Lk)).   It always exists.

Its optimal second moment prod(1 + 4 sigma)^{1/2} gives the number of features that a relative error
eps of single kernel entries needs, before any feature is drawn: `required_num_features`.

Reference:  docs/theory.md 5 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.balanced import balanced_coordinates
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap, positive_features
from bochner.projections import Antithetic, Orthogonal
from bochner.proposals import GaussianProposal
from bochner.request import Request
from bochner.specification import FeatureMapSpec


def log10_required_num_features(spread: Tensor, relative_error: float = 1.0) -> Tensor:
    """log10 of the m at which a typical entry has this relative error, (prod(1+4 sigma)^{1/2} - 1)/eps^2.

    Shapes:     spread = sigma [*batch, d] -> [*batch].
    Raises:     ValueError unless relative_error > 0.
    Example:
        >>> round(float(log10_required_num_features(torch.full((32,), 0.2))), 2)
        4.08
    """
    if not relative_error > 0:
        raise ValueError(f"relative_error={relative_error} must be positive.")
    log_moment = 0.5 * torch.log1p(4.0 * spread).sum(-1)
    # log(e^x - 1) without overflow
    log_excess = log_moment + torch.log(-torch.expm1(-log_moment))
    return (log_excess - 2.0 * torch.log(torch.tensor(relative_error))) / torch.log(
        torch.tensor(10.0)
    )


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """Centre, balance, then S = I + 4 diag(sigma)."""
    view = balanced_coordinates(queries, keys, request.batch_shape)
    covariance = torch.diag_embed(1.0 + 4.0 * view.spread)
    proposal = GaussianProposal(torch.zeros_like(view.spread), covariance)
    return positive_features(request, proposal, view.transform)


def build(request: Request) -> FeatureMap:
    """An unfitted map with the relative proposal."""
    return UnfittedMap("data-aware-relative", request, fit)


SPEC = FeatureMapSpec(
    name="data-aware-relative",
    summary="Gaussian proposal of least relative variance; predicts the features it needs.",
    reference="theory 5-6; the family is that of Likhosherstov et al. 2023",
    build=build,
    needs_data=True,
    default_projection=Antithetic(Orthogonal()),
)
