"""First and second moments of queries and keys: what data-aware maps are fitted to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.validation import check_finite, check_points

_MAX_FIT_QUERIES = 4096
"""Attention-weighted moments look at this many queries at most per map, evenly spaced."""


@dataclass(frozen=True)
class Moments:
    """Means and covariances of calibration queries and keys, one set per batch element.

    Shapes:     query_mean, key_mean [*batch, d]; the covariances [*batch, d, d]; float64.
    Shrinkage:  covariances carry `ridge` times their mean variance on the diagonal, so that maps
                built on them can be inverted. The transforms that use them are exact for any
                invertible covariance, so this never biases an estimate.
    """

    query_mean: Tensor
    key_mean: Tensor
    query_covariance: Tensor
    key_covariance: Tensor

    @classmethod
    def of(
        cls,
        queries: Tensor,
        keys: Tensor,
        *,
        batch_shape: tuple[int, ...] = (),
        ridge: float = 1e-6,
    ) -> Moments:
        """Moments over positions and over every leading dimension that is not in batch_shape.

        Shapes:     queries [*b, *batch, n, d], keys [*b, *batch, n', d].
        Raises:     ValueError for NaN, wrong shapes, or leading dimensions that lack batch_shape.
        Cost:       O(n d^2).
        """
        pools = []
        for name, x in (("queries", queries), ("keys", keys)):
            x = pooled(name, x.detach(), batch_shape).double()
            mean = x.mean(dim=-2)
            centred = x - mean.unsqueeze(-2)
            covariance = centred.transpose(-1, -2) @ centred / x.shape[-2]
            pools.append((mean, _ridged(covariance, ridge)))
        (query_mean, query_cov), (key_mean, key_cov) = pools
        return cls(query_mean, key_mean, query_cov, key_cov)


def _ridged(covariance: Tensor, ridge: float) -> Tensor:
    """covariance + ridge * (mean variance) * I; the identity where all points coincide.

    Without a ridge the covariance is left as it is.
    """
    if ridge == 0.0:
        return covariance
    dim = covariance.shape[-1]
    eye = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.where(scale > 1e-24, covariance + ridge * scale * eye, eye)


def check_leading(name: str, x: Tensor, batch_shape: tuple[int, ...]) -> None:
    """Raise unless the last leading dimensions of x [*b, *batch, n, d] are batch_shape."""
    lead = tuple(x.shape[:-2])
    if batch_shape and lead[-len(batch_shape) :] != batch_shape:
        raise ValueError(
            f"{name} has leading dimensions {list(lead)}; fitting per head with"
            f" batch_shape={list(batch_shape)} needs them last: [..., {', '.join(map(str, batch_shape))},"
            " n, d]."
        )


def pooled(name: str, x: Tensor, batch_shape: tuple[int, ...]) -> Tensor:
    """[*b, *batch, n, d] -> [*batch, (b n), d], checked."""
    check_points(name, x, x.shape[-1])
    check_finite(name, x)
    check_leading(name, x, batch_shape)
    extra = x.ndim - 2 - len(batch_shape)
    if extra == 0:
        return x
    flat = x.flatten(0, extra - 1).movedim(0, -3)
    return flat.flatten(-3, -2)


@dataclass(frozen=True)
class AttentionMoments:
    """Moments of s = q + k over pairs drawn from exact attention: i uniform, j ~ softmax(q_i . k_j).

    Shapes:     mean [*batch, d], covariance [*batch, d, d], float64.
    Reference:  docs/theory.md 6: the error of a normalised output weighs pairs by attention.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(
        cls,
        queries: Tensor,
        keys: Tensor,
        *,
        batch_shape: tuple[int, ...] = (),
        log_weights: Tensor | None = None,
    ) -> AttentionMoments:
        """Exact moments, streamed over blocks of queries (at most 4,096 a map, evenly spaced).

        Shapes:     queries, keys [*b, *batch, n, d]; attention stays inside each leading element,
                    moments pool those outside batch_shape. log_weights [*b, *batch, n'] are added
                    to the logits (the key factors that centring takes out).
        Cost:       O(n n' d) time, O(n' d) memory; sums in float64, attention in the input's dtype.
        """
        check_leading("queries", queries, batch_shape)
        q, k = queries.detach(), keys.detach()
        pooled_count = math.prod(q.shape[: q.ndim - 2 - len(batch_shape)])
        q = evenly(q, max(1, _MAX_FIT_QUERIES // pooled_count))
        rows = max(1, min(512, (1 << 21) // (k.shape[-2] * math.prod(k.shape[:-2]))))
        sum_s = torch.zeros(*q.shape[:-2], q.shape[-1], dtype=torch.float64, device=q.device)
        sum_ss = torch.zeros(*sum_s.shape, q.shape[-1], dtype=torch.float64, device=q.device)
        received = torch.zeros(k.shape[:-1], dtype=torch.float64, device=q.device)
        for part in q.split(rows, dim=-2):
            logits = part @ k.transpose(-1, -2)
            if log_weights is not None:
                logits = logits + log_weights.unsqueeze(-2)
            attention = torch.softmax(logits, dim=-1)
            received += attention.sum(-2)
            part, expected = part.double(), (attention @ k).double()
            cross = part.transpose(-1, -2) @ expected
            sum_s += (part + expected).sum(-2)
            sum_ss += part.transpose(-1, -2) @ part + cross + cross.transpose(-1, -2)
        k = k.double()
        sum_ss += (k * received.unsqueeze(-1)).transpose(-1, -2) @ k
        extra = tuple(range(q.ndim - 2 - len(batch_shape)))
        count = q.shape[-2] * pooled_count
        if extra:
            sum_s, sum_ss = sum_s.sum(extra), sum_ss.sum(extra)
        mean = sum_s / count
        covariance = sum_ss / count - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return cls(mean, 0.5 * (covariance + covariance.transpose(-1, -2)))


def evenly(x: Tensor, count: int) -> Tensor:
    """At most `count` evenly spaced positions of x [*b, n, d]."""
    if x.shape[-2] <= count:
        return x
    picks = torch.linspace(0, x.shape[-2] - 1, count, dtype=torch.float64).round().long()
    return x[..., picks.to(x.device), :]
