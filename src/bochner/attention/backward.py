"""Derivatives of attention from what it leaves behind: inputs, output, denominators, one state a block.

With normalised weights w_ij = phi(q_i).phi(k_j) / denominator_i and g_i = [dL/dout_i, -dL/dout_i . out_i],
dL/dw_ij = denominator_i g_i . [v_j, 1]. In the weights a, b of `bochner.attention.causal`, a divided by its
row's denominator, S the state that row i reads and U = sum_i a_i g_i^T over later rows (dL/dS):

    dL/da_i = sum_{j<=i} (g_i.[v_j, 1]) b_j + S g_i          dL/dlog phi_f(q_i) = a_if dL/da_if
    dL/db_j = sum_{i>=j} (g_i.[v_j, 1]) a_i + U [v_j, 1]     dL/dlog phi_f(k_j) = b_jf dL/db_jf
    dL/dv_j = sum_{i>=j} (a_i.b_j) dL/dout_i + U^T b_j

The scale of a query cancels in its output. Features of a block are computed again, and autograd takes
their derivatives to q, k, the bias of a key and the map's parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bochner.attention.causal import (
    BLOCK,
    Block,
    Solved,
    block_by_logs,
    key_weights,
    log_weights,
    lower,
    pieces,
    rows_by_logs,
    solved_blocks,
    sums_before,
    whole,
)
from bochner.attention.heads import Heads
from bochner.attention.inputs import AttentionInputs
from bochner.attention.recompute import records
from bochner.attention.state import (
    AttentionState,
    DenominatorWarning,
    Rows,
    extended,
    finite,
    query_weights,
    sums_of,
    with_sums,
)
from bochner.attention.streaming import advance
from bochner.feature_map import FeatureMap
from bochner.features import Features


def causal_rows(feature_map: FeatureMap, inputs: AttentionInputs) -> Tensor:
    """Causal attention over whole sequences, recorded by autograd as one operation."""
    tensors = (*inputs[:3], inputs.key_bias)
    if torch.compiler.is_compiling() or not records(feature_map, tensors):
        return advance(AttentionState(feature_map), inputs)[0]
    weights = log_weights(inputs)
    parameters = list(feature_map.parameters())
    found = _Causal.apply(feature_map, inputs.heads, *inputs[:3], weights, *parameters)
    return found[0]


# -- a block's features, computed again ------------------------------------------------------------------
class Points(NamedTuple):
    """The inputs of either form: q, k, v and the keys' log-weights [*b, s, 1]."""

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor | None

    def inputs(self, heads: Heads) -> AttentionInputs:
        """As attention takes them."""
        bias = None if self.weight is None else self.weight.squeeze(-1)
        return AttentionInputs(self.q, self.k, self.v, None, bias, heads)

    def leaves(self, rows: slice) -> Points:
        """These tokens, as leaves of a graph of their own."""

        def leaf(x: Tensor) -> Tensor:
            return x[..., rows, :].detach().requires_grad_(x.requires_grad)

        weight = None if self.weight is None else leaf(self.weight)
        return Points(leaf(self.q), leaf(self.k), leaf(self.v), weight)


class Gradients:
    """dL/dq, dL/dk, dL/dv, dL/dweight and those of the map's parameters, filled in block by block."""

    def __init__(self, points: Points, parameters: list[Tensor]) -> None:
        self._wanted = [x if x.requires_grad else None for x in parameters]
        self._points = [
            torch.zeros_like(x, memory_format=torch.contiguous_format)
            if x is not None and x.requires_grad
            else None
            for x in points
        ]
        self._parameters: list[Tensor | None] = [None] * len(parameters)

    def add(self, outputs: list[tuple[Tensor, Tensor]], leaves: Points, rows: slice) -> None:
        """Add what comes from the derivatives to some outputs of these leaves."""
        outputs = [(x, g) for x, g in outputs if x.requires_grad]
        if not outputs:
            return
        inputs = [x for x in (*leaves, *self._wanted) if x is not None and x.requires_grad]
        found = iter(
            torch.autograd.grad(
                [x for x, _ in outputs],
                inputs,
                [g.sum_to_size(x.shape) for x, g in outputs],
                allow_unused=True,
            )
        )
        for x, total in zip(leaves, self._points, strict=True):
            if x is not None and x.requires_grad and (part := next(found)) is not None:
                assert total is not None
                total[..., rows, :] += part
        for index, x in enumerate(self._wanted):
            if x is not None and (part := next(found)) is not None:
                before = self._parameters[index]
                self._parameters[index] = part if before is None else before + part

    def all(self) -> list[Tensor | None]:
        """Of q, k, v, weight and the parameters."""
        return [*self._points, *self._parameters]


