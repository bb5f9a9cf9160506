"""Independent rows: the baseline of every coupling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.projections.projection import Coupling, Projection, standard_normal


@dataclass(frozen=True)
class IID(Projection):
    """omega_1, ..., omega_r independent N(0, I_d).

    Reference:  Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007.
    Example:
        >>> IID().draw(3, 2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """Independent normal rows."""
        return standard_normal((*shape, num_projections, dim), generator)

    def coupling(self, num_projections: int, dim: int) -> Coupling:
        """No two rows are coupled."""
        return Coupling(share=0.0, cosine=0.0)
