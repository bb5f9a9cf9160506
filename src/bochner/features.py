"""The one value type that travels through the house: features with a log-scale.

    phi(x) = values * exp(log_scale),      values [*b, n, m] of order 1, log_scale [*b, n, 1]

Nothing exponentiates an unbounded number. Positive maps travel as logarithms (`log_values`), so
that a feature too small for its dtype still takes part in a sum whose other factor is large.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_RESCUE_ELEMENTS = 1 << 22  # logarithms summed at once in the rescue below: 16 MB in float32


def fits(small: torch.Size, large: torch.Size) -> bool:
    """Whether small broadcasts to large as it is (torch.broadcast_shapes costs ten times as much)."""
    pairs = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(s in (1, size) for s, size in pairs)


class SignedLog(NamedTuple):
    """Real numbers as sign * exp(log_abs); log_abs is -inf for zero.

    Shapes:     log_abs and sign share one shape; sign holds -1, 0 or 1.
    Example:
        >>> SignedLog(torch.tensor([0.0]), torch.tensor([-1.0])).value()
        tensor([-1.])
    """

    log_abs: Tensor
    sign: Tensor

    def value(self) -> Tensor:
        """sign * exp(log_abs); inf where that leaves the dtype's range."""
        return self.sign * torch.exp(self.log_abs)


class Features:
    """Feature vectors phi(x) = values * exp(log_scale), one row per point.

    Shapes:     values [*b, n, m] with entries of order 1, log_scale [*b, n, 1]; float32 or float64.
    Positive:   made by `Features.from_logs`; `log_values` [*b, n, m] <= 0 is then present, and
                `values` is its exponential, computed when asked for.
    Example:
        >>> f = Features.from_logs(torch.tensor([[1000.0, 999.0]]))   # exp(1000) has no float32
        >>> f.values, f.log_scale
        (tensor([[1.0000, 0.3679]]), tensor([[1000.]]))
    """

    __slots__ = ("_log_scale", "_logs", "_normalised", "_own", "_values")

    def __init__(self, values: Tensor, log_scale: Tensor) -> None:
        self._values: Tensor | None = values
        self._logs: Tensor | None = None
        self._log_scale = log_scale
        self._normalised = True
        self._own = False

    @classmethod
    def from_logs(cls, log_features: Tensor) -> Features:
        """Positive features from their logarithms [*b, n, m], of any finite size."""
        return cls.from_scaled_logs(log_features, torch.zeros_like(log_features[..., :1]))

    @classmethod
    def from_scaled_logs(cls, log_features: Tensor, log_scale: Tensor) -> Features:
        """Positive features exp(log_features + log_scale); the row maximum moves into the scale when
        `log_values` or `log_scale` are asked for.

        A logarithm of -inf is a feature that is 0; a row may hold nothing else.
        """
        features = cls.__new__(cls)
        features._values = None
        features._logs, features._log_scale = log_features, log_scale
        features._normalised = features._own = False
        return features

    @classmethod
    def from_own_logs(cls, log_features: Tensor, log_scale: Tensor) -> Features:
        """As `from_scaled_logs`, for logarithms that nobody else holds: `used_up_plus` writes over them."""
        features = cls.from_scaled_logs(log_features, log_scale)
        features._own = True
        return features

    def _normalise(self) -> None:
        """Move the row maximum of the logarithms into the scale."""
        if not self._normalised:
            assert self._logs is not None
            shift = self._logs.detach().amax(dim=-1, keepdim=True)
            shift = torch.where(shift == -math.inf, 0.0, shift)
            self._logs = self._logs - shift
            self._log_scale = self._log_scale + shift
            self._normalised = self._own = True

    @property
    def log_scale(self) -> Tensor:
        """The scale of every row, [*b, n, 1]."""
        self._normalise()
        return self._log_scale

    @property
    def log_values(self) -> Tensor | None:
        """Logarithms <= 0 of positive features, [*b, n, m], 0 the largest of a row; None if signed."""
        self._normalise()
        return self._logs

    def log_parts(self) -> tuple[Tensor, Tensor]:
        """(l, s) with phi(x) = exp(l + s), as they were given: l [*b, n, m], s [*b, n, 1]; positive
        features only. Cheaper than `log_features` where s cancels."""
        if self._logs is None:
            raise ValueError("signed features have no logarithms; use values and log_scale.")
        return self._logs, self._log_scale

    def used_up_plus(self, shift: Tensor) -> Tensor:
        """The first of `log_parts` plus `shift` [*b, 1, m], written over logarithms that belong to these
        features: the last use of them."""
        logs, _ = self.log_parts()
        return (
            logs.add_(shift)
            if self._may_write() and fits(shift.shape, logs.shape)
            else logs + shift
        )

    def log_features(self) -> Tensor:
        """log phi(x) itself, [*b, n, m], of positive features; cheaper than both its parts."""
        if self._logs is None:
            raise ValueError("signed features have no logarithms; use values and log_scale.")
        return self._logs + self._log_scale

    def _may_write(self) -> bool:
        """Whether log_features may be written over the logarithms."""
        assert self._logs is not None
        recorded = self._logs.requires_grad or self._log_scale.requires_grad
        if not self._own or recorded or torch.compiler.is_compiling():
            return False
        return fits(self._log_scale.shape, self._logs.shape)

    @property
    def values(self) -> Tensor:
        """The features without their scale, [*b, n, m]."""
        if self._values is None:
            log_values = self.log_values
            assert log_values is not None
            self._values = torch.exp(log_values)
        return self._values

    @property
    def positive(self) -> bool:
        """Whether every feature is known to be positive (and travels as a logarithm)."""
        return self._logs is not None

    def _stored(self) -> Tensor:
        stored = self._logs if self._values is None else self._values
        assert stored is not None
        return stored

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        return self._stored().dtype

    @property
    def num_features(self) -> int:
        """m, the number of columns."""
        return self._stored().shape[-1]

    def scaled(self, log_factor: Tensor | float) -> Features:
        """The same features times exp(log_factor), log_factor broadcasting to [*b, n, 1]."""
        features = Features.__new__(Features)
        features._values, features._logs = self._values, self._logs
        features._log_scale = self._log_scale + log_factor
        features._normalised, features._own = self._normalised, self._own
        return features

    def detach(self) -> Features:
        """The same features, constant to autograd."""
        if self._logs is None:
            return Features(self.values.detach(), self._log_scale.detach())
        return Features.from_scaled_logs(self._logs.detach(), self._log_scale.detach())

    def materialise(self) -> Tensor:
        """phi(x) itself, [*b, n, m]; leaves the dtype's range where log_scale does."""
        if self.positive:
            return torch.exp(self.log_features())
        return self.values * torch.exp(self.log_scale)

    def __repr__(self) -> str:
        kind, stored = "positive" if self.positive else "signed", self._stored()
        return f"Features({kind}, shape={list(stored.shape)}, dtype={stored.dtype})"


