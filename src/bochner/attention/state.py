"""The running state of linear attention: what all keys so far have left behind.

    numerator_f   = sum_j phi_f(k_j) exp(-reference_f) v_j         [*b, m, dv]
    denominator_f = sum_j phi_f(k_j) exp(-reference_f)             [*b, m]

The reference is a running maximum of log phi_f(k_j): per feature for positive maps, so no feature
underflows because another key is large, and one number per head for signed maps. There is no eps: for
positive maps the denominator that a query reads is at least 1 in its own scale.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bochner.attention.inputs import attention_inputs
from bochner.attention.recompute import recomputes, run
from bochner.feature_map import FeatureMap, compute_dtype
from bochner.features import Features, SignedLog, log_inner, smallest_product

CAUSAL_BLOCK = 128
"""Tokens per block of the causal form: [block, block] scores are formed inside a block only."""


class DenominatorWarning(UserWarning):
    """A signed feature map gave attention denominators that are not positive."""


@dataclass(frozen=True)
class AttentionState:
    """Constant-size memory of the keys and values seen so far; `step` returns the next one.

    Shapes:     reference [*b, 1, m] (positive maps) or [*b, 1, 1] (signed), numerator [*b, m, dv],
                denominator [*b, m]; None before the first token. float32, or float64 for float64.
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("positive", dim=4, num_features=16, generator=g)
        >>> state = AttentionState(phi)
        >>> q, k, v = (torch.randn(1, 4, generator=g) for _ in range(3))
        >>> out, state = step(state, q, k, v)
        >>> bool(torch.allclose(out, v, atol=1e-6))           # one token attends to itself
        True
    """

    feature_map: FeatureMap
    reference: Tensor | None = None
    numerator: Tensor | None = None
    denominator: Tensor | None = None


def feature_logs(features: Features) -> tuple[Tensor | None, Tensor]:
    """(mantissa, logarithm): (None, [*b, n, m]) if positive, (values [*b, n, m], [*b, n, 1]) if signed.

    The last use of the features: their memory is written over.
    """
    if features.positive:
        return None, features.used_up()
    return features.values, features.log_scale


def _added(logs: Tensor, shift: Tensor) -> Tensor:
    """logs + shift; overwrites `logs` where autograd does not need it."""
    own = logs.shape[:-2] == shift.shape[:-2] and logs.shape[-1] == shift.shape[-1]
    if own and not (logs.requires_grad or shift.requires_grad or torch.compiler.is_compiling()):
        return logs.add_(shift)
    return logs + shift


def exp_difference(logs: Tensor, shift: Tensor, mantissa: Tensor | None) -> Tensor:
    """mantissa * exp(logs - shift); overwrites `logs` where autograd does not need it."""
    own = mantissa is None and logs.shape[:-2] == shift.shape[:-2]
    if own and not (logs.requires_grad or torch.compiler.is_compiling()):
        return logs.sub_(shift).exp_()
    weights = torch.exp(logs - shift)
    return weights if mantissa is None else weights * mantissa


def absorb(
    state: AttentionState, keys: Features, values: Tensor, visible: Tensor | None
) -> AttentionState:
    """The state after a block of keys; hidden keys leave no trace.

    Shapes:     keys [*b, n, m], used up; values [*b, n, dv], visible [*b, n] (True = attend) or None.
    Cost:       O(n m dv) time.
    """
    return absorb_logs(state, feature_logs(keys), values, visible)


def absorb_logs(
    state: AttentionState,
    keys: tuple[Tensor | None, Tensor],
    values: Tensor,
    visible: Tensor | None,
) -> AttentionState:
    """`absorb` of (mantissa, logarithms) as `feature_logs` gives them."""
    mantissa, log_keys = keys
    if visible is not None:
        log_keys = log_keys.masked_fill(~visible.unsqueeze(-1), -math.inf)
    top = log_keys.detach().amax(dim=-2, keepdim=True)
    reference = top if state.reference is None else torch.maximum(state.reference, top)
    finite = torch.where(torch.isinf(reference), 0.0, reference)  # -inf: no visible key yet
    weights = exp_difference(log_keys, finite, mantissa)
    numerator = weights.transpose(-1, -2) @ values.to(weights.dtype)
    denominator = weights.sum(dim=-2)
    if state.reference is not None:
        assert state.numerator is not None
        assert state.denominator is not None
        decay = torch.exp(state.reference - finite)
        numerator = numerator + state.numerator * decay.transpose(-1, -2)
        denominator = denominator + state.denominator * decay.squeeze(-2)
    return replace(state, reference=reference, numerator=numerator, denominator=denominator)


def read(state: AttentionState, queries: Features) -> tuple[Tensor, Tensor, Tensor]:
    """What queries find in the state: numerator [*b, n, dv], denominator [*b, n, 1], their log-scale.

    The queries are used up. The scale [*b, n, 1] is that of both, that of the query included; -inf where
    the state holds no visible key.
    """
    return read_logs(state, feature_logs(queries))


def read_logs(
    state: AttentionState, queries: tuple[Tensor | None, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`read` of (mantissa, logarithms) as `feature_logs` gives them."""
    assert state.reference is not None
    assert state.numerator is not None
    assert state.denominator is not None
    denominators = state.denominator.unsqueeze(-1)
    mantissa, log_queries = queries
    if mantissa is None:
        total = _added(log_queries, state.reference)
    else:
        total = log_queries + state.reference
    scale = total.detach().amax(dim=-1, keepdim=True)
    finite = torch.where(torch.isinf(scale), 0.0, scale)
    weights = exp_difference(total, finite, mantissa)
    return (
        weights @ state.numerator.to(weights.dtype),
        weights @ denominators.to(weights.dtype),
        scale,
    )


