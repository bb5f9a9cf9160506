"""What every estimator of one kernel from one set of random directions shares."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.directions import Directions
from bochner.exponents import shared_covariance
from bochner.feature_map import FeatureMap
from bochner.features import SignedLog
from bochner.moments import coupled_pair
from bochner.projections import IID, Projection
from bochner.request import Request


class DirectionalMap(FeatureMap):
    """An estimator of `kernel` that averages over the rows of `directions`, its only randomness.

    Arguments:  request: kernel, sizes and batch; directions: drawn by the subclass, or another map's.
    """

    directions: Directions

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.kernel = request.kernel
        self.dim = request.dim
        self.num_features = request.num_features
        self.batch_shape = request.batch_shape

    @property
    def omega(self) -> Tensor:
        """The directions, [*batch_shape, r, d]."""
        return self.directions.omega

    @property
    def projection(self) -> Projection:
        """The coupling of the directions."""
        return self.directions.projection

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel itself."""
        return self.kernel.signed_log(x, y)

    def resample_(self, generator: torch.Generator) -> DirectionalMap:
        """Redraw the directions, for every map that shares them; what is fitted stays."""
        self.directions.resample_(generator)
        return self

    @property
    def unbiased(self) -> bool:
        """As the projection."""
        return self.projection.unbiased

    @property
    def num_projections(self) -> int:
        """Rows of omega."""
        return self.directions.count

    def draws(self) -> list[Tensor]:
        """omega."""
        return [self.omega]

    # -- closed forms -------------------------------------------------------------------------------
    @property
    def base_projection(self) -> Projection:
        """The projection whose rows are drawn, mirrored or not."""
        return self.projection.antithetic_base or self.projection

    def exponents(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool] | None:
        """(query points, key points, even) with s_ij = query_i + key_j, such that one estimate is
        K Re exp(omega.s - s.s/2) for standard normal omega, averaged over ±omega if even; or None."""
        return None

    def covariance_with(
        self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool
    ) -> Tensor | None:
        """With any estimator that has `exponents`, on the same independent directions (theory 8)."""
        if other is self or not isinstance(other, DirectionalMap):
            return super().covariance_with(other, x, y, grid=grid)
        same = self.directions is other.directions or torch.equal(self.omega, other.omega)
        if not (same and isinstance(self.base_projection, IID)):
            return None
        ours, theirs = self.exponents(x, y), other.exponents(x, y)
        if ours is None or theirs is None:
            return None
        count, _ = self.directions.independent
        even = ours[2] or theirs[2]
        return shared_covariance(*ours[:2], *theirs[:2], count=count, even=even, grid=grid)

    def with_coupling(
        self, variance: Tensor, queries: Tensor, keys: Tensor, *, oscillating: bool, even: bool
    ) -> Tensor:
        """The variance of independent rows, with the pair term of coupled ones added (theory 2).

        Shapes:     variance [*b, n, n'], queries [*b, n, d] and keys [*b, n', d], whose sums (differences
                    if oscillating) the pair term is about.
        """
        count, _ = self.directions.independent
        coupling = self.base_projection.coupling(count, self.dim)
        if coupling is None or not coupling.share:
            return variance.clamp_min(0.0)
        sign = -2.0 if oscillating else 2.0
        norms = queries.square().sum(-1).unsqueeze(-1) + keys.square().sum(-1).unsqueeze(-2)
        norms = (norms + sign * queries @ keys.transpose(-1, -2)).clamp(
            0.0, 1e3
        )  # inf from e^709 on
        pair = coupled_pair(norms, self.dim, coupling.cosine, oscillating=oscillating, even=even)
        coupled = variance + coupling.share * (pair - 1.0)
        return torch.where(torch.isinf(variance), variance, coupled).clamp_min(0.0)  # no inf - inf
