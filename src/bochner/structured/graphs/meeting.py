"""Messages of many nodes at once, and their products where they meet.

A product is a sum of logarithms. It is taken in float64, so that one message can be left out again
without a loss of accuracy, and it counts forbidden states (-inf) instead of subtracting them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.matrix import finite_maximum
from bochner.structured.semirings import Message, Semiring

Move = Callable[[Semiring, Message, int], Message]
"""`Transitions.forward` or `Transitions.backward`."""


def rows_of(message: Message, index: Tensor) -> Message:
    """Some of the messages [M, *b, X] along the first dimension."""
    lost = None if message.lost is None else message.lost[index]
    doubt = None if message.doubt is None else message.doubt[index]
    return Message(message.log[index], message.scale[index], lost, doubt)


def joined(messages: Sequence[Message]) -> Message:
    """Messages [M_k, *b, X] behind each other, [sum M_k, *b, X]."""
    lost = doubt = None
    if any(m.lost is not None for m in messages):
        lost = torch.cat(
            [
                torch.zeros_like(m.scale, dtype=torch.bool) if m.lost is None else m.lost
                for m in messages
            ]
        )
    if any(m.doubt is not None for m in messages):
        doubt = torch.cat(
            [
                torch.full_like(m.log.detach(), -math.inf) if m.doubt is None else m.doubt
                for m in messages
            ]
        )
    log, scale = torch.cat([m.log for m in messages]), torch.cat([m.scale for m in messages])
    return Message(log, scale, lost, doubt)


def along(
    move: Move, semiring: Semiring, message: Message, edges: Tensor, transitions: Transitions
) -> Message:
    """Messages [M, *b, X] along edges [M]: edges that share a block travel together."""
    if transitions.batch_shape:
        # a matrix for every element of the batch: side by side, it would be copied M times
        groups = [torch.tensor([at]) for at in range(len(edges))]
    else:
        blocks = edges % transitions.num_blocks
        groups = [(blocks == block).nonzero().squeeze(-1) for block in blocks.unique()]
    if len(groups) == 1:
        return move(semiring, message, int(edges[0]))
    moved = [move(semiring, rows_of(message, at), int(edges[at[0]])) for at in groups]
    return rows_of(joined(moved), torch.cat(groups).argsort())


class Meeting:
    """Messages [M, *b, X] that arrive at nodes [M] of `num_nodes`, to be multiplied there.

    Example:
        >>> two = Message(torch.tensor([[0.0, -1.0], [-2.0, 0.0]]), torch.zeros(2))
        >>> Meeting(two, torch.tensor([0, 0]), 1).all().log
        tensor([[-1.,  0.]])
    """

    def __init__(self, messages: Message, nodes: Tensor, num_nodes: int) -> None:
        nodes = nodes.to(messages.log.device)
        self._messages, self._nodes, self._num_nodes = messages, nodes, num_nodes
        self._known = _Sums(messages.log, nodes, num_nodes)
        upper = messages.doubt
        if upper is not None:
            upper = torch.maximum(upper, messages.log.detach())
        self._upper = None if upper is None else _Sums(upper, nodes, num_nodes)

    def all(self) -> Message:
        """The product of everything that arrives at each node, [num_nodes, *b, X]; 1 where nothing does."""
        given = self._messages
        return self._message(
            self._known.all(),
            None if self._upper is None else self._upper.all(),
            self._at_nodes(given.scale),
            None if given.lost is None else self._at_nodes(given.lost) > 0,
        )

    def others(self) -> Message:
        """For every message, the product of the others at its node, [M, *b, X]."""
        given = self._messages
        lost = None
        if given.lost is not None:
            lost = self._at_nodes(given.lost)[self._nodes] > given.lost.double()
        return self._message(
            self._known.others(),
            None if self._upper is None else self._upper.others(),
            self._at_nodes(given.scale)[self._nodes] - given.scale,
            lost,
        )

    def _at_nodes(self, values: Tensor) -> Tensor:
        return _added(values.double(), self._nodes, self._num_nodes)

    def _message(
        self, log: Tensor, upper: Tensor | None, scale: Tensor, lost: Tensor | None
    ) -> Message:
        """Back to the dtype of the messages, the largest logarithm moved into the scale."""
        dtype = self._messages.log.dtype
        top = finite_maximum(log, -1)
        doubt = None
        if upper is not None:
            doubt = (upper - top).masked_fill(upper <= log.detach(), -math.inf).to(dtype)
        return Message((log - top).to(dtype), scale + top.squeeze(-1), lost, doubt)


class _Sums:
    """Sums of logarithms at nodes: the finite part, and how many were -inf."""

    def __init__(self, logs: Tensor, nodes: Tensor, num_nodes: int) -> None:
        self._nodes = nodes
        self._gone = logs == -math.inf
        self._own = logs.masked_fill(self._gone, 0.0).double()
        self._finite = _added(self._own, nodes, num_nodes)
        self._count = _added(self._gone.to(torch.int32), nodes, num_nodes)

    def all(self) -> Tensor:
        return self._finite.masked_fill(self._count > 0, -math.inf)

    def others(self) -> Tensor:
        rest = self._finite[self._nodes] - self._own
        return rest.masked_fill(self._count[self._nodes] > self._gone.to(torch.int32), -math.inf)


def _added(values: Tensor, nodes: Tensor, num_nodes: int) -> Tensor:
    zeros = torch.zeros((num_nodes, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return zeros.index_add(0, nodes, values)
