"""Structured orthogonal rows H D3 H D2 H D1 with chi norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.projections.orthogonal import blocks_of
from bochner.projections.projection import Projection, chi_norms


def hadamard_transform(x: Tensor) -> Tensor:
    """Fast Walsh-Hadamard transform along the last dimension (a power of two), normalised to be orthogonal.

    Cost:       O(p log p) per vector.
    Example:
        >>> hadamard_transform(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    size = x.shape[-1]
    width = 1
    while width < size:
        pairs = x.unflatten(-1, (-1, 2, width))
        x = torch.stack((pairs.sum(-2), pairs[..., 0, :] - pairs[..., 1, :]), dim=-2).flatten(-3)
        width *= 2
    return x / size**0.5


@dataclass(frozen=True)
class Hadamard(Projection):
    """Orthogonal rows built from three random sign flips and Hadamard transforms.

    Error:      close to orthogonal. Rows are only nearly isotropic, so estimates carry a small bias
                that vanishes with d: `unbiased` is False. Chi norms, not the fixed sqrt(d) of the
                original: fixed norms are biased by exp(-|x+y|^4/(4(d+2))).
    Cost:       O(r log d) random signs instead of a QR; d is padded to a power of two.
    Reference:  Yu et al., Orthogonal Random Features, 2016 (SORF); Choromanski et al., 2017 (HD3).
    """

    unbiased = False

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """Blocks of H D3 H D2 H D1, cut to `dim` columns, times chi norms of the padded size."""
        padded = 1 << max(dim - 1, 0).bit_length()
        blocks = -(-num_projections // padded)
        rows = torch.eye(padded, dtype=torch.float64, device=generator.device)
        rows = rows.expand(*shape, blocks, padded, padded)
        for _ in range(3):
            signs = torch.randint(
                0, 2, (*shape, blocks, 1, padded), generator=generator, device=generator.device
            )
            rows = hadamard_transform(rows * (2.0 * signs - 1.0))
        rows = blocks_of(rows, num_projections)[..., :dim]
        return rows * chi_norms((*shape, num_projections), padded, generator)
