"""Rows that come in pairs +omega, -omega."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.projections.projection import Projection


@dataclass(frozen=True)
class Antithetic(Projection):
    """[omega; -omega] with omega from `base`: cancels the odd part of whatever is estimated.

    Even maps (trigonometric, hyperbolic) see each direction twice and gain nothing from it.

    Raises:     ValueError for an odd number of projections.
    Reference:  Hammersley and Morton, 1956; for positive features it is the hyperbolic estimator.
    """

    base: Projection

    def __post_init__(self) -> None:
        if not isinstance(self.base, Projection):
            raise TypeError(f"base must be a Projection, got {type(self.base).__name__}.")
        if isinstance(self.base, Antithetic):
            raise ValueError("base is antithetic already; pairs of pairs repeat each direction.")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """As the base."""
        return self.base.unbiased

    @property
    def antithetic_base(self) -> Projection:
        """The projection that is drawn and mirrored."""
        return self.base

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """Half a draw of the base, then its negative."""
        if num_projections % 2:
            even = f"{num_projections - 1} or {num_projections + 1}" if num_projections > 1 else "2"
            raise ValueError(
                f"num_projections={num_projections} must be even for antithetic pairs; use {even}."
            )
        half = self.base.sample(shape, num_projections // 2, dim, generator)
        return torch.cat((half, -half), dim=-2)
