"""What every feature map around another one shares."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap


class WrappedMap(FeatureMap):
    """A map that changes the points or the scale of `inner`, and leaves its draws to it."""

    def __init__(self, inner: FeatureMap) -> None:
        super().__init__()
        self.inner = inner
        self.kernel, self.dim = inner.kernel, inner.dim
        self.num_features, self.batch_shape = inner.num_features, inner.batch_shape

    def resample_(self, generator: torch.Generator) -> FeatureMap:
        """Redraw the inner map; what is fitted or learned stays."""
        self.inner.resample_(generator)
        return self

    @property
    def positive(self) -> bool:
        """As the inner map."""
        return self.inner.positive

    @property
    def unbiased(self) -> bool:
        """As the inner map."""
        return self.inner.unbiased

    @property
    def num_projections(self) -> int:
        """As the inner map."""
        return self.inner.num_projections

    def draws(self) -> list[Tensor]:
        """The inner map's."""
        return self.inner.draws()
