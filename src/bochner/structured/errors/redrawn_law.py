"""rho from redraws, for feature maps without a closed form: mixtures, clusters, sums, Sobol directions.

rho(e, f) - 1 ~ r mean_i z_i(e) z_i(f),     z_i(e) = K^_e / K_e - 1 in redraw i
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.structured.errors.edge_laws import EdgeLaw


class RedrawnLaw(EdgeLaw):
    """The law of any unbiased random map, estimated; `directions` are its projections.

    Error:      unbiased; relative standard deviation about sqrt(2 / count), and blind to tails that no
                redraw shows.
    Raises:     ValueError for a biased map, or one that draws nothing.
    Example:
        >>> from bochner import make
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = make("positive", dim=2, num_features=64, projection="sobol", generator=g)
        >>> x, y = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 0.5]])
        >>> law = RedrawnLaw(phi, count=200, generator=g)
        >>> bool(law.own_excess(x, y) < 0.5)            # iid: e^{1/2} - 1 = 0.65
        True
    """

    def __init__(self, feature_map: FeatureMap, *, count: int, generator: torch.Generator) -> None:
        if not feature_map.unbiased or not feature_map.num_projections:
            raise ValueError(
                f"feature_map {type(feature_map).__name__} (unbiased={feature_map.unbiased},"
                f" num_projections={feature_map.num_projections}) has no law over redraws: compare log Z"
                " with ExactChain instead, or use an unbiased random map."
            )
        self.directions = feature_map.num_projections
        self._maps = [copy.deepcopy(feature_map).resample_(generator) for _ in range(count)]

    def exponents(self, x: Tensor, y: Tensor) -> Tensor:
        """sqrt(r / count) z_i(e), [*e, count]."""
        shape = x.shape[:-1]
        x, y = x.detach().reshape(-1, x.shape[-1]), y.detach().reshape(-1, y.shape[-1])
        exact = self._maps[0].log_exact(x.double().unsqueeze(-2), y.double().unsqueeze(-2))
        found = []
        for phi in self._maps:
            left, right = phi.query(x), phi.key(y)
            products = (left.values * right.values).sum(-1).double()
            scale = (left.log_scale + right.log_scale).squeeze(-1).double()
            found.append(products * torch.exp(scale - exact.log_abs.flatten()) - 1.0)
        size = (self.directions / len(found)) ** 0.5
        return torch.stack(found, dim=-1).mul(size).reshape(*shape, -1)

    def excess(self, one: Tensor, other: Tensor) -> Tensor:
        """Inner products."""
        return one @ other.mT

    def own_excess(self, x: Tensor, y: Tensor) -> Tensor:
        """Of all pairs, redraw by redraw."""
        exact = self._maps[0].log_exact(x.detach().double(), y.detach().double()).log_abs
        total = torch.zeros_like(exact)
        for phi in self._maps:
            log_abs, sign = phi.log_estimate(x.detach(), y.detach())
            total += (sign * torch.exp(log_abs.double() - exact) - 1.0).square()
        return total * self.directions / len(self._maps)
