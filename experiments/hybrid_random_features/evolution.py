"""An evolution strategy: antithetic perturbations, centred ranks, Adam.

    gradient = sum_i (rank(+i) - rank(-i)) noise_i / (pairs * sigma),   ranks in [-1/2, 1/2]

Reference:  Salimans et al., Evolution Strategies as a Scalable Alternative to Reinforcement Learning,
            2017.
"""

from __future__ import annotations

import torch
from torch import Tensor


class EvolutionStrategy:
    """Ascends E[fitness(centre + sigma noise)]; `ask`, evaluate, `tell`, again.

    Arguments:  centre [num_parameters]; pairs: of mirrored perturbations; generator: of the noise.
    """

    def __init__(
        self,
        centre: Tensor,
        *,
        pairs: int,
        sigma: float,
        rate: float,
        generator: torch.Generator,
    ) -> None:
        self.centre = centre.clone()
        self.pairs, self.sigma, self._generator = pairs, sigma, generator
        self._optimiser = torch.optim.Adam([self.centre], lr=rate, betas=(0.9, 0.99))
        self._noise: Tensor | None = None

    def ask(self) -> Tensor:
        """[2 pairs, num_parameters]: all with +noise, then all with -noise."""
        self._noise = torch.randn(self.pairs, len(self.centre), generator=self._generator)
        return self.centre + self.sigma * torch.cat((self._noise, -self._noise))

    def tell(self, fitness: Tensor) -> None:
        """Move the centre by the fitness [2 pairs] of what `ask` gave; larger is better.

        Raises:     ValueError for a fitness that is not finite or was not asked for.
        """
        if self._noise is None or fitness.shape != (2 * self.pairs,):
            raise ValueError(f"fitness has shape {list(fitness.shape)}; expected the last `ask`'s.")
        if not bool(torch.isfinite(fitness).all()):
            raise ValueError("fitness is not finite.")
        up, down = centred_ranks(fitness).split(self.pairs)
        self.centre.grad = -((up - down) @ self._noise) / (self.pairs * self.sigma)
        self._optimiser.step()
        self._noise = None


def centred_ranks(fitness: Tensor) -> Tensor:
    """-1/2 for the smallest to 1/2 for the largest, evenly spaced."""
    return fitness.argsort().argsort().float() / (len(fitness) - 1) - 0.5
