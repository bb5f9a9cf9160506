"""What a projection is: a law for r dependent standard normal vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.validation import check_count


@dataclass(frozen=True)
class Coupling:
    """Second-order law of the rows of one draw, all that a variance needs.

    share:      share of the ordered pairs (i, j), counted against r^2, that are coupled;
                the others (i = j left aside) are independent.
    cosine:     the angle that the coupled directions enclose, as its cosine; their norms are
                independent chi_d.
    """

    share: float
    cosine: float


class Projection(ABC):
    """Draws omega [*batch, r, d] whose rows are standard normal."""

    unbiased: bool = True
    """Whether every row is exactly N(0, I)."""

    @abstractmethod
    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """One float64 draw [*shape, num_projections, dim]; arguments are checked by `draw`."""

    def coupling(self, num_projections: int, dim: int) -> Coupling | None:
        """The dependence of the rows, or None where no closed form is known."""
        return None

    @property
    def antithetic_base(self) -> Projection | None:
        """The projection whose draws come twice, as +omega and -omega; None if this is not one."""
        return None

    def draw(
        self,
        num_projections: int,
        dim: int,
        *,
        generator: torch.Generator,
        batch_shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Draw omega.

        Shapes:     -> [*batch_shape, num_projections, dim]; every batch element is its own draw.
        Raises:     ValueError if num_projections or dim is not a positive integer.
        Cost:       O(r d) for iid; orthogonal and simplex add a QR of d x d per block of d rows.
        """
        check_count("num_projections", num_projections)
        check_count("dim", dim)
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator, got {type(generator).__name__};"
                " for example torch.Generator().manual_seed(0)."
            )
        return self.sample(tuple(batch_shape), num_projections, dim, generator).to(dtype)


def standard_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent N(0, 1) in float64 on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)


def chi_norms(shape: tuple[int, ...], dim: int, generator: torch.Generator) -> Tensor:
    """Independent chi_d lengths [*shape, 1]: norms of fresh Gaussian vectors."""
    return standard_normal((*shape, dim), generator).norm(dim=-1, keepdim=True)