def causal_block(
    state: AttentionState, queries: Features, keys: Features, values: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, AttentionState]:
    """One block: earlier keys through the state, keys of the block through their pairwise scores.

    Nothing that a row computes depends on a later key, not even its stabiliser. Queries and keys are used
    up.

    Returns:    numerator [*b, n, dv] and denominator [*b, n, 1], both 0 where no key is visible, and the
                state after the block.
    """
    length = values.shape[-2]
    allowed = torch.ones(length, length, dtype=torch.bool, device=values.device).tril()
    if visible is not None:
        allowed = allowed & visible.unsqueeze(-2)
    if not (queries.positive and keys.positive) or torch.compiler.is_compiling():
        scores = log_inner(queries, keys, where=allowed)
        past = None if state.reference is None else read(state, queries)
        weights, top = _from_logs(scores, past)
        next_state = absorb(state, keys, values, visible)
    else:
        log_queries, query_values, query_scale = queries.used_up_in_parts()
        log_keys, key_values, key_scale = keys.used_up_in_parts()
        product = query_values @ key_values.transpose(-1, -2)
        lost, scores = _lost_rows(product, allowed), None
        if lost is not None:
            pair = Features.from_logs(log_queries), Features.from_logs(log_keys)
            scores = log_inner(*pair, where=allowed)
        past = None if state.reference is None else read_logs(state, (None, log_queries))
        weights, top = _from_product(product, query_scale, key_scale, allowed, past)
        if lost is not None and scores is not None:
            exact, exact_top = _from_logs(scores, past)
            weights, top = torch.where(lost, exact, weights), torch.where(lost, exact_top, top)
        next_state = absorb_logs(state, (None, log_keys), values, visible)
    numerator, denominator = weights @ values.to(weights.dtype), weights.sum(dim=-1, keepdim=True)
    if past is not None:
        decay = torch.exp(past[2] - torch.where(torch.isinf(top), 0.0, top))
        numerator = numerator + past[0] * decay
        denominator = denominator + past[1] * decay
    return numerator, denominator, next_state


Past = tuple[Tensor, Tensor, Tensor]
"""What `read` gives: numerator, denominator, log-scale."""


def _lost_rows(product: Tensor, allowed: Tensor) -> Tensor | None:
    """Rows [*b, n, 1] with an allowed product so small that features have underflowed; None if none has."""
    smallest = smallest_product(product)
    if float(product.detach().amin()) > smallest:
        return None
    lost = ((product <= smallest) & allowed).any(dim=-1, keepdim=True)
    return lost if bool(lost.any()) else None


def _from_product(
    product: Tensor, query_scale: Tensor, key_scale: Tensor, allowed: Tensor, past: Past | None
) -> tuple[Tensor, Tensor]:
    """exp(log K_ij - top_i) of the allowed pairs of a block, 0 elsewhere, and top [*b, n, 1].

    The stabiliser comes from the scales of the keys so far: no logarithm of a score is formed.
    """
    scales = key_scale.transpose(-1, -2)
    seen = scales.detach().masked_fill(~allowed[..., -1:, :], -math.inf)  # not by hidden keys
    top = torch.cummax(seen, dim=-1).values.transpose(-1, -2) + query_scale.detach()
    if past is not None:
        top = torch.maximum(top, past[2])
    logs = scales + (query_scale - torch.where(torch.isinf(top), 0.0, top))
    hidden = ~allowed
    fresh = not (product.requires_grad or logs.requires_grad) and logs.shape == product.shape
    if fresh and torch.broadcast_shapes(hidden.shape, logs.shape) == logs.shape:
        return product.mul_(logs.masked_fill_(hidden, -math.inf).exp_()), top
    return product * torch.exp(logs.masked_fill(hidden, -math.inf)), top


