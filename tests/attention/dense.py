"""Attention with an estimated kernel the long way: every pair formed, float64, straight from the formula."""

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap


def visible_pairs(n: int, s: int, *, causal: bool, key_mask: Tensor | None = None) -> Tensor:
    """[*b, n, s], True where row i sees key j."""
    visible = torch.ones(n, s, dtype=torch.bool)
    visible = visible.tril() if causal else visible
    return visible if key_mask is None else visible & key_mask.unsqueeze(-2)


def dense(
    phi: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:
    """out_i = sum_j K_ij v_j / sum_j K_ij over the visible keys, K the estimate; float64."""
    kernel = phi.estimate(q.double(), k.double())
    visible = visible_pairs(q.shape[-2], k.shape[-2], causal=causal, key_mask=key_mask)
    kernel = torch.where(visible, kernel, 0.0)
    return kernel @ v.double() / kernel.sum(-1, keepdim=True)


def log_weights(phi: FeatureMap, q: Tensor, k: Tensor, *, causal: bool = False) -> Tensor:
    """Log attention weights [*b, n, s] of a positive map, by a log-sum-exp over its features; float64."""
    queries, keys = phi.query(q.double()), phi.key(k.double())
    log_q = queries.log_values + queries.log_scale
    log_k = keys.log_values + keys.log_scale
    logs = torch.logsumexp(log_q.unsqueeze(-2) + log_k.unsqueeze(-3), dim=-1)
    visible = visible_pairs(q.shape[-2], k.shape[-2], causal=causal)
    return torch.log_softmax(logs.masked_fill(~visible, -torch.inf), dim=-1)


def log_dense(phi: FeatureMap, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """`dense` where exp(log K) has no float64: nothing is exponentiated before it is normalised."""
    return torch.exp(log_weights(phi, q, k, causal=causal)) @ v.double()
