"""Causal attention with an exact window: a fold over blocks, and so also over steps.

Features lag w tokens behind: the state has absorbed keys up to i - w, and the last w keys are held as
they came. A block of n rows then reads the state, meets the n keys that become old during the block
through their features, and its window through exact values. Keys that are sinks never become old.

    row i of a block that starts at a:   j < a - w      the state
                                         a - w <= j <= i - w     pairs of features: causal, w late
                                         i - w < j <= i          exact pairs
                                         sinks <= i              exact pairs
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bochner.attention.inputs import AttentionInputs
from bochner.attention.recompute import recomputes, records, run
from bochner.attention.state import CAUSAL_BLOCK, AttentionState, Rows, absorb, normalised, read
from bochner.attention.window_keys import Keys, common_lead, joined
from bochner.attention.window_partials import (
    Guarded,
    GuardedShare,
    Partial,
    combined,
    exact_pairs,
    feature_pairs,
    merged,
)
from bochner.attention.window_sinks import first_visible
from bochner.attention.window_weights import PAIRS, found_by_weights, pieces, whole

BLOCK = 256
"""Tokens whose features exist at one time, unless autograd records them."""


def advance(state: AttentionState, inputs: AttentionInputs) -> tuple[Tensor, AttentionState]:
    """Attention over the next tokens, and the state after them."""
    assert state.exact is not None
    feature_map, length, heads = state.feature_map, inputs.q.shape[-2], inputs.heads
    floor = state.exact.denominator_floor
    outputs, share = Rows(inputs.q, inputs.v), GuardedShare(floor)
    tensors = (*inputs[:3], inputs.key_bias, state.numerator, state.denominator)
    by_logs = records(feature_map, tensors) or torch.compiler.is_compiling()
    size = CAUSAL_BLOCK if by_logs else BLOCK
    again = recomputes(feature_map, tensors, -(-length // size))

    def block(
        state: AttentionState, q: Tensor, k: Tensor, v: Tensor, bias: Tensor
    ) -> tuple[Guarded, AttentionState]:
        return _block(state, heads.queries(q), Keys(k, v, bias), by_logs=by_logs)

    with torch.autocast(device_type=inputs.q.device.type, enabled=False):
        for start in range(0, length, size):
            stop = min(start + size, length)
            q, keys = inputs.q[..., start:stop, :], Keys.of(inputs, start, stop)
            state = _with_memory(state, keys) if start == 0 else state
            found, state = run(block, state, q, *keys, again=again)
            rows = normalised(found.numerator, found.denominator, feature_map)
            outputs.append(heads.outputs(rows))
            share.add(found.exact_only)
    share.warn()
    assert state.recent is not None
    return outputs.whole(), replace(state, recent=state.recent.copies())


def _with_memory(state: AttentionState, keys: Keys) -> AttentionState:
    """The state with room for its window and its sinks, at the leading dimensions of these keys too."""
    assert state.exact is not None
    if state.recent is None or state.sinks is None:
        recent = Keys.none_of(keys, state.exact.window)
        return replace(state, recent=recent, sinks=Keys.none_of(keys, state.exact.sinks))
    lead = common_lead(state.recent.lead, keys.lead)
    if lead == state.recent.lead and state.recent.bias.dtype == keys.bias.dtype:
        return state
    dtype = torch.promote_types(state.recent.bias.dtype, keys.bias.dtype)
    recent, sinks = (held.at(lead).to(dtype) for held in (state.recent, state.sinks))
    return replace(state, recent=recent, sinks=sinks)


def _block(
    state: AttentionState, q: Tensor, new: Keys, *, by_logs: bool
) -> tuple[Guarded, AttentionState]:
    """One block of rows, those of several heads one after another, and the state after its keys."""
    exact, recent, sinks = state.exact, state.recent, state.sinks
    assert exact is not None
    assert recent is not None
    assert sinks is not None
    q, new = q.to(recent.bias.dtype), new.at(recent.lead).to(recent.bias.dtype)
    known = sinks.visible.sum(dim=-1, keepdim=True) + new.visible.cumsum(dim=-1)
    sinks, chosen = first_visible(sinks, new)
    near = joined(recent, new.hide(chosen))  # key c of these is token c - window of the block
    old = near.rows(0, new.number)
    features = _features_by_logs if by_logs else _features_by_weights
    estimated, state = features(state, q, old)
    exactly = None
    if exact.window + sinks.number:
        band = near.rows(1, near.number if exact.window else 1)
        exactly = _exact_part(state, q, sinks, known, band)
    found = combined(estimated, exactly, exact.denominator_floor)
    return found, replace(state, recent=near.rows(new.number, near.number), sinks=sinks)


def _features_by_logs(
    state: AttentionState, q: Tensor, old: Keys
) -> tuple[Partial, AttentionState]:
    """What rows find in the state and in keys that become old, and the state with these keys."""
    queries = state.feature_map.query(q)
    keys = state.feature_map.key(old.k).scaled(old.shift.unsqueeze(-1))
    place = torch.arange(old.number, device=q.device)
    row = place.repeat(q.shape[-2] // old.number).unsqueeze(-1)
    parts = [feature_pairs(queries, keys, old.v, (place <= row) & old.visible.unsqueeze(-2))]
    if state.reference is not None:
        parts.append(Partial(*read(state, queries)))
    return merged(parts), absorb(state, keys, old.v, old.visible)


def _features_by_weights(
    state: AttentionState, q: Tensor, old: Keys
) -> tuple[Partial, AttentionState]:
    """The same by weights, and from logarithms where there are none or they overflow."""
    queries = state.feature_map.query(q)
    keys = state.feature_map.key(old.k).scaled(old.bias.unsqueeze(-1))
    weighed = found_by_weights(state, queries, keys, old)
    if weighed is None:
        return _features_by_logs(state, q, old)
    found, after, lost = weighed
    if lost is None:
        return found, after
    by_logs, after = _features_by_logs(state, q, old)
    pairs = zip(by_logs, found, strict=True)
    return Partial(*(torch.where(lost, a, b) for a, b in pairs)), after


def _exact_part(
    state: AttentionState, q: Tensor, sinks: Keys, known: Tensor, band: Keys
) -> Partial:
    """Sinks and the band; known [*b, n]: how many sinks a row sees. PAIRS rows at a time."""
    assert state.exact is not None
    window, count = state.exact.window, known.shape[-1]
    group, parts = q.shape[-2] // count, []
    for number, rows in enumerate(pieces(q, count)):
        start, length = number * PAIRS, rows.shape[-2] // group
        near = band.rows(start, start + length + window - 1) if window else band
        row = torch.arange(length, device=q.device).repeat(group)
        place = torch.arange(near.number, device=q.device) - row.unsqueeze(-1)
        off_band = (place < 0) | (place >= window)
        order = torch.arange(sinks.number, device=q.device)
        later = order >= known[..., start + row].unsqueeze(-1)
        out = torch.cat((later, off_band.expand(*later.shape[:-1], -1)), dim=-1)
        parts.append(exact_pairs(state.feature_map, rows, joined(sinks, near), out))
    return Partial(*(whole(list(x), group) for x in zip(*parts, strict=True)))
