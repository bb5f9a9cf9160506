"""Causal attention: a fold over blocks of tokens, and so also over steps.

A block meets earlier keys through the state and its own keys through pairs of features. With the
reference r that the state has before the block,

    a_if = phi_f(q_i) exp(r_f - t_i),   b_jf = phi_f(k_j) exp(-r_f),   phi(q_i).phi(k_j) = a_i.b_j exp(t_i)

so that one set of query weights a serves the state and the pairs, and one set of key weights b serves
the pairs and the next state. t_i cancels in the output. No row depends on a later key, not even by its
stabiliser: r is that of earlier keys, or of the first visible key, which every row sees that sees any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.attention.inputs import AttentionInputs
from bochner.attention.recompute import run
from bochner.attention.state import (
    CAUSAL_BLOCK,
    AttentionState,
    Rows,
    absorb,
    extended,
    finite,
    normalised,
    query_weights,
    read,
    sums_of,
    with_sums,
)
from bochner.feature_map import FeatureMap, compute_dtype
from bochner.features import Features, fits, log_inner

BLOCK = 256
"""Tokens whose features exist at one time."""
PAIRS = 64
"""Tokens between two states: [PAIRS, PAIRS] scores are formed, beyond them keys act by the state."""


class Block(NamedTuple):
    """Consecutive tokens, queries folded (see `Heads`); log_weight [*b, n, 1] or None is added to keys."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_weight: Tensor | None

    def to(self, dtype: torch.dtype) -> Block:
        """In another dtype."""
        return Block(*(None if x is None else x.to(dtype) for x in self))  # type: ignore[arg-type]

    @property
    def group(self) -> int:
        """Query rows per key."""
        return self.q.shape[-2] // self.k.shape[-2]

    def keys(self, feature_map: FeatureMap) -> Features:
        """Features of the keys; those of hidden ones are exp(-inf)."""
        features = feature_map.key(self.k)
        return features if self.log_weight is None else features.scaled(self.log_weight)


def log_weights(inputs: AttentionInputs) -> Tensor | None:
    """What is added to the log-features of every key, [*b, s, 1]: its bias, -inf where it is hidden."""
    dtype, mask, bias = compute_dtype(inputs.k), inputs.key_mask, inputs.key_bias
    if mask is None and bias is None:
        return None
    weight = inputs.k.new_zeros((), dtype=dtype) if bias is None else bias.to(dtype)
    if mask is not None:
        weight = torch.where(mask, weight, -math.inf)
    return inputs.heads.per_key(weight).unsqueeze(-1)


def cut(inputs: AttentionInputs, weights: Tensor | None, start: int, stop: int) -> Block:
    """The tokens from start to stop."""
    q, k, v = (x[..., start:stop, :] for x in inputs[:3])
    weight = None if weights is None else weights[..., start:stop, :]
    heads = inputs.heads
    return Block(heads.queries(q), heads.keys(k), heads.keys(v), weight)


# -- one block -----------------------------------------------------------------------------------------
class Weights(NamedTuple):
    """The a and b of the module's formula, r [*b, 1, m], and the largest b, at least 1, of each feature
    (of all features if signed)."""

    queries: Tensor
    keys: Tensor
    reference: Tensor
    largest: Tensor


def key_weights(keys: Features, reference: Tensor) -> Tensor:
    """b_j [*b, n, m], 0 for hidden keys; the last use of the keys."""
    if not keys.positive:
        return keys.values * torch.exp(keys.log_scale - reference)
    total = keys.used_up_plus(-reference)
    scale = keys.log_parts()[1]
    return (total.add_(scale) if fits(scale.shape, total.shape) else total + scale).exp_()


def reference_of(state: AttentionState, keys: Features) -> Tensor | None:
    """r: that of the state, for sequences without a key so far that of their first visible one.

    None if an r is not finite: a feature that all keys so far lack.
    """
    reference = None if state.reference is None else state.reference.to(keys.dtype)
    if reference is None or not bool(torch.isfinite(reference.sum())):
        first = _first_visible(keys)
        if reference is not None:
            unseen = torch.isinf(reference).all(dim=-1, keepdim=True)
            first = torch.where(unseen, first, reference)
        return first if bool(torch.isfinite(first).all()) else None
    return reference


def _first_visible(keys: Features) -> Tensor:
    """Log-features (positive) or log-scale of the first visible key, [*b, 1, m or 1]; 0 if there is none."""
    logs, scale = keys.log_parts() if keys.positive else (None, keys.log_scale)
    scale = scale.detach()
    index = (scale > -math.inf).to(torch.uint8).argmax(dim=-2, keepdim=True)
    first = torch.take_along_dim(scale, index, dim=-2)
    if logs is None:
        return finite(first)
    lead = torch.broadcast_shapes(logs.shape[:-2], index.shape[:-2])
    logs, index = (x.detach().expand(*lead, *x.shape[-2:]) for x in (logs, index))
    return torch.where(torch.isinf(first), 0.0, torch.take_along_dim(logs, index, dim=-2) + first)


