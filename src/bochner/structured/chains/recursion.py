"""The recursion of a chain, once: messages forward, messages backward, log Z and its gradient.

    alpha_{t+1}(y) = w_{t+1}(y) sum_x alpha_t(x) K_t(x, y)
    beta_t(x)      = sum_y K_t(x, y) w_{t+1}(y) beta_{t+1}(y)
    d log Z / d u_t(x) = alpha_t(x) beta_t(x) / Z
    d log Z / d theta  = sum_t d log s_t / d theta,
        s_t = sum_xy alpha_t(x) K_t(x, y; theta) w_{t+1}(y) beta_{t+1}(y)

The last line, with the messages held fixed, is one matrix product for all edges: no step of the recursion
is recorded. Messages are kept at the starts of segments and made again within one, so that the memory is
O(sqrt(T) X) beside the unaries.

Reference:  docs/theory.md 15.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bochner.structured.chains.scaled_products import scaled_log_partition
from bochner.structured.edges.transitions import Transitions
from bochner.structured.semirings import LogSum, Message, Semiring, Sum, log_sum

_SEGMENT_ELEMENTS = 1 << 22  # messages that a segment may always hold: 16 MB in float32


class Part(NamedTuple):
    """Steps first, ..., last of a chain: unaries [*b, T, X] of all its steps, lengths [*b]."""

    unaries: Tensor
    lengths: Tensor
    first: int
    last: int

    @classmethod
    def whole(cls, unaries: Tensor, lengths: Tensor) -> Part:
        """All steps."""
        return cls(unaries, lengths, 0, unaries.shape[-2] - 1)


def forward_messages(
    semiring: Semiring, transitions: Transitions, part: Part, start: Message | None = None
) -> Iterator[Message]:
    """alpha at part.first, ..., part.last; beyond the lengths it stays.

    `start` is alpha at part.first, where that is not the first step of the chain.
    """
    unaries, lengths, first, last = part
    shortest = int(lengths.min())
    message = semiring.lift(unaries[..., first, :]) if start is None else start
    yield message
    for step in range(first + 1, last + 1):
        moved = transitions.forward(semiring, message, step - 1)
        moved = semiring.settled(semiring.times(moved, unaries[..., step, :]))
        message = moved if step < shortest else semiring.choose(lengths > step, moved, message)
        yield message


def backward_messages(
    semiring: Semiring, transitions: Transitions, part: Part, end: Message | None = None
) -> Iterator[Message]:
    """beta at part.last, ..., part.first; 1 at the last step of a chain and beyond it.

    `end` is beta at part.last, where that is not the last step of the chain.
    """
    unaries, lengths, first, last = part
    shortest = int(lengths.min())
    message = semiring.lift(torch.zeros_like(unaries[..., last, :])) if end is None else end
    yield message
    for step in range(last - 1, first - 1, -1):
        weighted = semiring.times(message, unaries[..., step + 1, :])
        moved = semiring.settled(transitions.backward(semiring, weighted, step))
        there = lengths > step + 1
        message = moved if step + 1 < shortest else semiring.choose(there, moved, message)
        yield message


def recorded_log_partition(
    semiring: Semiring, transitions: Transitions, unaries: Tensor, lengths: Tensor
) -> Tensor:
    """log Z [*b] in float64, every step recorded by autograd: the twin of `log_partition`."""
    messages = forward_messages(semiring, transitions, Part.whole(unaries, lengths))
    (last,) = deque(messages, maxlen=1)
    return semiring.total(last)


def log_partition(transitions: Transitions, unaries: Tensor, lengths: Tensor) -> Tensor:
    """log Z [N], float64; unaries [N, T, X] in float32 or float64, lengths [N]: a flattened batch.

    Numerics:   without a gradient by plain scaled products, where those are known to be enough; else in
                the dtype of the unaries by `Sum`; the elements that it may have lost again in float64;
                those that float64 may lose by `LogSum`.
    Cost:       two products with the transitions a step, and the same backward, with one more for
                all steps at once. Memory O(N X) and, if anything is differentiated, O(sqrt(T) N X).
    """
    if not recorded(transitions, unaries) and bool((lengths == unaries.shape[-2]).all()):
        found = scaled_log_partition(transitions, unaries)
        if found is not None and bool(found[1].all()):
            return found[0]
    value, lost = _LogPartition.apply(transitions, lengths, unaries, *transitions.tensors())
    if not bool(lost.any()):
        return value
    index = lost.nonzero().squeeze(-1)
    parts = transitions.selected(index).double(), unaries[index].double(), lengths[index]
    if unaries.dtype == torch.float64:
        again = recorded_log_partition(LogSum(), *parts)
    else:
        again = log_partition(*parts)
    return value.index_copy(0, index, again)


def recorded(transitions: Transitions, unaries: Tensor) -> bool:
    """Whether a gradient by any of these may be asked for."""
    tensors = (unaries, *transitions.tensors())
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class _LogPartition(torch.autograd.Function):
    """log Z [N] and which elements may be wrong [N].

    The tensors of the transitions are arguments too: only arguments are differentiated.
    """

    @staticmethod
    def forward(
        ctx: Any, transitions: Transitions, lengths: Tensor, unaries: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        bare = transitions.with_tensors([t.detach() for t in tensors])
        steps, sums = unaries.shape[-2], Sum()
        fits = _SEGMENT_ELEMENTS // max(1, unaries[:, 0].numel())
        ctx.segment = max(math.isqrt(steps - 1) + 1, fits)
        starts, message = [], None
        part = Part.whole(unaries.detach(), lengths)
        for step, message in enumerate(forward_messages(sums, bare, part)):
            if step % ctx.segment == 0:
                starts.append(message)
        assert message is not None
        value = sums.total(message)
        lost = message.lost
        if lost is None:
            lost = torch.zeros_like(value, dtype=torch.bool)
        ctx.bare, ctx.starts = bare, starts
        ctx.save_for_backward(lengths, value, unaries, *tensors)
        ctx.mark_non_differentiable(lost)
        return value, lost

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        lengths, value, *inputs = ctx.saved_tensors
        wanted, grad = ctx.needs_input_grad[2:], grads[0]
        if torch.is_grad_enabled():
            transitions = ctx.bare.with_tensors(inputs[1:])
            return None, None, *_recorded_gradient(transitions, lengths, inputs, grad, wanted)
        grad = torch.where(torch.isfinite(value), grad, 0.0)
        task = _Task(ctx.bare, ctx.starts, ctx.segment, lengths, inputs, value, wanted)
        found, doubtful = task.gradient(grad)
        if not bool(doubtful.any()):
            return None, None, *found
        sure, _ = task.gradient(torch.where(doubtful, 0.0, grad))
        return None, None, *task.rescued(sure, grad, doubtful)


def _recorded_gradient(
    transitions: Transitions,
    lengths: Tensor,
    inputs: list[Tensor],
    grad: Tensor,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradient by `LogSum`, with a graph of its own."""
    value = recorded_log_partition(LogSum(), transitions, inputs[0], lengths)
    some = [t for t, w in zip(inputs, wanted, strict=True) if w]
    found = torch.autograd.grad(value, some, grad, create_graph=True, allow_unused=True)
    left = iter(found)
    return [next(left) if w else None for w in wanted]


