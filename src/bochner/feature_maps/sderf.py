"""Per-coordinate Gaussian proposal in the data's eigenbasis (FAVOR#, SDERF), means shifted out.

    S = U diag(s_l) U^T,   s_l = 1 - 4 A_l = (3 + 2 L_l + sqrt((3 + 2 L_l)^2 - 8)) / 4

with L_l, U the eigenvalues and eigenvectors of Cov(q) + Cov(k), after q - E q and k - E k.

Error:      relative variance (prod c(rho_l) e^{sum rho_l s_l^2} - 1) / r, s = centred q + k.
Reference:  Likhosherstov et al., FAVOR#, 2023 (SDERF); mean shift: docs/theory.md 4.
Differs:    the published form does not centre.
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
from bochner.transforms import Centring


def log_optimal_variance(second_moment: Tensor) -> Tensor:
    """s minimising the mean log second moment, for L = E[s_l^2]; 1 - 4 A_l of FAVOR#.

    Example:
        >>> float(log_optimal_variance(torch.tensor(0.0)))
        1.0
    """
    b = 3.0 + 2.0 * second_moment
    return (b + torch.sqrt(b.square() - 8.0)) / 4.0


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """Centre, then the per-eigendirection optimum."""
    m = Moments.of(queries, keys, batch_shape=request.batch_shape)
    variances, axes = torch.linalg.eigh(m.query_covariance + m.key_covariance)
    stretch = log_optimal_variance(variances.clamp_min(0.0)).unsqueeze(-2)
    covariance = (axes * stretch) @ axes.transpose(-1, -2)
    proposal = GaussianProposal(torch.zeros_like(m.query_mean), covariance)
    return positive_features(request, proposal, Centring.fit(m))


def build(request: Request) -> FeatureMap:
    """An unfitted SDERF map."""
    return UnfittedMap("sderf", request, fit)


SPEC = FeatureMapSpec(
    name="sderf",
    summary="FAVOR#: one optimal spread per principal direction of q + k, after centring.",
    reference="Likhosherstov et al. 2023 (SDERF); theory 4, 6",
    build=build,
    needs_data=True,
)