def weights_of(state: AttentionState, queries: Features, keys: Features) -> Weights | None:
    """a, b and r; None where the state has no finite reference. The last use of the features."""
    reference = reference_of(state, keys)
    if reference is None:
        return None
    weights = key_weights(keys, reference)
    peaks = weights if keys.positive else torch.exp(keys.log_scale - reference)
    largest = peaks.amax(dim=-2, keepdim=True).clamp_min_(1.0)
    return Weights(query_weights(queries, reference, use_up=True)[0], weights, reference, largest)


def pieces(rows: Tensor, length: int, group: int) -> Iterator[Tensor]:
    """PAIRS tokens at a time of rows [*b, group * length, m]: [*b, group * PAIRS, m] each."""
    for start in range(0, length, PAIRS):
        if group == 1:
            yield rows[..., start : start + PAIRS, :]
        else:
            yield rows.unflatten(-2, (group, length))[..., start : start + PAIRS, :].flatten(-3, -2)


def whole(parts: list[Tensor], group: int) -> Tensor:
    """The inverse of `pieces`."""
    if len(parts) == 1:
        return parts[0]
    if group == 1:
        return torch.cat(parts, dim=-2)
    return torch.cat([part.unflatten(-2, (group, -1)) for part in parts], dim=-2).flatten(-3, -2)


def lower(scores: Tensor, group: int) -> Tensor:
    """Scores [*b, group * n, n], those with later keys set to 0."""
    if group == 1:
        return scores.tril_()
    return scores.unflatten(-2, (group, -1)).tril_().flatten(-3, -2)


