"""Hybrids as expressions: sums, products and signed multiples of feature maps.

    a + b      features side by side               Var = Var(a) + Var(b) if drawn independently
    a * b      row-wise outer product              unbiased only if drawn independently: checked
    w * a      scaled; a negative weight puts its sign on the query side

Reference:  Choromanski et al., Hybrid Random Features, 2022.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bochner.dependence import count_distinct, share_draws
from bochner.expressions import relative_covariance, relative_variance
from bochner.feature_map import FeatureMap, Monomial
from bochner.features import Features, SignedLog
from bochner.kernels import Softmax
from bochner.switches import Switch
from bochner.wrapped import WrappedMap


class Constant(FeatureMap):
    """One feature that is 1: estimates K = 1 exactly. `1 - lam` is `Constant - lam`.

    On its own it makes attention average the values; exact pairs beside it are exp(x.y), not 1.

    Example:
        >>> Constant(dim=2).estimate(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[1.]])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kernel, self.dim, self.num_features, self.batch_shape = Softmax(), dim, 1, ()

    def _query(self, x: Tensor) -> Features:
        return Features.from_logs(torch.zeros_like(x[..., :1]))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """log 1 = 0."""
        log_abs = torch.zeros_like(x[..., :1] + y[..., :1].transpose(-1, -2))
        return SignedLog(log_abs, torch.ones_like(log_abs))

    def resample_(self, generator: torch.Generator) -> Constant:
        """Nothing is random."""
        return self

    positive = unbiased = symmetric = True
    num_projections = 0

    def draws(self) -> list[Tensor]:
        """None."""
        return []

    def monomials(self) -> list[Monomial]:
        """An empty product."""
        return [Monomial(1.0, ())]

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Zero."""
        return torch.zeros_like(self.log_exact(x.double(), y.double()).log_abs)

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Zero."""
        zero = torch.zeros_like(self.log_exact(x.double(), y.double()).log_abs)
        return zero.unsqueeze(-1) * zero.unsqueeze(-2)


class Composite(FeatureMap):
    """What sums and products share: parts of one dimension, properties derived from theirs."""

    def __init__(self, *parts: FeatureMap) -> None:
        super().__init__()
        if len(parts) < 2:
            raise ValueError(f"{type(self).__name__} got {len(parts)} part(s); give at least two.")
        for part in parts[1:]:
            if part.dim != parts[0].dim:
                raise ValueError(
                    f"parts have dim={parts[0].dim} and dim={part.dim}; they must agree."
                )
        self.parts = nn.ModuleList(parts)
        estimators = [p for p in parts if not isinstance(p, Constant | Switch)]
        self.kernel = (estimators or parts)[0].kernel  # constants and weights estimate no kernel
        self.dim = parts[0].dim
        try:
            self.batch_shape = tuple(torch.broadcast_shapes(*(p.batch_shape for p in parts)))
        except RuntimeError:
            shapes = [p.batch_shape for p in parts]
            raise ValueError(f"parts have batch shapes {shapes}, which do not broadcast.") from None
        self.independent = not any(
            share_draws(a, b) for i, a in enumerate(parts) for b in parts[i + 1 :]
        )

    estimates_kernel = False
    """Whether the parts are weighed so that the whole estimates `kernel`, as in `bochner.hybrids`."""

    @property
    def changes_kernel(self) -> bool:
        """Unless the whole is known to estimate `kernel`."""
        return not self.estimates_kernel

    def log_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """`kernel` where the whole estimates it, else what it does estimate, if that is positive."""
        return super().log_kernel(x, y) if self.estimates_kernel else _log_mean(self, x, y)

    @property
    def maps(self) -> list[FeatureMap]:
        """The parts."""
        return list(self.parts)  # type: ignore[arg-type]

    def resample_(self, generator: torch.Generator) -> Composite:
        """Redraw every part, one after another, from `generator`."""
        for part in self.maps:
            part.resample_(generator)
        return self

    @property
    def positive(self) -> bool:
        """If all parts are."""
        return all(p.positive for p in self.maps)

    @property
    def unbiased(self) -> bool:
        """If all parts are (products hold independent parts by construction)."""
        return all(p.unbiased for p in self.maps)

    @property
    def symmetric(self) -> bool:
        """If all parts are."""
        return all(p.symmetric for p in self.maps)

    @property
    def num_projections(self) -> int:
        """All directions drawn, those that parts share counted once."""
        return count_distinct(self.draws())

    def draws(self) -> list[Tensor]:
        """Those of all parts."""
        return [draw for p in self.maps for draw in p.draws()]

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """From the moments of the parts, their dependence included (`bochner.expressions`)."""
        return relative_variance(self, x, y)

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """From the moments of the parts, their dependence included."""
        return relative_covariance(self, x, y)