def of_queries(queries: Features, a: Tensor, d_a: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """(what the features hold, its derivative); a = factor * values for signed features."""
    if queries.positive:
        return queries.log_parts()[0], a * d_a
    return queries.values, factor * d_a


def of_keys(
    keys: Features, b: Tensor, d_b: Tensor, reference: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The same for keys, whose scale matters."""
    d_logs = b * d_b
    d_scale = d_logs.sum(dim=-1, keepdim=True)
    if keys.positive:
        logs, scale = keys.log_parts()
        return [(logs, d_logs), (scale, d_scale)]
    factor = torch.exp(keys.log_scale.detach() - reference)
    return [(keys.values, factor * d_b), (keys.log_scale, d_scale)]


def normalised_weights(
    queries: Features, reference: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor]:
    """a divided by its row's denominator, and the factor that signed values have in it."""
    denominator = torch.where(
        denominator == 0, 1.0, denominator
    )  # a row that sees no key: all is 0
    weights, top = query_weights(queries, reference)
    factor = torch.exp(reference - finite(top)) if not queries.positive else weights[..., :1]
    return weights / denominator, factor / denominator


def gradient_rows(d_out: Tensor, out: Tensor, dtype: torch.dtype) -> Tensor:
    """g = [dL/dout, -dL/dout . out]."""
    d_out = d_out.to(dtype)
    return torch.cat((d_out, -(d_out * out).sum(dim=-1, keepdim=True)), dim=-1)


def _rescaled(d_sums: Tensor, here: Tensor, later: Tensor) -> Tensor:
    """dL/dsums in units of exp(here), from units of exp(later) >= exp(here); 0 for what has no key yet."""
    difference = torch.where(torch.isinf(here), -torch.inf, (here - finite(later)).clamp_max(0.0))
    return d_sums * torch.exp(difference).transpose(-1, -2)


# -- causal --------------------------------------------------------------------------------------------
class _Causal(torch.autograd.Function):
    """out, and what backward needs of every block: denominator, reference and the sums before it."""

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
        state, kept = AttentionState(feature_map), []
        outputs = Rows(q, v)
        with torch.autocast(device_type=q.device.type, enabled=False):
            for solved in solved_blocks(state, Points(q, k, v, weight).inputs(heads)):
                outputs.append(heads.outputs(solved.rows))
                kept += _kept(solved, state)
                state = solved.state
        return outputs.whole(), *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        save(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return derivatives(ctx, d_out, _causal_gradients, _causal_again)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """The context of both forms: inputs after the map and the heads, the output, and what is kept."""
    ctx.feature_map, ctx.heads, *tensors = inputs
    out, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(tensors)
    ctx.save_for_backward(*tensors, out, *kept)


def derivatives(
    ctx: Any, d_out: Tensor | None, once: Callable[..., None], again: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    """None for the map and the heads, then those of all tensors; recorded by autograd if that is asked
    for (second derivatives), by computing the attention again."""
    saved = ctx.saved_tensors  # once: under activation checkpointing a second look raises
    inputs, (out, *kept) = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
    points, parameters = Points(*inputs[:4]), list(inputs[4:])
    if d_out is None:
        return (None,) * (2 + len(inputs))
    with torch.autocast(device_type=out.device.type, enabled=False):
        if not torch.is_grad_enabled():
            gradients = Gradients(points, parameters)
            once(ctx.feature_map, ctx.heads, points, gradients, (d_out, out, kept))
            return None, None, *gradients.all()
        wanted = [x for x in inputs if x is not None and x.requires_grad]
        result = again(ctx.feature_map, points.inputs(ctx.heads))
        found = iter(
            torch.autograd.grad(result, wanted, d_out, create_graph=True, allow_unused=True)
        )
        return (
            None,
            None,
            *(next(found) if x is not None and x.requires_grad else None for x in inputs),
        )


def _causal_again(feature_map: FeatureMap, inputs: AttentionInputs) -> Tensor:
    return rows_by_logs(AttentionState(feature_map), inputs, again=False)[0]


def _kept(solved: Solved, before: AttentionState) -> list[Tensor]:
    """Three tensors, empty for what there is not; no denominator: the block has rows from logarithms."""
    nothing = solved.rows.new_empty(0)
    denominator, reference = solved.denominator, solved.reference
    if denominator is None:
        reference = before.reference
    sums = None if before.numerator is None else sums_of(before, solved.rows.dtype)
    return [nothing if x is None else x for x in (denominator, reference, sums)]


def _causal_gradients(
    feature_map: FeatureMap,
    heads: Heads,
    points: Points,
    gradients: Gradients,
    results: tuple[Tensor, Tensor, list[Tensor]],
) -> None:
    """From the last block to the first; dL/dsums travels back through the states."""
    d_out, out, kept = results
    d_sums: Tensor | None = None
    later: Tensor | None = None
    starts = range(0, points.q.shape[-2], BLOCK)
    for index in reversed(range(len(starts))):
        denominator, reference, sums = (x if x.numel() else None for x in kept[3 * index :][:3])
        rows = slice(starts[index], starts[index] + BLOCK)
        leaves = points.leaves(rows)
        d_rows = d_out[..., rows, :]
        if denominator is None:
            state = AttentionState(feature_map)
            if sums is not None:
                assert reference is not None
                state = with_sums(state, reference, sums)
            outputs, d_sums = _block_by_logs(state, leaves, heads, d_rows, (d_sums, later))
        else:
            assert reference is not None
            if d_sums is not None and later is not None:
                d_sums = _rescaled(d_sums, reference, later)
            g = heads.queries(gradient_rows(d_rows, out[..., rows, :], denominator.dtype))
            outputs, d_sums = _block(
                feature_map, leaves, heads, (denominator, reference, sums), (g, d_sums)
            )
        gradients.add(outputs, leaves, rows)
        later = reference


Outputs = list[tuple[Tensor, Tensor]]
"""Recorded tensors with the derivatives to them."""


def _block(
    feature_map: FeatureMap,
    leaves: Points,
    heads: Heads,
    kept: tuple[Tensor, Tensor, Tensor | None],
    later: tuple[Tensor, Tensor | None],
) -> tuple[Outputs, Tensor]:
    """Derivatives to a block's features and values, and to the sums before it: the module's formulas."""
    (denominator, reference, start), (g, d_sums) = kept, later
    block, queries, keys, values = recorded_features(feature_map, leaves, heads)
    length, group = values.shape[-2], block.group
    a, factor = normalised_weights(queries.detach(), reference, denominator)
    b = key_weights(keys.detach(), reference)
    before, _ = sums_before(b, values.detach(), start)
    parts = zip(
        pieces(a, length, group),
        pieces(b, length, 1),
        pieces(values.detach(), length, 1),
        pieces(g, length, group),
        before,
        strict=True,
    )
    d_a, d_b, d_values = [], [], []
    for a_part, b_part, v_part, g_part, sums in reversed(list(parts)):
        weights = lower(a_part @ b_part.mT, group)
        d_weights = lower(g_part @ v_part.mT, group)
        d_a.append(d_weights @ b_part + g_part @ sums.mT)
        of_b, of_v = d_weights.mT @ a_part, weights.mT @ g_part
        added = a_part.mT @ g_part
        if d_sums is None:
            d_sums = added
        else:
            of_b, of_v = of_b + v_part @ d_sums.mT, of_v + b_part @ d_sums
            d_sums = d_sums + added
        d_b.append(of_b)
        d_values.append(of_v)
    assert d_sums is not None
    of_a, of_b, of_v = whole(d_a[::-1], group), whole(d_b[::-1], 1), whole(d_values[::-1], 1)
    outputs = [
        of_queries(queries, a, of_a, factor),
        *of_keys(keys, b, of_b, reference),
        (values, of_v),
    ]
    return outputs, d_sums


def recorded_features(
    feature_map: FeatureMap, leaves: Points, heads: Heads
) -> tuple[Block, Features, Features, Tensor]:
    """The block, its features and [v, 1], recorded by autograd."""
    q, k, v, weight = leaves
    with torch.enable_grad():
        block = Block(heads.queries(q), heads.keys(k), heads.keys(v), weight)
        keys = block.keys(feature_map)
        return block, feature_map.query(block.q), keys, extended(block.v, keys.dtype)


def _block_by_logs(
    state: AttentionState,
    leaves: Points,
    heads: Heads,
    d_rows: Tensor,
    later: tuple[Tensor | None, Tensor | None],
) -> tuple[Outputs, Tensor | None]:
    """The same by autograd, for blocks whose rows came from logarithms."""
    q, k, v, weight = leaves
    sums: Tensor | None = None
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DenominatorWarning)  # the forward pass has warned
        if state.numerator is not None and state.reference is not None:
            sums = sums_of(state, state.numerator.dtype).detach().requires_grad_()
            state = with_sums(state, state.reference, sums)
        block = Block(heads.queries(q), heads.keys(k), heads.keys(v), weight)
        rows, after = block_by_logs(state, block, state.feature_map)
        ends = sums_of(after, rows.dtype)
    outputs = [(rows, heads.queries(d_rows.to(rows.dtype)))]
    d_sums, reference = later
    if d_sums is not None and reference is not None:
        assert after.reference is not None
        outputs.append((ends, _rescaled(d_sums, after.reference, reference)))
    if sums is None:
        return outputs, None
    d_before = torch.autograd.grad(
        [x for x, _ in outputs], sums, [g for _, g in outputs], retain_graph=True, allow_unused=True
    )[0]
    return outputs, d_before
