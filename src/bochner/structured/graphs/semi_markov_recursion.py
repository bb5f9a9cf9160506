"""The recursion of a semi-Markov chain, once: over boundaries between segments, both ways.

    close_t(y) = sum_{k=1..K} open_{t-k}(y) L(y, k) prod_{s=t-k+1..t} w_s(y)     a segment ends after t steps
    open_t(y)  = sum_x close_t(x) K_t(x, y),      open_0 = 1                     and the next begins
    head_t(y)  = sum_{k=1..K} L(y, k) prod_{s=t+1..t+k} w_s(y) tail_{t+k}(y)     the same from the end
    tail_t(x)  = sum_y K_t(x, y) head_t(y),       tail_T = 1

Weights of several steps are sums of logarithms made anew at every boundary: differences of cumulative
sums would lose digits, and know nothing of -inf. A boundary costs O(X (m + K)).

Reference:  docs/theory.md 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bochner.structured.edges.transitions import Transitions
from bochner.structured.matrix import finite_maximum
from bochner.structured.semirings import Message, Semiring, either


@dataclass(frozen=True)
class Weights:
    """Weights of a flattened batch, every step's largest taken out: it belongs to every segmentation.

    Shapes:     unaries [N, T, X]; log_durations [N or 1, K, X]; lengths [N]; log_scale [N], float64.
    """

    unaries: Tensor
    log_durations: Tensor
    lengths: Tensor
    log_scale: Tensor

    @classmethod
    def of(cls, unaries: Tensor, log_durations: Tensor, lengths: Tensor) -> Weights:
        """From unaries [N, T, X] and log_durations [N or 1, X, K]."""
        steps = torch.arange(unaries.shape[-2], device=unaries.device)
        there = (steps < lengths.unsqueeze(-1)).unsqueeze(-1)
        top = torch.where(there, finite_maximum(unaries, -1), 0.0)
        scale = top.squeeze(-1).double().sum(dim=-1)
        return cls(unaries - top, log_durations.transpose(-1, -2), lengths, scale)

    @property
    def longest(self) -> int:
        """K, the longest duration."""
        return self.log_durations.shape[-2]

    def before(self, end: int) -> Tensor:
        """Log-weights of the segments that end after `end` steps, [N, k, X] for k = 1, 2, ..."""
        count = min(self.longest, end)
        steps = self.unaries[:, end - count : end].flip(1)
        return steps.cumsum(dim=1) + self.log_durations[:, :count]

    def after(self, begin: int) -> Tensor:
        """Log-weights of the segments that begin after `begin` steps, [N, k, X] for k = 1, 2, ..."""
        steps = self.unaries[:, begin : begin + self.longest]
        return steps.cumsum(dim=1) + self.log_durations[:, : steps.shape[1]]


def _added(semiring: Semiring, messages: Sequence[Message], log_weights: Tensor) -> Message:
    """sum_k messages_k exp(log_weights [N, k, X]): one segment's length after another."""
    terms = torch.stack([m.log for m in messages], dim=1) + log_weights
    scales = torch.stack([m.scale for m in messages], dim=-1)
    peaks = terms.detach().amax(dim=-1)
    # the scale of a message that is 0 throughout says nothing
    top = finite_maximum(torch.where(peaks > -torch.inf, scales + peaks, -torch.inf), -1)
    shifts = (scales - top).to(terms.dtype).unsqueeze(-1)
    terms = (terms + shifts).transpose(-1, -2)
    none = torch.zeros(terms.shape[:-1], dtype=torch.float64, device=terms.device)
    total = semiring.total(Message(terms, none)).to(terms.dtype)
    lost = doubt = None
    for message in messages:
        lost = either(lost, message.lost)
    if any(m.doubt is not None for m in messages):
        doubts = [
            torch.full_like(m.log.detach(), -torch.inf) if m.doubt is None else m.doubt
            for m in messages
        ]
        doubt = torch.logsumexp(torch.stack(doubts, dim=1) + log_weights.detach() + shifts, dim=1)
    return semiring.settled(Message(total, top.squeeze(-1), lost, doubt))


def added(
    semiring: Semiring, messages: Sequence[Message], log_weights: Callable[[], Tensor]
) -> Message:
    """`_added`; what it lays out, [N, K, X], is made again for the gradient and not kept."""
    if not torch.is_grad_enabled():
        return _added(semiring, messages, log_weights())

    def run(*logs: Tensor) -> Message:
        given = [replace(m, log=log) for m, log in zip(messages, logs, strict=True)]
        return _added(semiring, given, log_weights())

    found: Message = checkpoint(run, *(m.log for m in messages), use_reentrant=False)
    return found


@dataclass(frozen=True)
class Forwards:
    """opens[t], closes[t] for t = 0 .. T; log Z [N] in float64; lost [N]."""

    opens: list[Message]
    closes: list[Message]
    log_partition: Tensor
    lost: Tensor | None


def forwards(semiring: Semiring, transitions: Transitions, weights: Weights) -> Forwards:
    """From the first boundary to the last."""
    steps = weights.unaries.shape[1]
    one = semiring.lift(torch.zeros_like(weights.unaries[:, 0]))
    opens, closes = [one], [one]
    value = torch.zeros_like(weights.log_scale)
    lost: Tensor | None = None
    for end in range(1, steps + 1):
        earlier = opens[max(0, end - weights.longest) : end][::-1]
        close = added(semiring, earlier, partial(weights.before, end))
        closes.append(close)
        last = weights.lengths == end
        value = torch.where(last, semiring.total(close), value)
        lost = either(lost, None if close.lost is None else close.lost & last)
        if end < steps:
            opens.append(transitions.forward(semiring, close, end - 1))
    return Forwards(opens, closes, value + weights.log_scale, lost)


@dataclass(frozen=True)
class Backwards:
    """heads[t] for t < T, tails[t] for t <= T; lost [N]."""

    heads: list[Message]
    tails: list[Message]
    log_partition: Tensor
    lost: Tensor | None


def backwards(semiring: Semiring, transitions: Transitions, weights: Weights) -> Backwards:
    """From the last boundary to the first."""
    steps = weights.unaries.shape[1]
    one = semiring.lift(torch.zeros_like(weights.unaries[:, 0]))
    none = replace(one, log=torch.full_like(one.log, -torch.inf))
    tails = {steps: semiring.choose(weights.lengths == steps, one, none)}
    heads: dict[int, Message] = {}
    for begin in range(steps - 1, -1, -1):
        count = min(weights.longest, steps - begin)
        later = [tails[begin + k] for k in range(1, count + 1)]
        head = heads[begin] = added(semiring, later, partial(weights.after, begin))
        if begin:
            inside = transitions.backward(semiring, head, begin - 1)
            beyond = semiring.choose(weights.lengths == begin, one, none)
            tails[begin] = semiring.choose(weights.lengths > begin, inside, beyond)
    tails[0] = one
    value = semiring.total(heads[0]) + weights.log_scale
    lost = heads[0].lost
    return Backwards(
        [heads[t] for t in range(steps)], [tails[t] for t in range(steps + 1)], value, lost
    )