class _Task(NamedTuple):
    """What a backward pass knows: inputs are the unaries [N, T, X] and the tensors of the transitions."""

    bare: Transitions
    starts: list[Message]
    segment: int
    lengths: Tensor
    inputs: list[Tensor]
    value: Tensor
    wanted: tuple[bool, ...]

    def gradient(self, grad: Tensor) -> tuple[list[Tensor | None], Tensor]:
        """The gradients, and in which elements [N] the two messages disagree about log Z."""
        unaries, *_ = (t.detach() for t in self.inputs)
        found = [
            torch.zeros_like(t) if w else None
            for t, w in zip(self.inputs, self.wanted, strict=True)
        ]
        doubtful = torch.zeros_like(grad, dtype=torch.bool)
        beyond: Message | None = None
        for number in reversed(range(len(self.starts))):
            first = number * self.segment
            last = min(first + self.segment, unaries.shape[1]) - 1
            alphas = _Stack.of(
                forward_messages(
                    Sum(), self.bare, Part(unaries, self.lengths, first, last), self.starts[number]
                )
            )
            # beta of the step after the segment comes first, where there is one
            stop = last if beyond is None else last + 1
            part = Part(unaries, self.lengths, first, stop)
            betas = _Stack.of(reversed(list(backward_messages(Sum(), self.bare, part, beyond))))
            beyond = Message(betas.log[:, 0], betas.scale[:, 0])
            doubtful |= self._nodes(found, grad, alphas, betas.until(last - first + 1), first)
            if any(self.wanted[1:]) and stop > first:
                doubtful |= self._edges(found, grad, alphas.until(stop - first), betas, first)
        return found, doubtful & (grad != 0)

    def _nodes(
        self, found: list[Tensor | None], grad: Tensor, alphas: _Stack, betas: _Stack, first: int
    ) -> Tensor:
        """Add the marginals of the steps to the gradient by the unaries."""
        both = alphas.log + betas.log
        total = log_sum(both, -1)
        steps = torch.arange(first, first + both.shape[1], device=both.device)
        there = steps < self.lengths.unsqueeze(-1)
        if found[0] is not None:
            weight = torch.where(there, grad.unsqueeze(-1), 0.0).to(both.dtype)
            safe = torch.where(torch.isfinite(total), total, 0.0).unsqueeze(-1)
            found[0][:, first : first + both.shape[1]] = torch.exp(both - safe) * weight.unsqueeze(
                -1
            )
        return self._disagree(total.double() + alphas.scale + betas.scale, there)

    def _edges(
        self, found: list[Tensor | None], grad: Tensor, alphas: _Stack, betas: _Stack, first: int
    ) -> Tensor:
        """Add what the edges give to the gradients by the tensors of the transitions."""
        count = alphas.log.shape[1]
        unaries = self.inputs[0].detach()
        right = unaries[:, first + 1 : first + 1 + count] + betas.log[:, 1:]
        edges = torch.arange(first + 1, first + 1 + count, device=right.device)
        there = edges < self.lengths.unsqueeze(-1)
        # what lies beyond the lengths may hold anything; it must not make 0 * inf below
        right = torch.where(there.unsqueeze(-1), right, 0.0)
        with torch.enable_grad():
            leaves = [
                t.detach().requires_grad_(w)
                for t, w in zip(self.inputs[1:], self.wanted[1:], strict=True)
            ]
            values, shifts = self.bare.with_tensors(leaves).bilinear(alphas.log, right, first=first)
            some = torch.where(there & (values > 0), grad.unsqueeze(-1), 0.0)
            weight = some / torch.where(values > 0, values, 1.0).detach()
            objective = (weight.to(values.dtype).detach() * values).sum()
            given = iter(
                torch.autograd.grad(
                    objective, [t for t in leaves if t.requires_grad], allow_unused=True
                )
            )
        for place, leaf in enumerate(leaves, start=1):
            part, total = next(given) if leaf.requires_grad else None, found[place]
            if part is not None and total is not None:
                total += part
        log = values.detach().log().double() + shifts + alphas.scale + betas.scale[:, 1:]
        return self._disagree(log, there)

    def _disagree(self, log: Tensor, there: Tensor) -> Tensor:
        """Elements [N] where log Z as it is seen from a step or an edge, [N, steps], is another."""
        eps = torch.finfo(self.inputs[0].dtype).eps
        tolerance = 10 * math.sqrt(eps) + 8 * eps * self.inputs[0].shape[1]
        far = ~((log - self.value.unsqueeze(-1)).abs() < tolerance)
        return (far & there).any(dim=-1)

    def rescued(
        self, found: list[Tensor | None], grad: Tensor, doubtful: Tensor
    ) -> list[Tensor | None]:
        """The gradients with those of the doubtful elements added, by `LogSum` in float64."""
        index = doubtful.nonzero().squeeze(-1)
        chosen = self.bare.selected(index).double()
        with torch.enable_grad():
            tensors = [self.inputs[0].detach()[index].double(), *chosen.tensors()]
            leaves = [
                t.detach().requires_grad_(w) for t, w in zip(tensors, self.wanted, strict=True)
            ]
            again = _recorded_gradient(
                chosen.with_tensors(leaves[1:]),
                self.lengths[index],
                leaves,
                grad[index],
                self.wanted,
            )
        whole: list[Tensor | None] = []
        for ours, theirs in zip(found, again, strict=True):
            if ours is not None and theirs is not None:
                theirs = theirs.detach().to(ours.dtype)
                # tensors without a batch of their own come back whole
                whole_batch = ours.shape == theirs.shape
                ours = ours + theirs if whole_batch else ours.index_add(0, index, theirs)
            whole.append(ours)
        return whole


class _Stack(NamedTuple):
    """Messages of successive steps: log [N, steps, X], scale [N, steps]."""

    log: Tensor
    scale: Tensor

    @classmethod
    def of(cls, messages: Iterable[Message]) -> _Stack:
        """In the order in which they come."""
        kept = list(messages)
        return cls(torch.stack([m.log for m in kept], 1), torch.stack([m.scale for m in kept], 1))

    def until(self, count: int) -> _Stack:
        """The first `count`."""
        return _Stack(self.log[:, :count], self.scale[:, :count])