class Sum(Composite):
    """Estimates the sum of what its parts estimate; num_features add up.

    Error:      with independent draws the variances add; with shared draws the covariance counts,
                where theory has it (independent directions), and `relative_variance` is None else.
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> a = bochner.make("trigonometric", dim=2, num_features=8, generator=g)
        >>> b = bochner.make("positive", dim=2, num_features=8, generator=g)
        >>> mix = 0.5 * a + 0.5 * b
        >>> mix.num_features, mix.positive, mix.unbiased
        (16, False, True)
    """

    def __init__(self, *parts: FeatureMap) -> None:
        super().__init__(*parts)
        self.num_features = sum(p.num_features for p in parts)

    def _query(self, x: Tensor) -> Features:
        return _concatenate([p._query(x) for p in self.maps])

    def _key(self, y: Tensor) -> Features:
        return _concatenate([p._key(y) for p in self.maps])

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """Signed log-sum of the parts' exact values."""
        exact = [p.log_exact(x, y) for p in self.maps]
        stacked = torch.stack(torch.broadcast_tensors(*(e.log_abs for e in exact)))
        sign = torch.stack(torch.broadcast_tensors(*(e.sign for e in exact)))
        top = stacked.amax(0)
        top = torch.where(torch.isinf(top), 0.0, top)  # all parts 0
        total = (sign * torch.exp(stacked - top)).sum(0)
        return SignedLog(torch.log(total.abs()) + top, torch.sign(total))

    def monomials(self) -> list[Monomial]:
        """Those of all parts."""
        return [m for p in self.maps for m in p.monomials()]


class Product(Composite):
    """Estimates the product of what its parts estimate; num_features multiply.

    Error:      1 + relvar = product of (1 + relvar of a part).
    Raises:     ValueError if two parts share random draws: the product of dependent estimates is
                biased (measured -2 % to +9 % of the kernel).
    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> a = bochner.make("positive", dim=2, num_features=8, generator=g)
        >>> (a * bochner.make("positive", dim=2, num_features=4, generator=g)).num_features
        32
    """

    def __init__(self, *parts: FeatureMap) -> None:
        super().__init__(*parts)
        if not self.independent:
            raise ValueError(
                "parts of a Product share random draws, which biases it; make each with its own"
                " draw from the generator."
            )
        self.num_features = math.prod(p.num_features for p in parts)

    def _query(self, x: Tensor) -> Features:
        return _outer([p._query(x) for p in self.maps])

    def _key(self, y: Tensor) -> Features:
        return _outer([p._key(y) for p in self.maps])

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """Logs add, signs multiply."""
        exact = [p.log_exact(x, y) for p in self.maps]
        log_abs, sign = exact[0]
        for other in exact[1:]:
            log_abs, sign = log_abs + other.log_abs, sign * other.sign
        return SignedLog(log_abs, sign)

    def monomials(self) -> list[Monomial]:
        """Every choice of one monomial from each part, multiplied."""
        found = [Monomial(1.0, ())]
        for part in self.maps:
            found = [
                Monomial(a.weight * b.weight, a.leaves + b.leaves)
                for a in found
                for b in part.monomials()
            ]
        return found


