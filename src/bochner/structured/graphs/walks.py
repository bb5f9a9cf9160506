"""How one state follows another, given what the rest of a graph says: drawn, or the heaviest."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bochner.structured.draws import draw
from bochner.structured.edges.transitions import Transitions

_ELEMENTS = 1 << 22  # of rows of K that are laid out at once


class Choice(ABC):
    """A rule that picks one of many, by their log-weights."""

    @abstractmethod
    def among(self, log_weights: Tensor, group: Tensor) -> Tensor:
        """For every entry of group [k] one column of that row of log_weights [g, n]: [k]."""

    @abstractmethod
    def after(
        self, transitions: Transitions, edge: int, before: Tensor, log_weights: Tensor
    ) -> Tensor:
        """States y by log K_edge(before, y) + log_weights(y): [C, N], [N, X] of a flat batch -> [C, N]."""


class Drawn(Choice):
    """In proportion to the weight."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def among(self, log_weights: Tensor, group: Tensor) -> Tensor:
        """Categorical draws."""
        return draw(log_weights, group, generator=self._generator)

    def after(
        self, transitions: Transitions, edge: int, before: Tensor, log_weights: Tensor
    ) -> Tensor:
        """As the transitions draw: through the hidden index, where they have one."""
        return transitions.draw(edge, before, log_weights, generator=self._generator)


class Heaviest(Choice):
    """The largest weight, the first of several."""

    def among(self, log_weights: Tensor, group: Tensor) -> Tensor:
        """The largest of every row."""
        return log_weights.argmax(dim=-1)[group]

    def after(
        self, transitions: Transitions, edge: int, before: Tensor, log_weights: Tensor
    ) -> Tensor:
        """The largest of a row of K and the weights together."""
        elements = torch.arange(before.shape[1], device=before.device).expand(before.shape)
        step = max(1, _ELEMENTS // log_weights.shape[-1])
        parts = [
            (transitions.log_rows(edge, states, at) + log_weights[at]).argmax(dim=-1)
            for states, at in zip(
                before.reshape(-1).split(step), elements.reshape(-1).split(step), strict=True
            )
        ]
        return torch.cat(parts).reshape(before.shape)
