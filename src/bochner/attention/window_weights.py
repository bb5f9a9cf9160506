"""The features' part of a causal block without a logarithm for every pair.

With the reference r of the state before the block,

    a_if = phi_f(q_i) exp(r_f - t_i),  b_jf = phi_f(k_j) exp(-r_f):   phi(q_i).phi(k_j) = a_i.b_j exp(t_i)

so that one set of weights serves the state, the pairs and the next state. No row depends on a later key,
not even by its stabiliser: r is that of earlier keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.attention.state import AttentionState, extended, sums_of, with_sums
from bochner.attention.window_keys import Keys
from bochner.attention.window_partials import Partial
from bochner.features import Features

PAIRS = 64
"""Tokens between two states: scores of pairs are formed for so many at a time."""


def pieces(rows: Tensor, length: int) -> list[Tensor]:
    """PAIRS tokens at a time of rows [*b, group * length, m]: [*b, group * PAIRS, m] each."""
    tokens = rows.unflatten(-2, (-1, length))
    return [part.flatten(-3, -2) for part in tokens.split(PAIRS, dim=-2)]


def whole(parts: list[Tensor], group: int) -> Tensor:
    """The inverse of `pieces`."""
    if group == 1:
        return torch.cat(parts, dim=-2)
    return torch.cat([part.unflatten(-2, (group, -1)) for part in parts], dim=-2).flatten(-3, -2)


def query_weights(queries: Features, reference: Tensor) -> tuple[Tensor, Tensor]:
    """a [*b, n, m] and t [*b, n, 1]."""
    if not queries.positive:
        return queries.values, queries.log_scale + reference
    total = queries.log_features() + reference
    top = total.amax(dim=-1, keepdim=True)
    return total.sub_(top).exp_(), top


def key_weights(keys: Features, reference: Tensor) -> tuple[Tensor, Tensor]:
    """b [*b, n, m], 0 for hidden keys, and the largest entry that it may have in a row, [*b, n, 1]."""
    if keys.positive:
        weights = (keys.log_features() - reference).exp_()
        return weights, weights.amax(dim=-1, keepdim=True)
    factor = torch.exp(keys.log_scale - reference)
    return keys.values * factor, factor


def found_by_weights(
    state: AttentionState, queries: Features, keys: Features, values: Keys
) -> tuple[Partial, AttentionState, Tensor | None] | None:
    """What rows find in the state and in keys up to their own, and the state with all these keys.

    Arguments:  keys: features, exp(-inf) where hidden; queries: those of a group one after another.
    Returns:    the third: rows [*b, n, 1] from the first key on that is too much larger than all before
                the block: they are not to be used, nor is the state; None if there are none. Nothing at
                all where the state has no finite reference.
    """
    if state.reference is None or not bool(torch.isfinite(state.reference.sum())):
        return None
    reference, length = state.reference.to(values.bias.dtype), values.number
    ours, scale = query_weights(queries, reference)
    theirs, largest = key_weights(keys, reference)
    total, group, parts = sums_of(state, ours.dtype), ours.shape[-2] // length, []
    known = extended(values.v, ours.dtype)
    for a, b, v in zip(*(pieces(x, length) for x in (ours, theirs, known)), strict=True):
        scores = (a @ b.transpose(-1, -2)).unflatten(-2, (group, -1)).tril_().flatten(-3, -2)
        parts.append(scores @ v + a @ total)
        total = total + b.transpose(-1, -2) @ v
    sums = whole(parts, group)
    found = Partial(sums[..., :-1], sums[..., -1:], scale)
    limit = torch.finfo(sums.dtype).max ** 0.75
    if not float(largest.amax()) <= limit:
        lost = (largest > limit).cumsum(dim=-2) > 0
        return found, state, torch.cat([lost] * group, dim=-2)
    grown = (theirs if keys.positive else largest).amax(dim=-2, keepdim=True).clamp_min(1.0)
    after = with_sums(state, reference + grown.log(), total / grown.transpose(-1, -2))
    return found, after, None
