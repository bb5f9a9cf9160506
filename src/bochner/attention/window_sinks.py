"""The few keys that every row sees exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.attention.inputs import AttentionInputs
from bochner.attention.window_keys import Keys
from bochner.feature_map import FeatureMap, compute_dtype

PROBES = 16
"""Queries whose attention decides which keys are heavy, in the bidirectional form."""
CHUNK = 4096
"""Keys that are looked at (and repeated for groups, where they have to be) at one time."""


def first_visible(held: Keys, new: Keys) -> tuple[Keys, Tensor]:
    """Fill the free places of `held` with the first visible keys of `new`, sequence by sequence.

    Places are filled from the front: place r holds the r-th visible key of the sequence. So what a row
    may see of them is a count, and a causal choice never looks ahead.

    Returns:    the keys held now, and which of `new` became one of them, [*b, n].
    """
    places, visible = held.number, new.visible
    filled = held.visible.sum(dim=-1, keepdim=True)
    rank = filled + visible.cumsum(dim=-1)  # 1-based
    chosen = visible & (rank <= places)
    if not torch.compiler.is_compiling() and not bool(chosen.any()):
        return held, chosen
    place = torch.arange(1, places + 1, device=rank.device).unsqueeze(-1)
    match = chosen.unsqueeze(-2) & (rank.unsqueeze(-2) == place)  # [*b, places, n]
    return new.take(match.int().argmax(dim=-1)).or_else(match.any(dim=-1), held), chosen


def heavy_keys(feature_map: FeatureMap, inputs: AttentionInputs, count: int) -> tuple[Tensor, Keys]:
    """The keys with most attention from a few evenly spaced queries: positions [*b, min(count, s)], keys.

    With as many queries as keys, hidden positions are not asked. Attention is summed over the queries'
    leading dimensions that keys do not have, and over the heads of a group: what shares keys shares
    what is heavy. The choice is a constant to autograd.

    Cost:       O(PROBES s d) time, O(PROBES s) memory.
    """
    index = _heaviest(feature_map, inputs, count)
    repeated = _repeats(inputs)
    places = index.unflatten(-2, (-1, inputs.heads.group)) if repeated else index

    def taken(x: Tensor) -> Tensor:
        x = x.unsqueeze(-3) if repeated else x
        x = x.expand(*places.shape[:-1], *x.shape[-2:])
        found = x.gather(-2, places.unsqueeze(-1).expand(*places.shape, x.shape[-1]))
        return found.flatten(-4, -3) if repeated else found

    k, v = (taken(x) for x in (inputs.k, inputs.v))
    bias = Keys.bias_of(inputs, slice(None)).expand(*index.shape[:-1], -1).gather(-1, index)
    return index, Keys(k, v, bias).to(compute_dtype(k))


@torch.no_grad()
def _heaviest(feature_map: FeatureMap, inputs: AttentionInputs, count: int) -> Tensor:
    heads, length = inputs.heads, inputs.k.shape[-2]
    probes = heads.queries(_probes(inputs)).to(compute_dtype(inputs.k))
    logs, visible = [], []
    for start in range(0, length, CHUNK):
        keys = Keys.of(inputs, start, start + CHUNK)
        logs.append(feature_map.log_kernel(probes, keys.k) + keys.bias.unsqueeze(-2))
        visible.append(keys.visible)
    shown = torch.cat(visible, dim=-1)
    mass = torch.softmax(torch.cat(logs, dim=-1), dim=-1).sum(dim=-2).sum_to_size(*shown.shape)
    if _repeats(inputs):
        groups = mass.unflatten(-2, (-1, heads.group))
        mass = groups.sum(dim=-2, keepdim=True).expand_as(groups).flatten(-3, -2)
    mass = mass.masked_fill(~shown, -math.inf)
    return mass.topk(min(count, length), dim=-1).indices


def _repeats(inputs: AttentionInputs) -> bool:
    """Whether keys are repeated for the query heads of a group."""
    return inputs.heads.group > inputs.heads.rows and inputs.k.shape[-3] > 1


def is_among(index: Tensor, start: int, count: int) -> Tensor:
    """Whether each of the positions start..start+count-1 is in index [*b, s], [*b, count]."""
    positions = torch.arange(start, start + count, device=index.device).unsqueeze(-1)
    return (index.unsqueeze(-2) == positions).any(dim=-1)


def _probes(inputs: AttentionInputs) -> Tensor:
    """A few queries of every sequence, [*b, H, p, d]."""
    q, heads, visible = inputs.q, inputs.heads, inputs.key_mask
    length = q.shape[-2]
    number = min(PROBES, length)
    if visible is None or length != inputs.k.shape[-2]:
        places = torch.linspace(0, length - 1, number, device=q.device).round().long()
        return q[..., places, :]
    if heads.rows > 1 and visible.ndim > 1 and visible.shape[-2] > 1:
        visible = visible.repeat_interleave(heads.group, dim=-2)
    visible = heads.per_key(visible) if heads.rows == 1 else visible
    order = torch.argsort((~visible).int(), dim=-1, stable=True)  # visible positions come first
    share = (torch.arange(number, device=q.device) + 0.5) / number
    places = (share * visible.sum(dim=-1, keepdim=True)).long()
    index = order.gather(-1, places).unsqueeze(-1)
    lead = torch.broadcast_shapes(q.shape[:-2], index.shape[:-2])
    index = index.expand(*lead, number, q.shape[-1])
    return q.expand(*lead, *q.shape[-2:]).gather(-2, index)
