"""Attention whose cost is linear in the length."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.attention.inputs import attention_inputs, check_some_key_visible
from bochner.attention.recompute import recomputes, run
from bochner.attention.state import (
    CAUSAL_BLOCK,
    AttentionState,
    Rows,
    absorb,
    advance,
    normalised,
    read,
)
from bochner.feature_map import FeatureMap, compute_dtype

BLOCK = 512
"""Tokens whose features exist at one time in the bidirectional form."""


def linear_attention(
    feature_map: FeatureMap,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Attention with the estimated kernel: out_i = sum_j K_ij v_j / sum_j K_ij.

    Shapes:     q [*b, n, d], k [*b, s, d], v [*b, s, dv] -> out [*b, n, dv] in v's dtype. Cross
                attention: n != s. q and k are already divided by the temperature, so that the logit
                is q.k: multiply both by d^-1/4 for standard attention.
    Arguments:  causal: row i sees keys 0..i (needs n = s); key_mask: bool, broadcasting to [*b, s],
                True where a key takes part.
    Numerics:   float32 inside for half precision (also under autocast), float64 for float64. No eps,
                no clamp, no redraw; a running maximum per feature; causal rows never depend on later
                keys. Causal rows before the first visible key are 0, as in torch's exact attention.
    Error:      see `bochner.diagnostics.measure` and `predict`. Signed maps (trigonometric) can give
                denominators <= 0: a DenominatorWarning says for what share of the rows.
    Cost:       O((n + s) m (d + dv)) time, O(m dv + block m) memory: never n x s. Recorded for
                autograd it is O((n + s)(d + dv) + blocks m dv), since the features of a block are
                computed again in the backward pass.
    Raises:     ValueError or TypeError for wrong shapes, NaN, heads or masks that do not match, and a
                mask that hides every key of a sequence.
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("positive", dim=16, num_features=256, generator=g)
        >>> q, k, v = (0.25 * torch.randn(2, 100, 16, generator=g) for _ in range(3))
        >>> out = linear_attention(phi, q, k, v)
        >>> exact = torch.softmax(q @ k.mT, dim=-1) @ v
        >>> round(float((out - exact).norm() / exact.norm()), 2)
        0.19
    """
    inputs = attention_inputs(feature_map, q, k, v, key_mask, causal=causal)
    check_some_key_visible(inputs.key_mask)
    if causal:
        return advance(AttentionState(feature_map), *inputs)[0]
    q, k, v, key_mask = inputs

    def keep(state: AttentionState, k: Tensor, v: Tensor, visible: Tensor | None) -> AttentionState:
        return absorb(state, feature_map.key(k), v.to(compute_dtype(k)), visible)

    def look_up(state: AttentionState, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return read(state, feature_map.query(q))

    outputs, state = Rows(q, v), AttentionState(feature_map)
    lengths = (k.shape[-2], q.shape[-2])
    again = recomputes(feature_map, (q, k, v), -(-max(lengths) // CAUSAL_BLOCK))
    with torch.autocast(device_type=q.device.type, enabled=False):
        for start in range(0, lengths[0], BLOCK):
            rows = slice(start, start + BLOCK)
            visible = None if key_mask is None else key_mask[..., rows]
            parts = k[..., rows, :], v[..., rows, :]
            state = run(keep, state, *parts, visible, again=again)
        for start in range(0, lengths[1], BLOCK):
            queries = q[..., start : start + BLOCK, :]
            numerator, denominator, _ = run(look_up, state, queries, again=again)
            outputs.append(normalised(numerator, denominator, feature_map))
    return outputs.whole()
