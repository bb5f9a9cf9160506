"""Any transitions, read in dense blocks of rows: for sums that do not pass through features (`Max`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.matrix import Matrix
from bochner.structured.semirings import Message, Semiring

_ELEMENTS = 1 << 22  # of one dense block: 16 MB in float32


class Blockwise(Transitions):
    """The same weights, never factored: exact under every semiring.

    A maximum over paths does not distribute over the features' sum, so that the heaviest path needs
    every weight K(x, y) itself; a block of rows is made, used and dropped.

    Cost:       O(X^2 m) time an edge for low-rank transitions, O(X) memory.
    Example:
        >>> from bochner.structured import Dense, Max
        >>> two = Blockwise(Dense(torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])))
        >>> two.forward(Max(), Max().lift(torch.zeros(2)), 0).log
        tensor([2., 1.])
    """

    def __init__(self, transitions: Transitions) -> None:
        self._given = transitions
        self.num_states, self.num_blocks = transitions.num_states, transitions.num_blocks
        self.batch_shape = transitions.batch_shape

    def _blocks(self, edge: int, batch: torch.Size) -> Iterator[tuple[slice, Tensor]]:
        lead = torch.broadcast_shapes(batch, self.batch_shape).numel()
        for rows in row_slices(self.num_states, lead):
            yield rows, self._given.log_block(edge, rows)

    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """Row block by row block, added up."""
        message = semiring.settled(message)
        total: Message | None = None
        for rows, block in self._blocks(edge, message.log.shape[:-1]):
            part = replace(message, log=message.log[..., rows])
            moved = semiring.through(part, Matrix(block))
            total = moved if total is None else semiring.plus(total, moved)
        assert total is not None
        return total

    def backward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        """Row block by row block, side by side."""
        message = semiring.settled(message)
        parts = [
            semiring.through(message, Matrix(block.transpose(-1, -2)))
            for _, block in self._blocks(edge, message.log.shape[:-1])
        ]
        logs = [
            part.log + (part.scale - message.scale).to(part.log.dtype).unsqueeze(-1)
            for part in parts
        ]
        return replace(message, log=torch.cat(logs, dim=-1))

    def bilinear(self, left: Tensor, right: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """As the given transitions."""
        return self._given.bilinear(left, right, first=first)

    def log_potential(self, before: Tensor, after: Tensor) -> Tensor:
        """As the given transitions."""
        return self._given.log_potential(before, after)

    def log_block(self, edge: int, rows: slice) -> Tensor:
        """As the given transitions."""
        return self._given.log_block(edge, rows)

    def tensors(self) -> tuple[Tensor, ...]:
        """As the given transitions."""
        return self._given.tensors()

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """As the given transitions."""
        return type(self)(self._given.with_tensors(tensors))


def row_slices(num_states: int, batch: int) -> list[slice]:
    """Rows of a dense block [batch, rows, num_states] of a few megabytes."""
    step = max(1, _ELEMENTS // max(1, batch * num_states))
    return [slice(at, min(at + step, num_states)) for at in range(0, num_states, step)]