def log_inner(queries: Features, keys: Features, *, where: Tensor | None = None) -> SignedLog:
    """All inner products phi(x_i) . phi(y_j) as signed logarithms.

    Shapes:     queries [*b, n, m], keys [*b, n', m] -> log_abs, sign [*b, n, n'].
                `where` [n, n'] (or broadcastable): entries outside it are not rescued (see below)
                and come back as -inf.
    Method:     one matrix product of the row-normalised values. Positive entries that underflow
                there (both rows have their large features elsewhere) are summed again in the log
                domain, so no positive pair is ever lost.
    Cost:       O(n n' m) time, O(n n') memory.
    """
    product = value_products(queries, keys)
    scale = queries.log_scale + keys.log_scale.transpose(-1, -2)
    if not (queries.positive and keys.positive):
        nonzero = product != 0
        if where is not None:
            nonzero = nonzero & where
        log_abs = torch.log(torch.where(nonzero, product, torch.ones_like(product)).abs()) + scale
        log_abs = log_abs.masked_fill(~nonzero, -math.inf)
        return SignedLog(log_abs, torch.sign(product) * nonzero)
    solid = product > smallest_product(product)
    log_abs = torch.log(torch.where(solid, product, torch.ones_like(product))) + scale
    wanted = ~solid if where is None else ~solid & where
    if torch.compiler.is_exporting():
        log_abs = torch.where(wanted, _all_from_logs(queries, keys) + scale, log_abs)
    elif torch.compiler.is_compiling() or bool(wanted.any()):
        log_abs = _rescue(log_abs, wanted, scale, queries, keys)
    if where is not None:
        log_abs = log_abs.masked_fill(~where, -math.inf)
    return SignedLog(log_abs, torch.ones_like(log_abs))


def value_products(queries: Features, keys: Features) -> Tensor:
    """values . values for all pairs; autocast would round both factors to half precision."""
    values = queries.values
    with torch.autocast(device_type=values.device.type, enabled=False):
        return values @ keys.values.transpose(-1, -2)


def smallest_product(product: Tensor) -> float:
    """The smallest inner product of normalised positive features that no lost term can have mattered
    to: m * (smallest normal) is far below. A second derivative also divides by its square."""
    tiny = torch.finfo(product.dtype).tiny
    return tiny ** (1 / 3) if product.requires_grad else tiny * 1e8


def _all_from_logs(queries: Features, keys: Features) -> Tensor:
    """The logarithms of all products of positive values by a log-sum-exp over the features: without a
    choice that depends on data, for torch.export."""
    log_q, log_k = queries.log_values, keys.log_values
    assert log_q is not None
    assert log_k is not None
    log_k = log_k.unsqueeze(-3)
    rows = [torch.logsumexp(part.unsqueeze(-2) + log_k, dim=-1) for part in log_q.split(16, dim=-2)]
    return torch.cat(rows, dim=-2)


@torch.compiler.disable
def _rescue(
    log_abs: Tensor, wanted: Tensor, scale: Tensor, queries: Features, keys: Features
) -> Tensor:
    """Replace the wanted entries of log_abs by a log-sum-exp over the features, plus their scale."""
    index = wanted.expand(log_abs.shape).nonzero(as_tuple=True)
    if index[0].numel() == 0:
        return log_abs
    assert queries.log_values is not None
    assert keys.log_values is not None
    lead = log_abs.shape[:-2]
    log_q = queries.log_values.expand(*lead, -1, -1)
    log_k = keys.log_values.expand(*lead, -1, -1)
    *batch, row, column = index
    pairs = max(1, _RESCUE_ELEMENTS // queries.num_features)
    sums = [
        torch.logsumexp(
            log_q[(*(b[part] for b in batch), row[part])]
            + log_k[(*(b[part] for b in batch), column[part])],
            dim=-1,
        )
        for part in torch.arange(row.numel(), device=row.device).split(pairs)
    ]
    return log_abs.index_put(index, torch.cat(sums) + scale.expand(log_abs.shape)[index])
