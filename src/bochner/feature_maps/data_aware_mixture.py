"""A mixture of Gaussians about sums of attended pairs, in centred and balanced coordinates.

    exp(q.k) = exp(q'.k') * factors,  q' = A (q - E q),  k' = A^-T (k - E k)     exactly
    omega ~ (1/C) sum_c N(z_c, I),   z_c = q'_i + k'_j,   pairs (i, j) ~ attention on the calibration data

N(q' + k', I) is the proposal that has no variance for the pair (q, k): the mixture has one component for
each of C pairs that matter, and weighs every direction by all of them (balance heuristic).

Error:      unbiased, positive; the variance has no closed form. On a pretrained encoder it is no better
            than one Gaussian of the same mean and covariance (`data-aware`): it is here to be compared.
Reference:  docs/theory.md 6; Veach and Guibas, 1995 (balance heuristic).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.balanced import balanced_coordinates
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap, positive_features
from bochner.projections import Antithetic, Orthogonal
from bochner.proposals import MixtureProposal
from bochner.request import Request
from bochner.specification import FeatureMapSpec

COMPONENTS = 32
"""C: more of them change little, and each costs a product with every direction when it is drawn."""


def fit(request: Request, queries: Tensor, keys: Tensor) -> FeatureMap:
    """Centre, balance, then C pairs drawn from exact attention on the data."""
    view = balanced_coordinates(queries, keys, request.batch_shape)
    centres = attended_sums(
        view.queries, view.keys, view.key_log_weights, request, count=COMPONENTS
    )
    return positive_features(request, MixtureProposal(centres), view.transform)


def attended_sums(
    queries: Tensor, keys: Tensor, log_weights: Tensor | None, request: Request, *, count: int
) -> Tensor:
    """s = q + k of pairs with a uniform query and its key drawn by attention within the sequence.

    Shapes:     queries, keys [*b, *batch, n, d], log_weights [*b, *batch, n'] added to the logits
                -> [*batch, count, d], float64.
    """
    batch = request.batch_shape
    extra = queries.ndim - 2 - len(batch)
    q, k = (x.double().reshape(-1, *batch, *x.shape[extra + len(batch) :]) for x in (queries, keys))
    weights = k.new_zeros(k.shape[:-1])
    if log_weights is not None:
        weights = log_weights.double().reshape(weights.shape)
    draws = torch.rand(3, count, *batch, generator=request.generator, dtype=torch.float64)
    which = (draws[0] * q.shape[0]).long().to(q.device)  # [count, *batch]
    row = (draws[1] * q.shape[-2]).long().to(q.device)
    axes = [torch.arange(size, device=q.device) for size in batch]
    heads = torch.meshgrid(*axes, indexing="ij") if batch else ()
    sums = []
    for index in range(count):
        sequence = (which[index], *heads)
        chosen, seen = q[(*sequence, row[index])], k[sequence]
        logits = (seen @ chosen.unsqueeze(-1)).squeeze(-1) + weights[sequence]
        below = torch.softmax(logits, dim=-1).cumsum(dim=-1)
        level = draws[2, index].to(q.device).unsqueeze(-1) * below[..., -1:]
        column = torch.searchsorted(below, level).clamp_max(k.shape[-2] - 1)
        sums.append(chosen + seen.take_along_dim(column.unsqueeze(-1), dim=-2).squeeze(-2))
    return torch.stack(sums, dim=-2)


def build(request: Request) -> FeatureMap:
    """An unfitted mixture map."""
    return UnfittedMap("data-aware-mixture", request, fit)


SPEC = FeatureMapSpec(
    name="data-aware-mixture",
    summary="Mixture of Gaussians about attended pairs q + k, in centred, balanced coordinates.",
    reference="theory 6; Veach and Guibas 1995",
    build=build,
    needs_data=True,
    default_projection=Antithetic(Orthogonal()),
)
