"""The running state of linear attention: what all keys so far have left behind.

    numerator_f   = sum_j phi_f(k_j) exp(-reference_f) v_j         [*b, m, dv]
    denominator_f = sum_j phi_f(k_j) exp(-reference_f)             [*b, m]

The reference is a running maximum of log phi_f(k_j): per feature for positive maps, so no feature
underflows because another key is large, and one number per head for signed maps. There is no eps: for
positive maps the denominator that a query reads is at least 1 in its own scale.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bochner.attention.window_keys import Keys
from bochner.feature_map import FeatureMap
from bochner.features import Features

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bochner.attention.window import ExactWindow

CAUSAL_BLOCK = 128
"""Tokens per block where autograd records the causal form, or the compiler traces it."""
_INSIDE = re.compile(r"(bochner|torch)(\.|$)")


class DenominatorWarning(UserWarning):
    """A signed feature map gave attention denominators that are not positive."""


@dataclass(frozen=True)
class AttentionState:
    """Constant-size memory of the keys and values seen so far; `step` returns the next one.

    Shapes:     reference [*b, 1, m] (positive maps) or [*b, 1, 1] (signed), numerator [*b, m, dv],
                denominator [*b, m]; None before the first token. float32, or float64 for float64. *b
                are the leading dimensions of k and v: with grouped queries, the heads of the keys.
    Example:
        >>> import bochner
        >>> from bochner.attention import step
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
    exact: ExactWindow | None = None
    recent: Keys | None = None
    sinks: Keys | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All that the state holds, by name, copied; {} before the first token. See `from_tensors`."""
        found: dict[str, Tensor] = {}
        for name in _HELD:
            held = getattr(self, name)
            if isinstance(held, Tensor):
                found[name] = held
            elif held is not None:
                found |= {f"{name}.{part}": x for part, x in held._asdict().items()}
        return {name: x.clone(memory_format=torch.contiguous_format) for name, x in found.items()}

    @classmethod
    def from_tensors(
        cls,
        feature_map: FeatureMap,
        tensors: Mapping[str, Tensor],
        *,
        exact: ExactWindow | None = None,
    ) -> AttentionState:
        """The state that gave `tensors()`, with the same feature map and exact window.

        Raises:     ValueError for names that no state has, or where some of a state's are missing.
        """
        names = {"reference", "numerator", "denominator"} if tensors else set()
        if exact is not None and tensors:
            names |= {f"{name}.{part}" for name in ("recent", "sinks") for part in Keys._fields}
            names -= set() if "reference" in tensors else {"reference", "numerator", "denominator"}
        if set(tensors) != names:
            raise ValueError(
                f"tensors has {sorted(tensors)}; expected {sorted(names)}, as AttentionState.tensors()"
                f" gives with exact={exact!r}."
            )
        held: dict[str, Any] = {name: x for name, x in tensors.items() if "." not in name}
        if exact is not None and tensors:
            for name in ("recent", "sinks"):
                held[name] = Keys(*(tensors[f"{name}.{part}"] for part in Keys._fields))
        return cls(feature_map, exact=exact, **held)

    def _with_each(self, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The tensors of the state after `function`, as fields."""
        changed: dict[str, Any] = {}
        for name in _HELD:
            held = getattr(self, name)
            if isinstance(held, Tensor):
                changed[name] = function(held)
            elif held is not None:
                changed[name] = Keys(*(function(x) for x in held))
        return changed

    def to(self, device: torch.device | str) -> AttentionState:
        """The state on another device, with its feature map's copy there."""
        feature_map = self.feature_map
        tensors = itertools.chain(feature_map.parameters(), feature_map.buffers())
        if any(x.device != torch.device(device) for x in tensors):
            feature_map = copy.deepcopy(feature_map).to(device)
        return replace(self, feature_map=feature_map, **self._with_each(lambda x: x.to(device)))

    def index_select(self, indices: Tensor) -> AttentionState:
        """The sequences at `indices` [n] of the first dimension, as a beam search reorders them.

        Raises:     ValueError for a state without a leading dimension.
        """
        if self.numerator is not None and self.numerator.ndim < 3:
            raise ValueError(
                f"the state holds one sequence, numerator {list(self.numerator.shape)}; expected a"
                " leading dimension to select from."
            )
        return replace(self, **self._with_each(lambda x: x.index_select(0, indices)))


_HELD = ("reference", "numerator", "denominator", "recent", "sinks")


def finite(logs: Tensor) -> Tensor:
    """Logarithms to subtract: 0 for the -inf of what has seen no key."""
    return torch.where(torch.isinf(logs), 0.0, logs)


