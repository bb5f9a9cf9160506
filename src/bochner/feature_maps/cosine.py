"""Cosines with random offsets: one column a direction, so that m features see m directions.

    phi(x) = exp(|x|^2/2) sqrt(2/m) cos(omega.x + b),   b ~ U[0, 2 pi)      (Gaussian: without the factor)

Error:      the relative variance of a cosine and a sine with m directions, plus 1 / (2 m K(x, y)^2): not
            exact at x = y, and far less accurate than `trigonometric` near it at equal m. Worth it where m/2
            directions are fewer than the data has columns and a linear model is fitted on top.
Reference:  Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007, algorithm 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.directional import DirectionalMap
from bochner.directions import Directions
from bochner.feature_map import FeatureMap
from bochner.features import Features
from bochner.kernels import ExponentialKernel, Gaussian
from bochner.nonlinearities import Trigonometric
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec


class CosineFeatures(DirectionalMap):
    """sqrt(2/m) cos(omega.x + b) with an offset for each direction.

    Shapes:     x [*b, n, d] -> values [*b, n, m], m = the number of directions.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = CosineFeatures(Request(dim=3, num_features=4096, kernel=Gaussian(), generator=g))
        >>> x, y = torch.zeros(1, 3), torch.full((1, 3), 0.4)
        >>> gap = float(phi.estimate(x, y) / phi.kernel(x, y) - 1)
        >>> abs(gap) < 3 * float(phi.relative_variance(x, y)) ** 0.5 < 0.1
        True
    """

    kernel: ExponentialKernel
    offsets: Tensor

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.kernel = ExponentialKernel.of(request.kernel, "CosineFeatures")
        self.directions = Directions(request, request.num_features)
        self.register_buffer("offsets", self._drawn(request.generator).to(request.dtype))

    def _drawn(self, generator: torch.Generator) -> Tensor:
        """b [*batch_shape, m] in float64."""
        shape = (*self.batch_shape, self.num_features)
        uniforms = torch.rand(
            shape, generator=generator, dtype=torch.float64, device=generator.device
        )
        return 2 * math.pi * uniforms

    @property
    def frequencies(self) -> Tensor | None:
        """omega [*batch_shape, r, d] where features are plain waves of the projections; None otherwise."""
        return self.omega if isinstance(self.kernel, Gaussian) else None

    def _query(self, x: Tensor) -> Features:
        projected = x @ self.omega.to(x.dtype).transpose(-1, -2)
        values = torch.cos(projected + self.offsets.to(x.dtype).unsqueeze(-2))
        half_norms = 0.5 * x.square().sum(dim=-1, keepdim=True)
        factor = self.kernel.log_point_factor(x)
        if factor is not None:  # the Gaussian's cancels exactly
            half_norms = half_norms + factor
        log_scale = half_norms + 0.5 * math.log(2 / self.num_features)  # sqrt(2/m)
        return Features(values, log_scale.expand(*values.shape[:-1], 1))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def resample_(self, generator: torch.Generator) -> CosineFeatures:
        """Redraw directions and offsets."""
        super().resample_(generator)
        self.offsets.copy_(self._drawn(generator))
        return self

    def draws(self) -> list[Tensor]:
        """omega and b."""
        return [self.omega, self.offsets]

    @property
    def positive(self) -> bool:
        """False."""
        return False

    @property
    def symmetric(self) -> bool:
        """True: one function for queries and keys."""
        return True

    # -- closed forms -------------------------------------------------------------------------------
    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """That of cos(omega.(x-y)), plus cos(omega.(x+y) + 2b) of mean 0: 1 / (2 m K^2) (theory 20)."""
        waves = self._waves().relative_variance(x, y)
        if waves is None:
            return None
        x, y = x.detach().double(), y.detach().double()
        return waves + 0.5 * torch.exp(-2.0 * Gaussian().log(x, y)) / self.num_features

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """As `relative_variance`, of (i, j) and (i, k): the offsets add K(y_j, y_k) / (2 m K_ij K_ik)."""
        waves = self._waves().relative_covariance(x, y)
        if waves is None:
            return None
        x, y = x.detach().double(), y.detach().double()
        log = Gaussian().log(x, y)
        logs = Gaussian().log(y, y).unsqueeze(-3) - log.unsqueeze(-1) - log.unsqueeze(-2)
        return waves + 0.5 * torch.exp(logs) / self.num_features

    def _waves(self) -> RandomFeatures:
        """A cosine and a sine of the same directions."""
        request = Request(
            dim=self.dim,
            num_features=2 * self.num_features,
            kernel=self.kernel,
            projection=self.projection,
            batch_shape=self.batch_shape,
        )
        return RandomFeatures(request, Trigonometric(), directions=self.directions)

    def extra_repr(self) -> str:
        """Coupling and properties."""
        return f"{self.projection!r}, {super().extra_repr()}"


def build(request: Request) -> FeatureMap:
    """Cosines with random offsets."""
    return CosineFeatures(request)


SPEC = FeatureMapSpec(
    name="cosine",
    summary="Cosines with random offsets, a direction for every column: for linear models where m < 2 d.",
    reference="Rahimi and Recht 2007, algorithm 1",
    build=build,
    positive=False,
)
