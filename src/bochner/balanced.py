"""Centred and balanced coordinates, in which every data-aware proposal is stated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bochner.feature_map import compute_dtype
from bochner.statistics import Moments
from bochner.transforms import Centring, Composed, LinearPair


@dataclass(frozen=True)
class BalancedView:
    """Calibration data as a proposal sees it.

    Shapes:     queries, keys [*b, *batch, n, d] in the compute dtype, both with covariance diag(spread);
                spread [*batch, d] = sqrt(eig(Lq Lk)); key_log_weights [*b, *batch, n'] is what
                centring took out of each key (attention keeps it as a weight).
    """

    transform: Composed
    queries: Tensor
    keys: Tensor
    spread: Tensor
    key_log_weights: Tensor | None


def balanced_coordinates(
    queries: Tensor, keys: Tensor, batch_shape: tuple[int, ...]
) -> BalancedView:
    """Fit the centring and the balancing pair, and apply them.

    Reference:  docs/theory.md 4 and 5. Exact for the kernel whatever the data.
    """
    moments = Moments.of(queries, keys, batch_shape=batch_shape)
    pair = LinearPair.balancing(moments)
    transform = Composed(Centring.fit(moments), pair)
    moved_queries, _ = transform.queries(queries.to(compute_dtype(queries)))
    moved_keys, factor = transform.keys(keys.to(compute_dtype(keys)))
    balanced = pair.matrix @ moments.query_covariance @ pair.matrix.transpose(-1, -2)
    spread = balanced.diagonal(dim1=-2, dim2=-1)
    weights = None if factor is None else factor.squeeze(-1)
    return BalancedView(transform, moved_queries, moved_keys, spread, weights)