class Scaled(WrappedMap):
    """weight times what `inner` estimates; a negative weight makes the map signed, not symmetric.

    Raises:     ValueError for a weight that is zero or not finite.
    """

    def __init__(self, weight: float, inner: FeatureMap) -> None:
        super().__init__(inner)
        if not (math.isfinite(weight) and weight != 0.0):
            raise ValueError(f"weight={weight} must be finite and not zero.")
        self.weight = float(weight)

    def _query(self, x: Tensor) -> Features:
        features = self.inner._query(x).scaled(0.5 * math.log(abs(self.weight)))
        return features if self.weight > 0 else Features(-features.values, features.log_scale)

    def _key(self, y: Tensor) -> Features:
        return self.inner._key(y).scaled(0.5 * math.log(abs(self.weight)))

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """log|weight| added, sign multiplied."""
        log_abs, sign = self.inner.log_exact(x, y)
        return SignedLog(log_abs + math.log(abs(self.weight)), math.copysign(1, self.weight) * sign)

    @property
    def changes_kernel(self) -> bool:
        """Unless the weight is 1."""
        return self.weight != 1.0 or self.inner.changes_kernel

    def log_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner map's, times a positive weight."""
        if self.weight < 0:
            return _log_mean(self, x, y)
        return self.inner.log_kernel(x, y) + math.log(self.weight)

    @property
    def positive(self) -> bool:
        """If the weight and the inner map are."""
        return self.weight > 0 and self.inner.positive

    @property
    def symmetric(self) -> bool:
        """If the weight is positive and the inner map symmetric."""
        return self.weight > 0 and self.inner.symmetric

    def monomials(self) -> list[Monomial]:
        """The inner map's, times the weight."""
        return [Monomial(self.weight * m.weight, m.leaves) for m in self.inner.monomials()]

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The inner map's: a weight changes nothing relative."""
        return self.inner.relative_variance(x, y)

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The inner map's."""
        return self.inner.relative_covariance(x, y)

    def extra_repr(self) -> str:
        """The weight too."""
        return f"weight={self.weight}, {super().extra_repr()}"


def _log_mean(feature_map: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """log E[estimate] of an expression.

    Raises:     ValueError where that is not positive: then it is no kernel value that could be exact.
    """
    log_abs, sign = feature_map.log_exact(x, y)
    if not torch.compiler.is_compiling() and bool((sign <= 0).any()):
        raise ValueError(
            f"this {type(feature_map).__name__} estimates values that are not positive"
            f" ({int((sign <= 0).sum())} of {sign.numel()} pairs), which have no logarithm; exact"
            " windows need a map of a positive kernel."
        )
    return log_abs


def _concatenate(parts: list[Features]) -> Features:
    if all(p.positive for p in parts):
        logs = [p.log_features() for p in parts]
        lead = torch.broadcast_shapes(*(log.shape[:-1] for log in logs))
        whole = torch.cat([log.expand(*lead, -1) for log in logs], dim=-1)
        return Features.from_own_logs(whole, torch.zeros_like(whole[..., :1]))
    top = torch.stack(torch.broadcast_tensors(*(p.log_scale for p in parts))).amax(0)
    values = [p.values * torch.exp(p.log_scale - top) for p in parts]
    return Features(torch.cat(values, dim=-1), top)


def _outer(parts: list[Features]) -> Features:
    result = parts[0]
    for part in parts[1:]:
        scale = result.log_scale + part.log_scale
        if result.log_values is not None and part.log_values is not None:
            logs = result.log_values.unsqueeze(-1) + part.log_values.unsqueeze(-2)
            result = Features.from_own_logs(logs.flatten(-2), scale)
        else:
            values = result.values.unsqueeze(-1) * part.values.unsqueeze(-2)
            result = Features(values.flatten(-2), scale)
    return result


def _as_map(value: FeatureMap | float, dim: int) -> FeatureMap:
    if isinstance(value, FeatureMap):
        return value
    return Constant(dim) if value == 1.0 else Scaled(value, Constant(dim))


def _add(self: FeatureMap, other: FeatureMap | float) -> FeatureMap:
    return Sum(self, _as_map(other, self.dim))


def _subtract(self: FeatureMap, other: FeatureMap | float) -> FeatureMap:
    return Sum(self, Scaled(-1.0, _as_map(other, self.dim)))


def _subtract_from(self: FeatureMap, other: float) -> FeatureMap:
    if other == 1.0 and isinstance(self, Switch):
        return self.complement()  # 1 - lambda: fewer columns, and its moments do not cancel
    return Sum(_as_map(other, self.dim), Scaled(-1.0, self))


def _multiply(self: FeatureMap, other: FeatureMap | float) -> FeatureMap:
    return Product(self, other) if isinstance(other, FeatureMap) else Scaled(other, self)


def _negate(self: FeatureMap) -> FeatureMap:
    return Scaled(-1.0, self)


for _name, _operator in {
    "__add__": _add,
    "__radd__": _add,
    "__sub__": _subtract,
    "__rsub__": _subtract_from,
    "__mul__": _multiply,
    "__rmul__": _multiply,
    "__neg__": _negate,
}.items():
    setattr(FeatureMap, _name, _operator)  # declared there, defined here: imports run one way
