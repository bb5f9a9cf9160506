"""Maps that need to see data first: `.fit(queries, keys)` returns a new, frozen, usable map."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.nonlinearities import Positive
from bochner.proposals import Proposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.statistics import check_leading
from bochner.transformed import TransformedFeatures
from bochner.transforms import Transform
from bochner.validation import NotFittedError, check_points

Recipe = Callable[[Request, Tensor, Tensor], FeatureMap]
"""(request, queries, keys) -> fitted map."""


class UnfittedMap(FeatureMap):
    """A data-aware map before its data: everything but `fit` raises NotFittedError.

    Example:
        >>> import bochner
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("gerf", dim=2, num_features=8, generator=g)
        >>> q = torch.randn(16, 2, generator=g)
        >>> phi.fit(q, q).estimate(q, q).shape
        torch.Size([16, 16])
    """

    def __init__(
        self,
        name: str,
        request: Request,
        recipe: Recipe,
        *,
        positive: bool = True,
        num_projections: int | None = None,
        unbiased: bool | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.request = request
        self.recipe = recipe
        self.kernel = request.kernel
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape = request.batch_shape
        self._positive = positive
        self._unbiased = request.projection.unbiased if unbiased is None else unbiased
        self._num_projections = request.num_features if num_projections is None else num_projections

    def fit(self, queries: Tensor, keys: Tensor) -> FeatureMap:
        """Fit to calibration data; the random directions are drawn here, once.

        Shapes:     queries [*b, *batch_shape, n, d], keys [*b, *batch_shape, n', d]: statistics are
                    per element of batch_shape and pool every other leading dimension.
        Raises:     ValueError for wrong shapes or NaN.
        """
        for name, x in (("queries", queries), ("keys", keys)):
            check_points(name, x, self.dim)
            check_leading(name, x, self.batch_shape)
        if queries.shape[:-2] != keys.shape[:-2]:
            raise ValueError(
                f"queries and keys have leading dimensions {list(queries.shape[:-2])} and"
                f" {list(keys.shape[:-2])}; calibration data want the same (repeat keys for grouped"
                " queries)."
            )
        with torch.autocast(device_type=queries.device.type, enabled=False):
            return self.recipe(self.request, queries.detach(), keys.detach())

    def _refuse(self) -> NoReturn:
        raise NotFittedError(
            f"feature map {self.name!r} is data-aware and has seen no data;"
            " call phi = phi.fit(queries, keys) on calibration queries and keys first."
        )

    def query(self, x: Tensor) -> Features:
        """Raises NotFittedError."""
        self._refuse()

    def key(self, y: Tensor) -> Features:
        """Raises NotFittedError."""
        self._refuse()

    def _query(self, x: Tensor) -> Features:
        self._refuse()

    def _key(self, y: Tensor) -> Features:
        self._refuse()

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """Raises NotFittedError."""
        self._refuse()

    def resample_(self, generator: torch.Generator) -> FeatureMap:
        """Raises NotFittedError."""
        self._refuse()

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Raises NotFittedError."""
        self._refuse()

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Raises NotFittedError."""
        self._refuse()

    def draws(self) -> list[Tensor]:
        """Raises NotFittedError."""
        self._refuse()

    @property
    def positive(self) -> bool:
        """What the fitted map will be."""
        return self._positive

    @property
    def unbiased(self) -> bool:
        """What the fitted map will be: as the projection asked for, unless the map says otherwise."""
        return self._unbiased

    @property
    def symmetric(self) -> bool:
        """False until fitted."""
        return False

    @property
    def num_projections(self) -> int:
        """Directions that will be drawn."""
        return self._num_projections


def positive_features(
    request: Request, proposal: Proposal, transform: Transform | None = None
) -> FeatureMap:
    """Positive features from a proposal, in other coordinates if a transform is given."""
    inner = RandomFeatures(request, Positive(), proposal)
    return inner if transform is None else TransformedFeatures(inner, transform)
