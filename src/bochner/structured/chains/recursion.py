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
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bochner.structured.chains.scaled_products import scaled_log_partition
from bochner.structured.edges.transitions import Transitions, peaked
from bochner.structured.semirings import LogSum, Message, Semiring, Sum

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
        moved = semiring.weighted(moved, unaries[..., step, :])
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
        steps, sums, wanted = unaries.shape[-2], Sum(), any(ctx.needs_input_grad)
        fits = _SEGMENT_ELEMENTS // max(1, unaries[:, 0].numel())
        segment = max(math.isqrt(steps - 1) + 1, fits)
        starts: list[Message] = []
        latest: _Stack | None = None
        part = Part.whole(unaries.detach(), lengths)
        for step, message in enumerate(forward_messages(sums, bare, part)):
            at = step % segment
            if at == 0:
                starts.append(message)
                latest = _Stack.empty(message, min(segment, steps - step)) if wanted else None
            if latest is not None:
                latest.put(at, message)
        value = sums.total(message)
        lost = message.lost
        if lost is None:
            lost = torch.zeros_like(value, dtype=torch.bool)
        ctx.bare, ctx.kept = bare, _Kept(starts, latest, segment)
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
        task = _Task(ctx.bare, ctx.kept, lengths, inputs, value, wanted)
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


class _Kept(NamedTuple):
    """Messages forward that are not made again: the first of every segment, and all of the last one."""

    starts: list[Message]
    latest: _Stack | None  # None where no gradient is wanted
    segment: int


class _Task(NamedTuple):
    """What a backward pass knows: inputs are the unaries [N, T, X] and the tensors of the transitions."""

    bare: Transitions
    kept: _Kept
    lengths: Tensor
    inputs: list[Tensor]
    value: Tensor
    wanted: tuple[bool, ...]

    def gradient(self, grad: Tensor) -> tuple[list[Tensor | None], Tensor]:
        """The gradients, and in which elements [N] the two messages disagree about log Z."""
        unaries, *_ = (t.detach() for t in self.inputs)
        found: list[Tensor | None] = [
            torch.zeros_like(t) if w else None
            for t, w in zip(self.inputs[1:], self.wanted[1:], strict=True)
        ]
        found.insert(
            0, torch.empty_like(unaries) if self.wanted[0] else None
        )  # written step by step
        starts, segment = self.kept.starts, self.kept.segment
        # large, and new to the process each time they are asked for: used again by every segment
        ahead = _Stack.empty(starts[0], segment if len(starts) > 1 else 0)
        behind = _Stack.empty(starts[0], min(segment + 1, unaries.shape[1]))
        doubtful = torch.zeros_like(grad, dtype=torch.bool)
        beyond: Message | None = None
        for number in reversed(range(len(starts))):
            first = number * segment
            alphas = self._alphas(number, ahead)
            last = first + alphas.log.shape[1] - 1
            # beta of the step after the segment comes first, where there is one
            stop = last if beyond is None else last + 1
            part = Part(unaries, self.lengths, first, stop)
            betas = behind.until(stop - first + 1)
            for at, beta in enumerate(backward_messages(Sum(), self.bare, part, beyond)):
                betas.put(stop - first - at, beta)
            beyond = Message(beta.log, beta.scale)
            doubtful |= self._nodes(found, grad, alphas, betas.until(last - first + 1), first)
            if any(self.wanted[1:]) and stop > first:
                doubtful |= self._edges(found, grad, alphas.until(stop - first), betas, first)
        return found, doubtful & (grad != 0)

    def _alphas(self, number: int, room: _Stack) -> _Stack:
        """The messages forward of a segment, in the room for them where they are not kept."""
        starts, latest, segment = self.kept
        if number == len(starts) - 1 and latest is not None:
            return latest
        first = number * segment
        part = Part(self.inputs[0].detach(), self.lengths, first, first + segment - 1)
        messages = forward_messages(Sum(), self.bare, part, starts[number])
        for at, message in enumerate(messages):
            room.put(at, message)
        return room

    def _nodes(
        self, found: list[Tensor | None], grad: Tensor, alphas: _Stack, betas: _Stack, first: int
    ) -> Tensor:
        """Write the marginals of the steps to the gradient by the unaries."""
        stop = first + alphas.log.shape[1]
        there = torch.arange(first, stop, device=grad.device) < self.lengths.unsqueeze(-1)
        both = None if found[0] is None else found[0][:, first:stop]
        both = torch.add(alphas.log, betas.log, out=both)
        weights, top = peaked(both)
        total = weights.sum(-1)
        factor = torch.where(there & (total > 0), grad.unsqueeze(-1) / total, 0.0)
        weights *= factor.to(weights.dtype).unsqueeze(-1)  # where the gradient is wanted: in it
        log = (total.log() + top).double()
        return self._disagree(log + alphas.scale + betas.scale, there)

    def _edges(
        self, found: list[Tensor | None], grad: Tensor, alphas: _Stack, betas: _Stack, first: int
    ) -> Tensor:
        """Add what the edges give to the gradients by the tensors of the transitions. Uses betas up."""
        count = alphas.log.shape[1]
        unaries = self.inputs[0].detach()
        right = betas.log[:, 1:].add_(unaries[:, first + 1 : first + 1 + count])
        edges = torch.arange(first + 1, first + 1 + count, device=right.device)
        there = edges < self.lengths.unsqueeze(-1)
        # what lies beyond the lengths may hold anything; it must not make 0 * inf below
        if not bool(there.all()):
            right.masked_fill_(~there.unsqueeze(-1), 0.0)
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
    def empty(cls, like: Message, count: int) -> _Stack:
        """Room for so many messages."""
        batch, states = like.log.shape
        return cls(like.log.new_empty(batch, count, states), like.scale.new_empty(batch, count))

    def put(self, at: int, message: Message) -> None:
        """Fill one place."""
        self.log[:, at], self.scale[:, at] = message.log, message.scale

    def until(self, count: int) -> _Stack:
        """The first `count`."""
        return _Stack(self.log[:, :count], self.scale[:, :count])
