"""Causal attention over the next tokens of a sequence: the whole of it, a block, or one token."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.attention.causal import (
    rows_by_logs,
    solved_blocks,
)
from bochner.attention.inputs import AttentionInputs, Mask, attention_inputs
from bochner.attention.recompute import recomputes, records
from bochner.attention.state import CAUSAL_BLOCK, AttentionState, Rows


def step(
    state: AttentionState,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, AttentionState]:
    """Causal attention over the next tokens: one, or a block of any length.

    Shapes:     q [*b, H, n, d], k [*b, Hkv, n, d] (already divided by the temperature), v
                [*b, Hkv, n, dv], key_mask and key_bias broadcasting to [*b, n], all as in
                `linear_attention` -> out [*b, H, n, dv], next state.
    Equals:     the same rows of `linear_attention(..., causal=True)`, for any split into steps. Rows
                before the first visible key are 0.
    Cost:       O(n m dv) time, O(m dv) memory, whatever came before.
    Raises:     ValueError or TypeError as `linear_attention`, and for tokens that do not continue the
                state's sequences; a step may be padding only.
    """
    if not isinstance(state, AttentionState):
        raise TypeError(
            f"state must be an AttentionState, got {type(state).__name__};"
            " start with bochner.AttentionState(feature_map)."
        )
    mask = Mask(key_mask, key_bias)
    inputs = attention_inputs(state.feature_map, q, k, v, mask, causal=True)
    if state.numerator is not None:
        _check_continues(state.numerator, inputs)
    if state.exact is not None:
        return state.exact.advance(state, inputs)
    return advance(state, inputs)


def _check_continues(numerator: Tensor, inputs: AttentionInputs) -> None:
    """Raise unless keys and values continue the sequences that the state has seen."""
    k, v = (inputs.heads.keys(x[..., :1, :]) for x in (inputs.k, inputs.v))
    if v.shape[-1] != numerator.shape[-1]:
        raise ValueError(
            f"v has last dimension {v.shape[-1]}; the state holds values of dimension"
            f" {numerator.shape[-1]}."
        )
    if numerator.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return
    try:
        torch.broadcast_shapes(numerator.shape[:-2], k.shape[:-2], v.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"k and v have leading dimensions {list(k.shape[:-2])} and {list(v.shape[:-2])}; the state"
            f" holds {list(numerator.shape[:-2])}. Start another AttentionState for other sequences."
        ) from None


def advance(state: AttentionState, inputs: AttentionInputs) -> tuple[Tensor, AttentionState]:
    """`step` on checked inputs, block by block."""
    tensors = (*inputs[:3], inputs.key_bias, state.numerator, state.denominator)
    recorded = records(state.feature_map, tensors)
    with torch.autocast(device_type=inputs.q.device.type, enabled=False):
        if recorded or torch.compiler.is_compiling():
            blocks = -(-inputs.q.shape[-2] // CAUSAL_BLOCK)
            again = recomputes(state.feature_map, tensors, blocks)
            return rows_by_logs(state, inputs, again=again)
        outputs = Rows(inputs.q, inputs.v)
        for solved in solved_blocks(state, inputs):
            outputs.append(inputs.heads.outputs(solved.rows))
            state = solved.state
        return outputs.whole(), state
