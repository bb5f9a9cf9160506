"""Bidirectional attention: all keys into a state, then all queries out of it; and its derivatives.

With the formulas of `bochner.attention.backward`, S the sums of all keys, a divided by its row's denominator
and U = sum_i a_i g_i^T over all rows:  dL/da_i = S g_i,  dL/db_j = U [v_j, 1],  dL/d[v_j, 1] = U^T b_j.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bochner.attention.backward import (
    Gradients,
    Points,
    derivatives,
    gradient_rows,
    normalised_weights,
    of_keys,
    of_queries,
    save,
)
from bochner.attention.causal import key_weights, log_weights
from bochner.attention.heads import Heads
from bochner.attention.inputs import AttentionInputs
from bochner.attention.recompute import recomputes, run
from bochner.attention.state import (
    CAUSAL_BLOCK,
    AttentionState,
    Rows,
    absorb,
    extended,
    finite,
    normalised,
    read,
    sums_of,
)
from bochner.feature_map import FeatureMap, compute_dtype

BLOCK = 256
"""Tokens whose features exist at one time in the bidirectional form."""


def bidirectional(feature_map: FeatureMap, inputs: AttentionInputs) -> Tensor:
    """`linear_attention` on checked inputs: all keys into a state, then all queries out of it."""
    tensors, longest = (*inputs[:3], inputs.key_bias), max(inputs.q.shape[-2], inputs.k.shape[-2])
    denominators: list[Tensor] = []
    if recomputes(feature_map, tensors, -(-longest // CAUSAL_BLOCK)):
        parameters, weights = list(feature_map.parameters()), log_weights(inputs)
        found = _Bidirectional.apply(feature_map, inputs.heads, *inputs[:3], weights, *parameters)
        out, denominators = found[0], [found[1]]
    else:
        out = looked_up(summary(feature_map, inputs), inputs, denominators)
    if feature_map.positive or torch.compiler.is_compiling() or not _vanished(denominators):
        return out
    wide = inputs._replace(q=inputs.q.double(), k=inputs.k.double(), v=inputs.v.double())
    return bidirectional(feature_map, wide).to(out.dtype)


def _vanished(denominators: list[Tensor]) -> bool:
    """Whether some denominator is so small that float32 has lost terms of it, or of its derivatives.

    Signed maps only: that of positive ones is at least 1.
    """
    if denominators[0].dtype == torch.float64:
        return False
    least = min(float(x.detach().abs().amin()) for x in denominators)
    return least <= torch.finfo(denominators[0].dtype).tiny * 1e8


def summary(feature_map: FeatureMap, inputs: AttentionInputs) -> AttentionState:
    """The state after all keys of checked inputs."""
    k, v, heads, weights = inputs.k, inputs.v, inputs.heads, log_weights(inputs)

    def keep(state: AttentionState, k: Tensor, v: Tensor, weight: Tensor | None) -> AttentionState:
        keys = feature_map.key(heads.keys(k))
        keys = keys if weight is None else keys.scaled(weight)
        return absorb(state, keys, heads.keys(v).to(compute_dtype(k)))

    state = AttentionState(feature_map)
    again = recomputes(feature_map, (k, v, weights), -(-k.shape[-2] // CAUSAL_BLOCK))
    with torch.autocast(device_type=k.device.type, enabled=False):
        for start in range(0, k.shape[-2], BLOCK):
            rows = slice(start, start + BLOCK)
            weight = None if weights is None else weights[..., rows, :]
            state = run(keep, state, k[..., rows, :], v[..., rows, :], weight, again=again)
    return state


def looked_up(
    state: AttentionState, inputs: AttentionInputs, denominators: list[Tensor] | None = None
) -> Tensor:
    """What the queries of checked inputs find in a state; the denominators of every block go to the list."""
    q, heads, feature_map = inputs.q, inputs.heads, state.feature_map

    def look_up(state: AttentionState, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return read(state, feature_map.query(heads.queries(q)))

    outputs = Rows(q, inputs.v)
    held = (q, state.numerator, state.denominator)
    again = recomputes(feature_map, held, -(-q.shape[-2] // CAUSAL_BLOCK))
    with torch.autocast(device_type=q.device.type, enabled=False):
        for start in range(0, q.shape[-2], BLOCK):
            queries = q[..., start : start + BLOCK, :]
            numerator, denominator, _ = run(look_up, state, queries, again=again)
            if denominators is not None:
                denominators.append(denominator)
            outputs.append(heads.outputs(normalised(numerator, denominator, feature_map)))
    return outputs.whole()


class _Bidirectional(torch.autograd.Function):
    """out, and what backward needs: denominators, reference and sums."""

    @staticmethod
    def forward(
        feature_map: FeatureMap,
        heads: Heads,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        weight: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs, denominators = Points(q, k, v, weight).inputs(heads), list[Tensor]()
        state = summary(feature_map, inputs)
        out = looked_up(state, inputs, denominators)
        assert state.reference is not None
        denominator = torch.cat(denominators, dim=-2)
        return out, denominator, state.reference, sums_of(state, denominator.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        save(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return derivatives(ctx, d_out, _gradients, _again)


def _again(feature_map: FeatureMap, inputs: AttentionInputs) -> Tensor:
    return looked_up(summary(feature_map, inputs), inputs)


def _gradients(
    feature_map: FeatureMap,
    heads: Heads,
    points: Points,
    gradients: Gradients,
    results: tuple[Tensor, Tensor, list[Tensor]],
) -> None:
    d_out, out, (denominators, reference, sums) = results
    dtype, of_seen = denominators.dtype, finite(reference)  # a feature that no key has is 0
    d_sums: Tensor | None = None
    for start in range(0, points.q.shape[-2], BLOCK):
        rows = slice(start, start + BLOCK)
        g = heads.queries(gradient_rows(d_out[..., rows, :], out[..., rows, :], dtype))
        below = denominators[..., start * heads.rows : start * heads.rows + g.shape[-2], :]
        leaves = points.leaves(rows)
        with torch.enable_grad():
            queries = feature_map.query(heads.queries(leaves.q))
        a, factor = normalised_weights(queries.detach(), reference, below)
        gradients.add([of_queries(queries, a, g @ sums.to(dtype).mT, factor)], leaves, rows)
        added = a.mT @ g
        d_sums = added if d_sums is None else d_sums + added
    assert d_sums is not None
    for start in range(0, points.k.shape[-2], BLOCK):
        rows = slice(start, start + BLOCK)
        leaves = points.leaves(rows)
        with torch.enable_grad():
            keys = feature_map.key(heads.keys(leaves.k))
            keys = keys if leaves.weight is None else keys.scaled(leaves.weight)
            values = extended(heads.keys(leaves.v), dtype)
        b = key_weights(keys.detach(), of_seen)
        d_b = values.detach() @ d_sums.mT
        gradients.add([*of_keys(keys, b, d_b, of_seen), (values, b @ d_sums)], leaves, rows)
