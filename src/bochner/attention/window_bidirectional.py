"""Bidirectional attention with an exact window, and cross-attention with exact heavy keys.

    row i of a block [a, b), band |i - j| <= r:
        j < a - r and j >= b + r    features, from two states: of the keys before and of those after
        a - r <= j < b + r          pairs: exact on the band, features elsewhere
    heavy keys                      exact, for every row

The state before a block grows with the blocks; those after it come from one pass from the end, which
keeps one for every block. The two are added, not subtracted from a whole. Without a band one state holds
all keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bochner.attention.inputs import AttentionInputs
from bochner.attention.recompute import recomputes, records, run
from bochner.attention.state import (
    AttentionState,
    Rows,
    absorb,
    finite,
    normalised,
    read,
    sums_of,
    with_sums,
)
from bochner.attention.window_blocks import found_by_weights, lost_rows
from bochner.attention.window_keys import Keys
from bochner.attention.window_partials import (
    Guarded,
    GuardedShare,
    Partial,
    combined,
    exact_pairs,
    merged,
    scaled_pairs,
)
from bochner.attention.window_sinks import heavy_keys, is_among
from bochner.feature_map import FeatureMap
from bochner.features import Features

if TYPE_CHECKING:
    from bochner.attention.window import ExactWindow

BLOCK = 128
"""Rows per block; a band keeps one state for each of them."""


def attend_all(feature_map: FeatureMap, exact: ExactWindow, inputs: AttentionInputs) -> Tensor:
    """Every row sees every visible key: checked inputs -> out [*b, n, dv]."""
    heavy = heavy_keys(feature_map, inputs, exact.sinks) if exact.sinks else None
    tensors = (*inputs[:3], inputs.key_bias)
    with torch.autocast(device_type=inputs.q.device.type, enabled=False):
        if exact.reach < 0 or records(feature_map, tensors) or torch.compiler.is_compiling():
            return _by_logs(feature_map, exact, inputs, heavy)
        outputs, lost = Rows(inputs.q, inputs.v), Rows(inputs.q, inputs.q)
        share = GuardedShare(exact.denominator_floor)
        for parts in found_by_weights(feature_map, inputs, exact.reach, heavy):
            found = combined(*parts, exact.denominator_floor)
            rows = normalised(found.numerator, found.denominator, feature_map)
            outputs.append(inputs.heads.outputs(rows))
            lost.append(inputs.heads.outputs(lost_rows(*parts).to(inputs.q.dtype)))
            share.add(found.exact_only)
        if bool(lost.whole().any()):
            again = _by_logs(feature_map, exact, inputs, heavy)
            return torch.where(lost.whole() > 0, again, outputs.whole())
    share.warn()
    return outputs.whole()


def _by_logs(
    feature_map: FeatureMap,
    exact: ExactWindow,
    inputs: AttentionInputs,
    chosen: tuple[Tensor, Keys] | None,
) -> Tensor:
    """The same from the logarithms of all pairs; what autograd records and what is compiled."""
    heads, reach, count = inputs.heads, exact.reach, inputs.k.shape[-2]
    index, heavy = (None, None) if chosen is None else chosen

    def others(start: int, stop: int) -> Keys:
        """Those of these keys that are not heavy."""
        keys = Keys.of(inputs, start, stop)
        return keys if index is None else keys.hide(is_among(index, max(start, 0), keys.number))

    def add(state: AttentionState, *new: Tensor) -> AttentionState:
        keys = Keys(*new)
        features = feature_map.key(keys.k).scaled(keys.shift.unsqueeze(-1))
        return absorb(state, features, keys.v, keys.visible)

    outputs, share = Rows(inputs.q, inputs.v), GuardedShare(exact.denominator_floor)
    starts = range(0, inputs.q.shape[-2], BLOCK)
    again = recomputes(
        feature_map, (*inputs[:3], inputs.key_bias), max(len(starts), -(-count // BLOCK))
    )

    def absorbed(state: AttentionState, start: int, stop: int) -> AttentionState:
        keys = others(start, stop)
        return run(add, state, *keys, again=again) if keys.number else state

    def block(
        start: int, q: Tensor, near: Keys, before: AttentionState, after: AttentionState
    ) -> tuple[Guarded, AttentionState]:
        q = heads.queries(q).to(near.k.dtype)
        row = torch.arange(q.shape[-2] // heads.rows, device=q.device).repeat(heads.rows)
        place = torch.arange(near.number, device=q.device) - min(reach, start)
        band = (row.unsqueeze(-1) - place).abs() <= reach
        known = _exact_part(feature_map, q, heavy, near, band)
        estimated, keys = _features_part(feature_map, q, near, ~band, (before, after))
        if keys is not None:
            passed = place < BLOCK - reach  # the next block's rows are beyond their reach
            before = absorb(before, keys, near.v, near.visible & passed)
        return combined(estimated, known, exact.denominator_floor), before

    before = AttentionState(feature_map)
    for start, after in zip(starts, _states_after(before, absorbed, count, reach), strict=False):
        near = others(start - reach, start + BLOCK + reach) if reach >= 0 else others(0, 0)
        q = inputs.q[..., start : start + BLOCK, :]
        found, before = run(block, start, q, near, before, after, again=again)
        rows = normalised(found.numerator, found.denominator, feature_map)
        outputs.append(heads.outputs(rows))
        share.add(found.exact_only)
    share.warn()
    return outputs.whole()


def _states_after(
    empty: AttentionState,
    absorbed: Callable[[AttentionState, int, int], AttentionState],
    count: int,
    reach: int,
) -> Iterator[AttentionState]:
    """For every block [a, b), the state of keys from b + reach on; that of all keys without a band."""
    if reach < 0:
        state = empty
        for start in range(0, count, BLOCK):
            state = absorbed(state, start, start + BLOCK)
        return itertools.repeat(state)
    states, last = [empty], (count - 1) // BLOCK * BLOCK
    for start in range(last, 0, -BLOCK):
        states.append(absorbed(states[-1], start + reach, start + BLOCK + reach))
    return reversed(states)


def _exact_part(
    feature_map: FeatureMap, q: Tensor, heavy: Keys | None, near: Keys, band: Tensor
) -> Partial | None:
    """Heavy keys and the band; None if there are neither."""
    parts = []
    if heavy is not None:
        parts.append(exact_pairs(feature_map, q, heavy, None))
    if near.number:
        parts.append(exact_pairs(feature_map, q, near, ~band))
    return merged(parts) if parts else None


def _features_part(
    feature_map: FeatureMap,
    q: Tensor,
    near: Keys,
    off_band: Tensor,
    far: tuple[AttentionState, AttentionState],
) -> tuple[Partial | None, Features | None]:
    """Keys near by that are off the band, and states of far keys; None if there are neither. And the
    features of the keys near by."""
    queries, keys, parts = feature_map.query(q), None, []
    if near.number:
        keys = feature_map.key(near.k).scaled(near.shift.unsqueeze(-1))
        parts.append(scaled_pairs(queries, keys, near.v, off_band & near.visible.unsqueeze(-2)))
    states = [state for state in far if state.reference is not None]
    if states:
        parts.append(Partial(*read(_sum(states), queries)))
    return merged(parts) if parts else None, keys


def _sum(states: list[AttentionState]) -> AttentionState:
    """One state of all their keys."""
    total = states[0]
    for state in states[1:]:
        assert total.reference is not None
        assert state.reference is not None
        reference = torch.maximum(total.reference, state.reference)
        first, second = (
            sums_of(part, reference.dtype) * torch.exp(part.reference - finite(reference)).mT
            for part in (total, state)
            if part.reference is not None
        )
        total = with_sums(total, reference, first + second)
    return total
