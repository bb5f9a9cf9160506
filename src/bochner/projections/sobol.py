"""Randomised quasi-Monte-Carlo rows: scrambled Sobol points through the normal quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.projections.projection import Projection


@dataclass(frozen=True)
class Sobol(Projection):
    """omega_i = Phi^-1(u_i), u_1..u_r one scrambled Sobol sequence in [0, 1]^d.

    Error:      unbiased (the scramble makes every point uniform); no closed-form variance. Gains
                over iid shrink with d; use numbers of projections that are powers of two.
    Cost:       O(r d); every batch element is scrambled on its own.
    Raises:     ValueError if dim exceeds the 21,201 dimensions of the direction numbers.
    Reference:  Owen, Scrambled net variance, 1997; Yang et al., Quasi-Monte Carlo feature maps, 2014.
    """

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """Scrambled Sobol points, seeded from `generator`, mapped to normals."""
        if dim > torch.quasirandom.SobolEngine.MAXDIM:
            raise ValueError(
                f"dim={dim} exceeds the {torch.quasirandom.SobolEngine.MAXDIM} dimensions of Sobol"
                " sequences; use Orthogonal()."
            )
        count = math.prod(shape)
        seeds = torch.randint(0, 2**62, (count,), generator=generator, device=generator.device)
        points = torch.stack(
            [
                torch.quasirandom.SobolEngine(dim, scramble=True, seed=int(seed)).draw(
                    num_projections, dtype=torch.float64
                )
                for seed in seeds
            ]
        )
        # points lie on a grid of step 2^-30 that holds 0: move to the middle of each cell
        uniform = points + 2.0**-31
        return torch.special.ndtri(uniform).reshape(*shape, num_projections, dim).to(seeds.device)
