"""Segments of a semi-Markov chain, one after another: a label, how long it lasts, the next label."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.graphs.semi_markov_recursion import Backwards, Weights
from bochner.structured.graphs.walks import Choice


class SegmentWalk:
    """Segments chosen from the first on, given what the messages from the end say."""

    def __init__(
        self, choice: Choice, transitions: Transitions, weights: Weights, back: Backwards
    ) -> None:
        self._choice, self._transitions = choice, transitions
        self._weights, self._back = weights, back

    def all(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` walks for each of N elements: labels, begins [T, count, N]."""
        batch, steps, _ = self._weights.unaries.shape
        label = self._weights.lengths.new_zeros(count, batch)
        until = torch.zeros_like(label)  # where the current segment ends
        labels, begins = [], []
        for step in range(steps):
            opens = (until == step) & (step < self._weights.lengths)
            if bool(opens.any()):
                label = torch.where(opens, self._labels(step, label, opens), label)
                until = torch.where(opens, step + self._lasting(step, label), until)
            there = step < self._weights.lengths
            labels.append(torch.where(there, label, 0))
            begins.append(opens)
        return torch.stack(labels), torch.stack(begins)

    def _labels(self, step: int, before: Tensor, opens: Tensor) -> Tensor:
        """Labels [C, N] of segments that begin at `step`, where one does."""
        head = _possible(self._back.heads[step].log)
        if step == 0:
            element = torch.arange(before.shape[1], device=before.device).expand(before.shape)
            return self._choice.among(head, element.reshape(-1)).reshape(before.shape)
        before = torch.where(opens, before, 0)  # of the others nothing is used: one state will do
        return self._choice.after(self._transitions, step - 1, before, head)

    def _lasting(self, step: int, label: Tensor) -> Tensor:
        """Durations [C, N] of segments of the given labels that begin at `step`."""
        tails = self._back.tails[step + 1 : step + 1 + self._weights.longest]
        scales = torch.stack([t.scale for t in tails], dim=-1)  # [N, k]
        weight = torch.stack([t.log for t in tails], dim=1) + self._weights.after(step)
        wide = label.T.unsqueeze(1).expand(-1, len(tails), -1)  # [N, k, C]
        log = weight.gather(-1, wide).double() + scales.unsqueeze(-1)
        rows = _possible(log.movedim(-1, 0)).reshape(-1, len(tails))  # [C N, k]
        return (
            self._choice.among(rows, torch.arange(len(rows), device=rows.device)).reshape(
                label.shape
            )
            + 1
        )


def _possible(log_weights: Tensor) -> Tensor:
    """Equal weights where all are 0: where nothing is possible, no walk asks."""
    some = log_weights.amax(dim=-1, keepdim=True) > -torch.inf
    return torch.where(some, log_weights, 0.0)
