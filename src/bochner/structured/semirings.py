"""Ways to sum over paths: a recursion is written once, over one of these.

    Sum        the fast one: matrix products of probabilities, logarithms between them
    LogSum     the same numbers by logsumexp, for any range; what `Sum` is tested and rescued with
    Max        the heaviest path instead of the sum; its gradient by the unaries is the path

A message holds non-negative weights exp(log + scale). `Sum` cannot see below the range of its dtype: it
carries a bound on what it may have lost, and says which elements of the batch could be wrong (`lost`).

Reference:  docs/theory.md 15.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bochner.structured.matrix import Matrix, finite_maximum, row_times

_ELEMENTS = 1 << 22  # of a sum that is laid out in full: 16 MB in float32


@dataclass(frozen=True)
class Message:
    """Weights exp(log + scale) of the states, for every element of a batch.

    Shapes:     log [*b, n]; scale [*b] in float64, a constant to autograd (what leaves log enters it);
                lost [*b], or None for none: elements that may have lost mass to underflow;
                doubt [*b, n], or None: log bounds (in the units of log) on entries that are not known.
    """

    log: Tensor
    scale: Tensor
    lost: Tensor | None = None
    doubt: Tensor | None = None


def either(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The union of two masks, None being empty."""
    if one is None or other is None:
        return other if one is None else one
    return one | other


def log_sum(log: Tensor, dim: int) -> Tensor:
    """logsumexp along `dim` whose gradient is 0, and not NaN, where every entry is -inf."""
    top = finite_maximum(log, dim)
    total = torch.exp(log - top).sum(dim=dim)
    return safe_log(total) + top.squeeze(dim)


def safe_log(values: Tensor) -> Tensor:
    """log of values >= 0, -inf at 0, where its gradient is 0."""
    if not values.requires_grad:
        return values.log()
    some = values > 0
    return torch.where(some, torch.where(some, values, 1.0).log(), -math.inf)


class Semiring(ABC):
    """A sum and a product of weights: what messages need to travel."""

    def lift(self, log_weights: Tensor) -> Message:
        """The message of given weights [*b, n]."""
        zero = torch.zeros(log_weights.shape[:-1], dtype=torch.float64, device=log_weights.device)
        return self.settled(Message(log_weights, zero))

    def times(self, message: Message, log_weights: Tensor) -> Message:
        """Every state's weight times exp(log_weights) [*b, n]."""
        doubt = None if message.doubt is None else message.doubt + log_weights.detach()
        return replace(message, log=message.log + log_weights, doubt=doubt)

    def product(self, one: Message, other: Message) -> Message:
        """Two messages to the same states, multiplied."""
        doubt = None
        if one.doubt is not None or other.doubt is not None:
            ours, theirs = _doubt(one), _doubt(other)
            crossed = torch.maximum(ours + other.log.detach(), one.log.detach() + theirs)
            doubt = torch.maximum(crossed, ours + theirs)
        lost = either(one.lost, other.lost)
        return Message(one.log + other.log, one.scale + other.scale, lost, doubt)

    def settled(self, message: Message) -> Message:
        """The same message with 0 as its largest logarithm; marked `lost` where doubts have become large."""
        top = finite_maximum(message.log, -1).squeeze(-1)
        lost, doubt = message.lost, None
        if message.doubt is not None:
            known = message.log.detach().amax(dim=-1)
            negligible = known + math.log(torch.finfo(known.dtype).eps)
            lost = either(lost, message.doubt.logsumexp(dim=-1) > negligible)
            doubt = message.doubt - top.unsqueeze(-1)
        return Message(message.log - top.unsqueeze(-1), message.scale + top.double(), lost, doubt)

    def weighted(self, message: Message, log_weights: Tensor) -> Message:
        """`times`, settled: the step of a recursion, without a copy between the two."""
        if message.doubt is not None:
            return self.settled(self.times(message, log_weights))
        log = message.log + log_weights
        top = finite_maximum(log, -1)
        scale = message.scale + top.squeeze(-1).double()
        return Message(log.sub_(top), scale, message.lost)

    def choose(self, condition: Tensor, one: Message, other: Message) -> Message:
        """`one` in the elements of the batch where the condition [*b] holds, `other` elsewhere."""
        wide = condition.unsqueeze(-1)
        lost = doubt = None
        if one.lost is not None or other.lost is not None:
            lost = torch.where(condition, _lost(one), _lost(other))
        if one.doubt is not None or other.doubt is not None:
            doubt = torch.where(wide, _doubt(one), _doubt(other))
        log = torch.where(wide, one.log, other.log)
        return Message(log, torch.where(condition, one.scale, other.scale), lost, doubt)

    def gather(self, message: Message, index: Tensor) -> Message:
        """The weights of some states, index [j] or [*b, j]."""
        wide = index.expand(*message.log.shape[:-1], index.shape[-1])
        doubt = None if message.doubt is None else message.doubt.gather(-1, wide)
        return replace(message, log=message.log.gather(-1, wide), doubt=doubt)

    def put(self, message: Message, index: Tensor, part: Message) -> Message:
        """The message with the weights of some states, index [j] or [*b, j], replaced by those of part."""
        one, other, scale = _in_one_unit(message, part)
        wide = index.expand(*one.log.shape[:-1], index.shape[-1])
        doubt = None
        if one.doubt is not None or other.doubt is not None:
            doubt = _doubt(one).scatter(-1, wide, _doubt(other))
        lost = either(one.lost, other.lost)
        return Message(one.log.scatter(-1, wide, other.log), scale, lost, doubt)

    def plus(self, one: Message, other: Message) -> Message:
        """Two messages to the same states, added."""
        one, other, scale = _in_one_unit(one, other)
        log = self._join(torch.stack([one.log, other.log], dim=-1))
        doubt = None
        if one.doubt is not None or other.doubt is not None:
            doubt = torch.logaddexp(_doubt(one), _doubt(other))
        return Message(log, scale, either(one.lost, other.lost), doubt)

    def total(self, message: Message) -> Tensor:
        """Logarithm of the sum over all states, [*b], float64."""
        message = self.settled(message)
        return self._join(message.log).double() + message.scale

    @abstractmethod
    def through(self, message: Message, matrix: Matrix) -> Message:
        """sum_i message_i matrix_ij: message [*b, n], matrix [*mb, n, k] -> [*b, k]."""

    @abstractmethod
    def _join(self, log: Tensor) -> Tensor:
        """The semiring's sum of exp(log) over the last dimension, as a logarithm."""