def sums_before(
    weights: Tensor, values: Tensor, start: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """sum_j b_j [v_j, 1] before every piece of PAIRS tokens, [*b, m, dv + 1], and after the last."""
    length = values.shape[-2]
    total, sums = start, []
    for keys, part in zip(pieces(weights, length, 1), pieces(values, length, 1), strict=True):
        added = keys.transpose(-1, -2) @ part
        total = torch.zeros_like(added) if total is None else total
        sums.append(total)
        total = total + added
    assert total is not None
    return sums, total


def rows_by_weights(weights: Weights, values: Tensor, before: list[Tensor]) -> Tensor:
    """[numerator, denominator] of every query row, [*b, rows, dv + 1], in units of exp(t_i)."""
    length = values.shape[-2]
    group = weights.queries.shape[-2] // length
    parts = []
    for queries, keys, part, sums in zip(
        pieces(weights.queries, length, group),
        pieces(weights.keys, length, 1),
        pieces(values, length, 1),
        before,
        strict=True,
    ):
        found = lower(queries @ keys.transpose(-1, -2), group) @ part
        parts.append(found.add_(queries @ sums))
    return whole(parts, group)


def next_state(state: AttentionState, weights: Weights, sums: Tensor) -> AttentionState:
    """The state that holds `sums`, its reference raised to the largest key."""
    reference = weights.reference + weights.largest.log()
    if not bool((sums[..., -1] != 0).all()):  # only a hidden sequence's, or signed ones by accident
        unseen = (sums == 0).all(dim=-1).all(dim=-1)[..., None, None]
        reference = reference.masked_fill(unseen, -math.inf)
    return with_sums(state, reference, sums / weights.largest.transpose(-1, -2))


class Solved(NamedTuple):
    """A block's output rows, the state after it, and what its backward pass needs: the denominators in
    units of exp(t_i) and r; None if some row came from logarithms."""

    rows: Tensor
    state: AttentionState
    denominator: Tensor | None = None
    reference: Tensor | None = None


def solve(state: AttentionState, block: Block, feature_map: FeatureMap) -> Solved:
    """Output rows and next state, by weights; from logarithms where those leave the dtype's range.

    That is from the first key on that is too much larger than all keys before the block: the rows before
    it stay as they are, to the bit.
    """
    keys = block.keys(feature_map)
    weights = weights_of(state, feature_map.query(block.q), keys)
    if weights is None:
        return Solved(*block_by_logs(state, block, feature_map))
    values = extended(block.v, keys.dtype)
    start = None if state.numerator is None else sums_of(state, values.dtype)
    before, after = sums_before(weights.keys, values, start)
    one = values.shape[-2] == 1  # a token sees what there is after it
    sums = weights.queries @ after if one else rows_by_weights(weights, values, before)
    denominator = sums[..., -1:]
    rows = normalised(sums[..., :-1], denominator, feature_map)
    limit = torch.finfo(values.dtype).max ** 0.75
    vanished = None if feature_map.positive else vanished_rows(state, block, denominator)
    if float(weights.largest.amax()) <= limit:
        after_all = next_state(state, weights, after)
        if vanished is None:
            return Solved(rows, after_all, denominator, weights.reference)
        by_logs, _ = block_by_logs(state, block, feature_map)
        return Solved(torch.where(vanished, by_logs, rows), after_all)
    keys = block.keys(feature_map)
    logs = keys.log_features() if keys.positive else keys.log_scale
    too_large = (logs - weights.reference).amax(dim=-1, keepdim=True) > math.log(limit)
    lost = torch.cat([too_large.cumsum(dim=-2) > 0] * block.group, dim=-2)
    lost = lost if vanished is None else lost | vanished
    by_logs, state = block_by_logs(state, block, feature_map)
    return Solved(torch.where(lost, by_logs, rows), state)


def vanished_rows(state: AttentionState, block: Block, denominator: Tensor) -> Tensor | None:
    """Rows [*b, rows, 1] that see a key and whose denominator is so small that terms of it were lost, or
    are in its derivatives; None if there are none. Signed maps only: that of positive ones is at least 1."""
    small = denominator.abs() <= torch.finfo(denominator.dtype).tiny * 1e8
    if not bool(small.any()):
        return None
    if block.log_weight is not None:  # rows before the first visible key are 0, and rightly so
        seen = (block.log_weight > -math.inf).cumsum(dim=-2) > 0
        if state.reference is not None:
            seen = seen | torch.isfinite(state.reference).any(dim=-1, keepdim=True)
        small = small & torch.cat([seen] * block.group, dim=-2)
    return small if bool(small.any()) else None


def block_by_logs(
    state: AttentionState, block: Block, feature_map: FeatureMap
) -> tuple[Tensor, AttentionState]:
    """The rows and state of `solve` from the logarithms of all scores: never overflows, never loses a pair.

    Also what autograd records and what is compiled. Signed features have no logarithms: float64 holds
    products, and derivatives of their logarithms, that float32 does not.
    """
    dtype = compute_dtype(block.k)
    if not feature_map.positive and dtype == torch.float32 and not torch.compiler.is_compiling():
        rows, after = _from_logs(state, block.to(torch.float64), feature_map)
        assert after.reference is not None
        after = with_sums(after, after.reference.to(dtype), sums_of(after, dtype))
        return rows.to(dtype), after
    return _from_logs(state, block, feature_map)


def _from_logs(
    state: AttentionState, block: Block, feature_map: FeatureMap
) -> tuple[Tensor, AttentionState]:
    queries, keys = feature_map.query(block.q), block.keys(feature_map)
    values = block.v.to(compute_dtype(block.k))
    length = values.shape[-2]
    allowed = torch.ones(length, length, dtype=torch.bool, device=values.device).tril()
    scores = log_inner(queries, keys, where=allowed.repeat(block.group, 1))
    top = scores.log_abs.detach().amax(dim=-1, keepdim=True)
    past = None if state.reference is None else read(state, queries)
    if past is not None:
        top = torch.maximum(top, past[2])
    weights = scores.sign * torch.exp(scores.log_abs - finite(top))
    numerator, denominator = weights @ values.to(weights.dtype), weights.sum(dim=-1, keepdim=True)
    if past is not None:
        decay = torch.exp(past[2] - finite(top))
        numerator = numerator + past[0] * decay
        denominator = denominator + past[1] * decay
    return normalised(numerator, denominator, feature_map), absorb(state, keys, values)


# -- all blocks ----------------------------------------------------------------------------------------
def solved_blocks(state: AttentionState, inputs: AttentionInputs) -> Iterator[Solved]:
    """`solve` block by block, each from the state that the one before it left."""
    feature_map, weights = state.feature_map, log_weights(inputs)
    for start in range(0, inputs.q.shape[-2], BLOCK):
        solved = solve(state, cut(inputs, weights, start, start + BLOCK), feature_map)
        state = solved.state
        yield solved


def rows_by_logs(
    state: AttentionState, inputs: AttentionInputs, *, again: bool
) -> tuple[Tensor, AttentionState]:
    """All output rows through `block_by_logs`; with `again` a block is computed again for backward."""
    feature_map, weights = state.feature_map, log_weights(inputs)
    outputs = Rows(inputs.q, inputs.v)

    def block(state: AttentionState, *parts: Tensor) -> tuple[Tensor, AttentionState]:
        return block_by_logs(state, Block(*parts), feature_map)

    for start in range(0, inputs.q.shape[-2], CAUSAL_BLOCK):
        parts = cut(inputs, weights, start, start + CAUSAL_BLOCK)
        rows, state = run(block, state, *parts, again=again)
        outputs.append(inputs.heads.outputs(rows))
    return outputs.whole(), state