def extended(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[v, 1]: sums of these are numerator and denominator at once."""
    return torch.nn.functional.pad(values.to(dtype), (0, 1), value=1.0)


def sums_of(state: AttentionState, dtype: torch.dtype) -> Tensor:
    """[numerator, denominator], [*b, m, dv + 1]."""
    assert state.numerator is not None
    assert state.denominator is not None
    return torch.cat((state.numerator, state.denominator.unsqueeze(-1)), dim=-1).to(dtype)


def with_sums(state: AttentionState, reference: Tensor, sums: Tensor) -> AttentionState:
    """The state with another reference and other [numerator, denominator]."""
    numerator, denominator = sums[..., :-1], sums[..., -1]
    return replace(state, reference=reference, numerator=numerator, denominator=denominator)


def absorb(
    state: AttentionState, keys: Features, values: Tensor, visible: Tensor | None = None
) -> AttentionState:
    """The state after a block of keys; hidden keys leave no trace.

    Shapes:     keys [*b, n, m], values [*b, n, dv], visible [*b, n] (True = attend) or None.
    Cost:       O(n m dv) time.
    """
    log_keys = keys.log_features() if keys.positive else keys.log_scale
    if visible is not None:
        log_keys = log_keys.masked_fill(~visible.unsqueeze(-1), -math.inf)
    top = log_keys.detach().amax(dim=-2, keepdim=True)
    reference = top if state.reference is None else torch.maximum(state.reference, top)
    weights = (log_keys - finite(reference)).exp_()
    weights = weights if keys.positive else weights * keys.values
    sums = weights.transpose(-1, -2) @ extended(values, weights.dtype)
    if state.reference is not None:
        decay = torch.exp(state.reference - finite(reference))
        sums = sums + sums_of(state, decay.dtype) * decay.transpose(-1, -2)
    return with_sums(state, reference, sums)


def query_weights(
    queries: Features, reference: Tensor, *, use_up: bool = False
) -> tuple[Tensor, Tensor]:
    """a [*b, n, m] and t [*b, n, 1] with phi_f(q) exp(r_f) = a_f exp(t + s).

    r is a state's reference, s the part of the log-scale that `Features.log_parts` (positive) or
    `Features.log_scale` (signed) gives. The largest a_f of positive features is 1. With use_up this
    is the last use of the queries.
    """
    if queries.positive:
        total = queries.used_up_plus(reference) if use_up else queries.log_parts()[0] + reference
        top = total.detach().amax(dim=-1, keepdim=True)
        return total.sub_(finite(top)).exp_(), top
    top = reference.amax(dim=-1, keepdim=True)
    if reference.shape[-1] == 1:
        return queries.values, top
    return queries.values * torch.exp(reference - finite(top)), top


def read(state: AttentionState, queries: Features) -> tuple[Tensor, Tensor, Tensor]:
    """What queries find in the state: numerator [*b, n, dv], denominator [*b, n, 1], their log-scale.

    The scale [*b, n, 1] is that of both, that of the query included; -inf where the state holds no
    visible key.
    """
    assert state.reference is not None
    weights, top = query_weights(queries, state.reference)
    scale = queries.log_parts()[1] if queries.positive else queries.log_scale
    if scale.requires_grad:  # the scale that is returned is a constant to autograd
        weights = weights * torch.exp(scale - scale.detach())
    sums = weights @ sums_of(state, weights.dtype)
    return sums[..., :-1], sums[..., -1:], top + scale.detach()


def normalised(numerator: Tensor, denominator: Tensor, feature_map: FeatureMap) -> Tensor:
    """numerator / denominator; rows that see no key (0 / 0) are 0, as in torch's exact attention."""
    empty = denominator == 0
    if not feature_map.positive and (torch.compiler.is_compiling() or bool(empty.any())):
        empty = empty & (numerator == 0).all(dim=-1, keepdim=True)
    if not feature_map.positive and not torch.compiler.is_compiling():
        share = float(((denominator <= 0) & ~empty).float().mean())
        if share > 0:
            warnings.warn(
                f"{share:.2%} of the attention denominators are not positive: a signed feature map"
                " cannot normalise here; measure() reports how wrong the output is. Positive maps"
                " (positive, hyperbolic, gerf, sderf, data-aware) cannot do this.",
                DenominatorWarning,
                stacklevel=callers_level(),
            )
    return numerator / torch.where(empty, 1.0, denominator)


def callers_level() -> int:
    """The stacklevel at which a warning points at the code that called this library."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and _INSIDE.match(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


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