def _doubt(message: Message) -> Tensor:
    if message.doubt is not None:
        return message.doubt
    return torch.full_like(message.log.detach(), -math.inf)


def _lost(message: Message) -> Tensor:
    if message.lost is not None:
        return message.lost
    return torch.zeros_like(message.scale, dtype=torch.bool)


def _in_one_unit(one: Message, other: Message) -> tuple[Message, Message, Tensor]:
    """Two messages with logarithms beside one scale, the larger of the two."""
    scale = torch.maximum(one.scale, other.scale)
    moved = []
    for message in (one, other):
        shift = (message.scale - scale).to(message.log.dtype).unsqueeze(-1)
        doubt = None if message.doubt is None else message.doubt + shift
        moved.append(replace(message, log=message.log + shift, scale=scale, doubt=doubt))
    return moved[0], moved[1], scale


class Sum(Semiring):
    """Sums over paths by matrix products of exp(log - maximum).

    Error:      a product below the smallest number of the dtype is lost (about exp(-87) of the message's
                largest entry in float32, exp(-708) in float64). A bound on what was lost travels with
                the message, through the same matrices. Where weights that come later raise it to
                more than a rounding error of the total, the element is marked `lost`; the caller runs
                it again in float64, and at last with `LogSum`.
    """

    def through(self, message: Message, matrix: Matrix) -> Message:
        """One matrix product of exp(message - maximum), between exact changes of scale."""
        message = self.weighted(message, matrix.row_scale)
        raw = row_times(torch.exp(message.log), matrix.values)
        doubt = _doubts(message, matrix, raw.detach())
        # nobody else holds what was made here
        log = safe_log(raw) if raw.requires_grad else raw.log_()
        return Message(log.add_(matrix.column_scale), message.scale, message.lost, doubt)

    def _join(self, log: Tensor) -> Tensor:
        return log_sum(log, -1)


@torch.no_grad()
def _doubts(message: Message, matrix: Matrix, raw: Tensor) -> Tensor | None:
    """Bounds on what the entries of message times matrix are short of, in the units of the product."""
    doubt = None
    if bool(raw.amin() < math.exp(known_to(raw.dtype))):
        lossy = (raw < math.exp(known_to(raw.dtype))) & _reached(message, matrix)
        lost = math.log(torch.finfo(raw.dtype).tiny) + math.log(matrix.log.shape[-2])
        doubt = torch.where(lossy, lost, torch.full_like(raw.detach(), -math.inf))
    if message.doubt is not None:
        top = finite_maximum(message.doubt, -1)
        passed = safe_log(row_times(torch.exp(message.doubt - top), matrix.values)) + top
        doubt = passed if doubt is None else torch.logaddexp(doubt, passed)
    if doubt is None or not bool((doubt > -math.inf).any()):
        return None
    return doubt + matrix.column_scale


def _reached(message: Message, matrix: Matrix) -> Tensor:
    """Which entries of message times matrix are a sum of something: the others are 0, not lost."""
    some = (message.log > -math.inf) | (_doubt(message) > -math.inf)
    if matrix.positive:
        return some.any(dim=-1, keepdim=True)
    dtype = matrix.log.dtype
    return row_times(some.to(dtype), (matrix.log > -math.inf).to(dtype)) > 0


def known_to(dtype: torch.dtype) -> float:
    """Logarithm down to which a sum of products of numbers up to 1 is accurate in the dtype."""
    return -350.0 if dtype == torch.float64 else -45.0


class _Laid(Semiring):
    """Semirings that lay every product message_i + matrix_ij out before they join it."""

    def through(self, message: Message, matrix: Matrix) -> Message:
        """In blocks of columns, so that at most some megabytes are laid out at once."""
        message = self.settled(message)
        rows, columns = matrix.log.shape[-2:]
        batch = torch.broadcast_shapes(message.log.shape[:-1], matrix.log.shape[:-2]).numel()
        step = max(1, _ELEMENTS // max(1, batch * rows))
        parts = [
            self._part(message.log, matrix.log[..., start : start + step])
            for start in range(0, columns, step)
        ]
        return replace(message, log=torch.cat(parts, dim=-1), doubt=None)

    def _part(self, log: Tensor, block: Tensor) -> Tensor:
        return self._join((log.unsqueeze(-1) + block).transpose(-1, -2))


class LogSum(_Laid):
    """Sums over paths in the log domain: any range, differentiable twice, slow."""

    def _part(self, log: Tensor, block: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (log.requires_grad or block.requires_grad):
            part: Tensor = checkpoint(super()._part, log, block, use_reentrant=False)
            return part
        return super()._part(log, block)

    def _join(self, log: Tensor) -> Tensor:
        return log_sum(log, -1)


class Max(_Laid):
    """The heaviest path. Ties: the gradient follows one of the heaviest."""

    def _join(self, log: Tensor) -> Tensor:
        return log.max(dim=-1).values
