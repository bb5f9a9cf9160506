"""The proposal of least absolute variance: DARKFormer's Theorem 3.2 and its two-covariance form.

    S^-1 = (I + 2 Lq)^-1 + (I + 2 Lk)^-1 - I          (equal covariances: (I + 2L)(I - 2L)^-1)

It exists iff the right-hand side is positive definite (equal covariances: every eigenvalue of L below
1/2). On most heads of pretrained transformers it is not. `absolute_proposal` then raises; the catalogue
entry, fitted in centred and balanced coordinates (both covariances diag(sigma)), clips, and says how
many directions it clipped (`phi.clipped_directions`).

Error:      on a pretrained encoder the clipped form is worse than averaging the values.
Reference:  Farzam et al., DARKFormer, 2026, Theorem 3.2; docs/theory.md 6.
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
from bochner.statistics import Moments

CLIPPED_PRECISION = 1.0 / 19.0
"""Smallest precision kept when clipping: eigenvalue 0.45 in Theorem 3.2, (1 + 0.9) / (1 - 0.9) = 19."""


def absolute_precision(moments: Moments) -> Tensor:
    """S^-1 [*batch, d, d] for centred data; not positive definite where the optimum does not exist."""
    dim = moments.query_covariance.shape[-1]
    eye = torch.eye(dim, dtype=torch.float64, device=moments.query_covariance.device)
    both = (moments.query_covariance, moments.key_covariance)
    total = sum((torch.linalg.inv(eye + 2.0 * c) for c in both), start=-eye)
    return 0.5 * (total + total.transpose(-1, -2))


def absolute_proposal(
    moments: Moments, *, clip: float | None = None
) -> tuple[GaussianProposal, Tensor]:
    """The proposal for centred data and the number of clipped directions [*batch].

    Arguments:  clip: the smallest precision kept; None raises instead of clipping.
    Raises:     ValueError if the optimum does not exist and clip is None.
    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> m = Moments(torch.zeros(2), torch.zeros(2), 0.25 * eye, 0.25 * eye)
        >>> p, clipped = absolute_proposal(m)
        >>> [round(float(v), 3) for v in p.variances], int(clipped)   # (1 + 0.5) / (1 - 0.5)
        ([3.0, 3.0], 0)
    """
    precisions, axes = torch.linalg.eigh(absolute_precision(moments))
    floor = 1e-9 if clip is None else clip
    missing = (precisions < floor).sum(-1)
    if clip is None and bool(missing.any()):
        heads, directions = int((missing > 0).sum()), int(missing.sum())
        raise ValueError(
            f"the absolute proposal (Theorem 3.2) does not exist for {heads} of {missing.numel()} maps"
            f" ({directions} directions have too large a covariance); use the relative or the"
            " attention-weighted proposal, or clip=1/19."
        )
    variances = 1.0 / precisions.clamp_min(floor)
    covariance = (axes * variances.unsqueeze(-2)) @ axes.transpose(-1, -2)
    covariance = 0.5 * (covariance + covariance.transpose(-1, -2))
    return GaussianProposal(torch.zeros_like(moments.query_mean), covariance), missing


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """Centre, balance, then the absolute optimum, clipped where it does not exist and counted."""
    view = balanced_coordinates(queries, keys, request.batch_shape)
    centre, covariance = torch.zeros_like(view.spread), torch.diag_embed(view.spread)
    balanced = Moments(centre, centre, covariance, covariance)
    proposal, clipped = absolute_proposal(balanced, clip=CLIPPED_PRECISION)
    fitted = positive_features(request, proposal, view.transform)
    fitted.register_buffer("clipped_directions", clipped)
    return fitted


def build(request: Request) -> FeatureMap:
    """An unfitted map with the absolute proposal."""
    return UnfittedMap("data-aware-absolute", request, fit)


SPEC = FeatureMapSpec(
    name="data-aware-absolute",
    summary="DARKFormer's Theorem 3.2 proposal; clipped, and counted, where it does not exist.",
    reference="Farzam et al. 2026, Theorem 3.2; theory 6",
    build=build,
    needs_data=True,
    default_projection=Antithetic(Orthogonal()),
)