def _from_logs(scores: SignedLog, past: Past | None) -> tuple[Tensor, Tensor]:
    """The same from the logarithms of all scores: signed maps, and rows that underflow."""
    top = scores.log_abs.detach().amax(dim=-1, keepdim=True)
    if past is not None:
        top = torch.maximum(top, past[2])
    finite = torch.where(torch.isinf(top), 0.0, top)
    return scores.sign * torch.exp(scores.log_abs - finite), top


def normalised(numerator: Tensor, denominator: Tensor, feature_map: FeatureMap) -> Tensor:
    """numerator / denominator; rows that see no key (0 / 0) are 0, as in torch's exact attention."""
    empty = denominator == 0
    if not feature_map.positive:
        empty = empty & (numerator == 0).all(dim=-1, keepdim=True)
    if not feature_map.positive and not torch.compiler.is_compiling():
        share = float(((denominator <= 0) & ~empty).float().mean())
        if share > 0:
            warnings.warn(
                f"{share:.2%} of the attention denominators are not positive: a signed feature map"
                " cannot normalise here; measure() reports how wrong the output is. Positive maps"
                " (positive, hyperbolic, gerf, sderf, data-aware) cannot do this.",
                DenominatorWarning,
                stacklevel=4,
            )
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


class Rows:
    """Blocks of output rows, put in place as they come; concatenated where autograd records them.

    Shapes:     whole() [*b, n, dv] in v's dtype, for n queries.
    """

    def __init__(self, q: Tensor, v: Tensor) -> None:
        self._length, self._v = q.shape[-2], v
        self._out: Tensor | None = None
        self._parts: list[Tensor] = []
        self._next = 0

    def append(self, rows: Tensor) -> None:
        """The next rows [*b, n', dv]."""
        if rows.requires_grad or torch.compiler.is_compiling():
            self._parts.append(rows.to(self._v.dtype))
            return
        if self._out is None:
            shape = (*rows.shape[:-2], self._length, rows.shape[-1])
            self._out = torch.empty(shape, dtype=self._v.dtype, device=rows.device)
        end = self._next + rows.shape[-2]
        self._out[..., self._next : end, :] = rows
        self._next = end

    def whole(self) -> Tensor:
        """All rows."""
        return torch.cat(self._parts, dim=-2) if self._out is None else self._out


def step(
    state: AttentionState, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None = None
) -> tuple[Tensor, AttentionState]:
    """Causal attention over the next tokens: one, or a block of any length.

    Shapes:     q, k [*b, n, d] (already divided by the temperature), v [*b, n, dv], key_mask
                broadcasting to [*b, n] (True = attend) -> out [*b, n, dv], next state.
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
    inputs = attention_inputs(state.feature_map, q, k, v, key_mask, causal=True)
    if state.numerator is not None:
        _check_continues(state.numerator, inputs.k, inputs.v)
    return advance(state, inputs.q, inputs.k, inputs.v, inputs.key_mask)


def _check_continues(numerator: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless keys and values continue the sequences that the state has seen."""
    if v.shape[-1] != numerator.shape[-1]:
        raise ValueError(
            f"v has last dimension {v.shape[-1]}; the state holds values of dimension"
            f" {numerator.shape[-1]}."
        )
    try:
        torch.broadcast_shapes(numerator.shape[:-2], k.shape[:-2], v.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"k and v have leading dimensions {list(k.shape[:-2])} and {list(v.shape[:-2])}; the state"
            f" holds {list(numerator.shape[:-2])}. Start another AttentionState for other sequences."
        ) from None


def advance(
    state: AttentionState, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
) -> tuple[Tensor, AttentionState]:
    """`step` on checked inputs, block by block."""
    feature_map = state.feature_map

    def block(
        state: AttentionState, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor, AttentionState]:
        queries, keys = feature_map.query(q), feature_map.key(k)
        return causal_block(state, queries, keys, v.to(compute_dtype(k)), visible)

    outputs = Rows(q, v)
    starts = range(0, q.shape[-2], CAUSAL_BLOCK)
    again = recomputes(feature_map, (q, k, v), len(starts))
    with torch.autocast(device_type=q.device.type, enabled=False):
        for start in starts:
            rows = slice(start, start + CAUSAL_BLOCK)
            visible = None if key_mask is None else key_mask[..., rows]
            parts = (x[..., rows, :] for x in (q, k, v))
            numerator, denominator, state = run(block, state, *parts, visible, again=again)
            outputs.append(normalised(numerator, denominator, feature_map))
    return outputs.whole(), state
