"""What is under test: a specification with a projection and a kernel, built afresh on demand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.kernels import Kernel
from bochner.projections import Projection
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.testing.plan import calibration

FEWEST_HASHES = 16


@dataclass(frozen=True)
class Subject:
    """A specification, a projection and a kernel."""

    spec: FeatureMapSpec
    projection: Projection
    kernel: Kernel
    seed: int

    def budget(self, num_features: int) -> int:
        """num_features, rounded up to a multiple of the smallest budget that works; at least 16 draws of a
        map without projection (two maps of one hash each often agree by chance)."""
        step = self.spec.smallest_budget(self.projection)
        least = num_features if self.spec.projected else max(num_features, FEWEST_HASHES * step)
        return -(-least // step) * step

    def unfitted(
        self,
        dim: int,
        num_features: int,
        *,
        batch_shape: tuple[int, ...] = (),
        draw: int = 0,
    ) -> FeatureMap:
        """The map as its specification builds it, in float64; `draw` numbers the random draws."""
        return self.spec.build(
            Request(
                dim=dim,
                num_features=self.budget(num_features),
                kernel=self.kernel,
                projection=self.projection,
                batch_shape=batch_shape,
                generator=self.generator(draw),
                dtype=torch.float64,
            )
        )

    def build(
        self,
        dim: int,
        num_features: int,
        *,
        batch_shape: tuple[int, ...] = (),
        draw: int = 0,
        data: int = 0,
    ) -> FeatureMap:
        """A usable map: fitted to the calibration data number `data` if the specification wants it."""
        feature_map = self.unfitted(dim, num_features, batch_shape=batch_shape, draw=draw)
        if not self.spec.needs_data:
            return feature_map
        queries, keys = (
            x.expand(*batch_shape, *x.shape) for x in calibration(dim, self.seed + data)
        )
        fitted: FeatureMap = feature_map.fit(queries, keys)  # type: ignore[operator]
        return fitted

    def fitted(self, dim: int, num_features: int, data: tuple[Tensor, Tensor]) -> FeatureMap:
        """A map fitted to these queries and keys, if the specification wants any."""
        feature_map = self.unfitted(dim, num_features)
        if not self.spec.needs_data:
            return feature_map
        fitted: FeatureMap = feature_map.fit(*data)  # type: ignore[operator]
        return fitted

    def generator(self, draw: int = 0) -> torch.Generator:
        """The generator of draw number `draw`."""
        return torch.Generator().manual_seed(self.seed + 7919 * (draw + 1))

    def __str__(self) -> str:
        return f"{self.spec.name} with {self.projection!r}, kernel {self.kernel!r}"


def ratios(feature_map: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """estimate / exact for all pairs of a grid, [*b, n, n']."""
    exact = feature_map.log_exact(x, y).value()
    return feature_map.estimate(x, y) / exact
