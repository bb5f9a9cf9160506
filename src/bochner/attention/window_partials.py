"""Partial results of attention and how they are put together: always relative to a common maximum.

    numerator_i exp(log_scale_i) = sum_j K_ij v_j,    denominator_i exp(log_scale_i) = sum_j K_ij

over some of the keys j. Scales are constants to autograd, since they cancel in the quotient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.attention.state import DenominatorWarning, callers_level, extended
from bochner.attention.window_keys import Keys
from bochner.feature_map import FeatureMap
from bochner.features import Features, log_inner, smallest_product, value_products


class Partial(NamedTuple):
    """Sums over some of the keys: numerator [*b, n, dv], denominator [*b, n, 1], log_scale [*b, n, 1].

    log_scale is -inf, and the sums are 0, where none of these keys is visible.
    """

    numerator: Tensor
    denominator: Tensor
    log_scale: Tensor


def _finite(log_scale: Tensor) -> Tensor:
    return log_scale.masked_fill(torch.isinf(log_scale), 0.0)


def _summed(weights: Tensor, values: Tensor, log_scale: Tensor) -> Partial:
    sums = weights @ extended(values, weights.dtype)
    return Partial(sums[..., :-1], sums[..., -1:], log_scale)


def merged(parts: Sequence[Partial]) -> Partial:
    """The sum of partial results over different keys."""
    if len(parts) == 1:
        return parts[0]
    top = parts[0].log_scale
    for part in parts[1:]:
        top = torch.maximum(top, part.log_scale)
    decays = [torch.exp(part.log_scale - _finite(top)) for part in parts]
    numerator = parts[0].numerator * decays[0]
    denominator = parts[0].denominator * decays[0]
    for part, decay in zip(parts[1:], decays[1:], strict=True):
        numerator = numerator + part.numerator * decay
        denominator = denominator + part.denominator * decay
    return Partial(numerator, denominator, top)


def exact_pairs(feature_map: FeatureMap, q: Tensor, keys: Keys, out: Tensor | None) -> Partial:
    """From the kernel that the map estimates, exactly, of all visible keys but those `out` [*b, n, n']."""
    logs = feature_map.log_kernel(q, keys.k) + keys.bias.unsqueeze(-2)
    if out is not None:
        logs = logs.masked_fill_(out, -math.inf)
    top = logs.detach().amax(dim=-1, keepdim=True)
    return _summed(logs.sub_(_finite(top)).exp_(), keys.v, top)


def feature_pairs(queries: Features, keys: Features, values: Tensor, allowed: Tensor) -> Partial:
    """From features, of the pairs that are `allowed` [*b, n, n']; a row depends on these alone.

    Numerics:   a row in which an allowed product underflows is computed from logarithms instead.
    """
    if not (queries.positive and keys.positive) or torch.compiler.is_compiling():
        return _from_logs(queries, keys, values, allowed)
    product = value_products(queries, keys)
    logs = queries.log_scale + keys.log_scale.transpose(-1, -2)
    logs = logs.masked_fill(~allowed, -math.inf)
    top = logs.detach().amax(dim=-1, keepdim=True)
    part = _summed(product * torch.exp(logs - _finite(top)), values, top)
    return _with_lost_rows(part, product, (queries, keys, values, allowed))


def scaled_pairs(queries: Features, keys: Features, values: Tensor, allowed: Tensor) -> Partial:
    """`feature_pairs` with one scale for all keys, which costs less: rows may depend on all of them.

    Numerics:   the same: a row in which an allowed product underflows by this scale is computed again.
    """
    if not (queries.positive and keys.positive) or torch.compiler.is_compiling():
        return _from_logs(queries, keys, values, allowed)
    scale = keys.log_scale
    shown = allowed.any(dim=-2).unsqueeze(-1)
    top = scale.detach().masked_fill(~shown, -math.inf).amax(dim=-2, keepdim=True)
    factor = torch.exp((scale - _finite(top)).masked_fill(~shown, -math.inf))
    product = queries.values @ (keys.values * factor).transpose(-1, -2)
    nothing = ~allowed.any(dim=-1, keepdim=True)
    log_scale = (queries.log_scale.detach() + top).masked_fill(nothing, -math.inf)
    part = _summed(product.masked_fill(~allowed, 0.0), values, log_scale)
    unit = torch.exp(queries.log_scale - queries.log_scale.detach())  # 1, for its derivative
    part = Partial(part.numerator * unit, part.denominator * unit, log_scale)
    return _with_lost_rows(part, product, (queries, keys, values, allowed))


def _with_lost_rows(
    part: Partial, product: Tensor, pairs: tuple[Features, Features, Tensor, Tensor]
) -> Partial:
    """Rows with an allowed product so small that it may have underflowed, from logarithms."""
    smallest, allowed = smallest_product(product), pairs[-1]
    if float(product.detach().amin()) > smallest:
        return part
    lost = ((product <= smallest) & allowed).any(dim=-1, keepdim=True)
    if not bool(lost.any()):
        return part
    exact = _from_logs(*pairs)
    return Partial(*(torch.where(lost, a, b) for a, b in zip(exact, part, strict=True)))


def _from_logs(queries: Features, keys: Features, values: Tensor, allowed: Tensor) -> Partial:
    """The same for signed maps, and for rows that underflow."""
    scores = log_inner(queries, keys, where=allowed)
    top = scores.log_abs.detach().amax(dim=-1, keepdim=True)
    return _summed(scores.sign * torch.exp(scores.log_abs - _finite(top)), values, top)


class Guarded(NamedTuple):
    """Numerator and denominator of one block of rows, and which rows used their exact part alone."""

    numerator: Tensor
    denominator: Tensor
    exact_only: Tensor | None


def combined(features: Partial | None, exact: Partial | None, floor: float | None) -> Guarded:
    """Both parts in one normaliser; with a floor, rows whose features' part is below floor times the
    exact part of the denominator are the exact part alone (rows without an exact part never are)."""
    parts = [part for part in (features, exact) if part is not None]
    whole = merged(parts)
    if floor is None or features is None or exact is None:
        return Guarded(whole.numerator, whole.denominator, None)
    top = _finite(whole.log_scale)
    estimated = features.denominator.detach() * torch.exp(features.log_scale - top)
    known = exact.denominator.detach() * torch.exp(exact.log_scale - top)
    low = (estimated < floor * known) & (exact.log_scale > -math.inf)
    return Guarded(
        torch.where(low, exact.numerator, whole.numerator),
        torch.where(low, exact.denominator, whole.denominator),
        low,
    )


class GuardedShare:
    """Counts the rows that used their exact part alone, for one warning about all blocks."""

    def __init__(self, floor: float | None) -> None:
        self._floor = floor
        self._counts: list[Tensor] = []
        self._rows = 0

    def add(self, exact_only: Tensor | None) -> None:
        """One block of rows [*b, n, 1]."""
        if exact_only is not None and not torch.compiler.is_compiling():
            self._counts.append(exact_only.sum())
            self._rows += exact_only.numel()

    def warn(self) -> None:
        """DenominatorWarning if there was any."""
        guarded = sum(int(count) for count in self._counts)
        if guarded:
            warnings.warn(
                f"{guarded / self._rows:.2%} of the attention rows use their exact window alone: the"
                f" features' part of the denominator was below {self._floor} times the exact part"
                " (ExactWindow.denominator_floor).",
                DenominatorWarning,
                stacklevel=callers_level(),
            )
