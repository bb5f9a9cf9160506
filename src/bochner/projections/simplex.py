"""Rows that point to the corners of a randomly rotated simplex."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.projections.orthogonal import block_share, blocks_of, haar_orthogonal
from bochner.projections.projection import Coupling, Projection, chi_norms


def simplex_directions(dim: int) -> Tensor:
    """d unit vectors in R^d with pairwise cosine -1/(d-1), float64 [d, d].

        s_i = (e_i - 1/d) / |e_i - 1/d|

    Example:
        >>> s = simplex_directions(3)
        >>> [round(float(c), 6) + 0.0 for c in s @ s[0]]
        [1.0, -0.5, -0.5]
    """
    if dim == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    corners = torch.eye(dim, dtype=torch.float64) - 1.0 / dim
    return corners / corners.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Simplex(Projection):
    """Rows repel each other as far as d directions can: pairwise cosine -1/(d-1) in a block.

    Error:      the lowest among couplings whose directions do not depend on the norms, for
                single-sided (positive) features; for even maps it equals orthogonal to O(1/d).
    Reference:  Reid, Choromanski, Likhosherstov and Weller, Simplex Random Features, 2023.
    Differs:    chi_d norms are drawn afresh for every block (the paper's code reuses one set).
    """

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """Rotated simplex blocks times chi norms."""
        blocks = -(-num_projections // dim)
        rotation = haar_orthogonal((*shape, blocks), dim, generator)
        corners = simplex_directions(dim).to(rotation.device)
        rows = blocks_of(corners @ rotation, num_projections)
        return rows * chi_norms((*shape, num_projections), dim, generator)

    def coupling(self, num_projections: int, dim: int) -> Coupling:
        """Cosine -1/(d-1) inside a block."""
        cosine = -1.0 / (dim - 1) if dim > 1 else 0.0
        return Coupling(share=block_share(num_projections, dim), cosine=cosine)
