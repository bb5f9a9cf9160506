"""What the data look like to a random feature: the numbers behind every recommendation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.balanced import balanced_coordinates
from bochner.diagnostics.exact import check_inputs, exact_logs, row_blocks
from bochner.diagnostics.interval import median
from bochner.feature_maps.data_aware_absolute import absolute_precision
from bochner.feature_maps.data_aware_relative import log10_required_num_features
from bochner.kernels import Softmax
from bochner.statistics import Moments
from bochner.validation import last_dimension


@dataclass(frozen=True)
class DataSummary:
    """Medians over heads.

    query_norm2, key_norm2:     E|q|^2, E|k|^2.
    mean_share:                 share of that energy which sits in the means (centring removes it).
    entropy, max_entropy:       of the attention rows, in nats.
    log10_features_isotropic:   log10 of the features at which a typical kernel entry has relative
                                error 1 with plain positive features, E|q+k|^2 / ln 10;
    log10_features_centred:     the same after centring;
    log10_features_balanced:    with the best Gaussian proposal in balanced coordinates.
    absolute_exists:            share of heads on which Theorem 3.2's proposal exists.
    """

    heads: int
    query_norm2: float
    key_norm2: float
    mean_share: float
    entropy: float
    max_entropy: float
    log10_features_isotropic: float
    log10_features_centred: float
    log10_features_balanced: float
    absolute_exists: float

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.heads} heads (medians): E|q|^2 = {self.query_norm2:.1f},"
                f" E|k|^2 = {self.key_norm2:.1f}, {self.mean_share:.0%} of it in the means;"
                f" attention entropy {self.entropy:.2f} of {self.max_entropy:.2f} nats.",
                "Features for 100 % error of a typical kernel entry:"
                f" 10^{self.log10_features_isotropic:.1f} as they are,"
                f" 10^{self.log10_features_centred:.1f} centred,"
                f" 10^{self.log10_features_balanced:.1f} balanced with the best proposal.",
                "The variance-optimal proposal of DARKFormer's Theorem 3.2 exists on"
                f" {self.absolute_exists:.0%} of the heads.",
            )
        )


def describe(q: Tensor, k: Tensor, *, batch_shape: tuple[int, ...] | None = None) -> DataSummary:
    """Summarise queries and keys.

    Shapes:     q [*heads, n, d], k [*heads, n', d]; batch_shape: which of the last leading
                dimensions are heads (all of them unless given; others are pooled).
    Cost:       O(n n' d): exact attention for the entropy.
    Raises:     ValueError for shapes or NaN.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> summary = describe(torch.randn(2, 50, 4, generator=g), torch.randn(2, 50, 4, generator=g))
        >>> summary.heads, 0 <= summary.entropy <= summary.max_entropy
        (2, True)
    """
    check_inputs(q, k, None, last_dimension(q), causal=False)
    q, k = q.detach(), k.detach()
    batch_shape = tuple(q.shape[:-2]) if batch_shape is None else batch_shape
    moments = Moments.of(q, k, batch_shape=batch_shape, ridge=0.0)
    spread = balanced_coordinates(q, k, batch_shape).spread
    traces = [
        c.diagonal(dim1=-2, dim2=-1).sum(-1)
        for c in (moments.query_covariance, moments.key_covariance)
    ]
    means = [m.square().sum(-1) for m in (moments.query_mean, moments.key_mean)]
    shift = (moments.query_mean + moments.key_mean).square().sum(-1)
    spread = spread * (torch.minimum(*traces) > 0).unsqueeze(-1)  # no spread where points coincide
    centred = traces[0] + traces[1]
    exists = torch.linalg.eigvalsh(absolute_precision(moments)).amin(-1) > 0
    entropy = torch.zeros((), dtype=torch.float64)
    for rows in row_blocks(q, k):
        logs = torch.log_softmax(
            exact_logs(Softmax(), q[..., rows, :].double(), k.double(), None), dim=-1
        )
        entropy = entropy - (logs.exp() * logs).sum((-1, -2))
    total = centred + means[0] + means[1]
    return DataSummary(
        heads=math.prod(batch_shape),
        query_norm2=float(median((traces[0] + means[0]).flatten())),
        key_norm2=float(median((traces[1] + means[1]).flatten())),
        mean_share=float(median(((means[0] + means[1]) / total.clamp_min(1e-300)).flatten())),
        entropy=float(median((entropy / q.shape[-2]).flatten())),
        max_entropy=math.log(k.shape[-2]),
        log10_features_isotropic=float(median((centred + shift).flatten())) / math.log(10.0),
        log10_features_centred=float(median(centred.flatten())) / math.log(10.0),
        log10_features_balanced=float(median(log10_required_num_features(spread).flatten())),
        absolute_exists=float(exists.double().mean()),
    )
