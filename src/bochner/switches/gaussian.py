"""Gaussian weights: large where two linear images of x and y are close."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features
from bochner.kernels import Gaussian
from bochner.nonlinearities import Trigonometric
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.switches.switch import Switch, check_rows
from bochner.validation import check_count

_FAR = 300.0  # squared distance from which the weight is 0 to double precision


class GaussianSwitch(Switch):
    """lambda = exp(-|Q x - R y|^2 / (2 lengthscale^2)) from n frequencies; Q = R = I unless given.

        lambda^ = 1/n sum_j cos( tau_j.(Q x - R y) / lengthscale )

    Shapes:     num_features = 2 n; query_matrix Q, key_matrix R [*batch, p, d], tau in R^p.
    Error:      Var = (1 - lambda^2)^2 / (2n) for independent frequencies, with the pair term of coupled
                ones (theory 2). An estimate can leave [0, 1], unlike a sign switch's.
    Arguments:  request: dim, kernel, projection, generator, batch_shape; its num_features is not used.
    Raises:     ValueError for a lengthscale that is not positive, or matrices that do not fit or hold
                NaN; TypeError for matrices that are not real.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> lam = GaussianSwitch(Request(dim=2, num_features=1, generator=g), num_frequencies=4)
        >>> x = torch.ones(1, 2)
        >>> float(lam.estimate(x, x))                              # exact at x = y
        1.0
    """

    query_matrix: Tensor | None
    key_matrix: Tensor | None

    def __init__(
        self,
        request: Request,
        lengthscale: float = 1.0,
        *,
        num_frequencies: int = 1,
        query_matrix: Tensor | None = None,
        key_matrix: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count("num_frequencies", num_frequencies)
        if not (math.isfinite(lengthscale) and lengthscale > 0):
            raise ValueError(f"lengthscale={lengthscale} must be positive and finite.")
        if (query_matrix is None) != (key_matrix is None):
            raise ValueError("give query_matrix and key_matrix both, or neither.")
        image = request.dim
        for name, matrix in (("query_matrix", query_matrix), ("key_matrix", key_matrix)):
            if matrix is not None:
                check_rows(name, matrix, request)
                image = matrix.shape[-2]
        if query_matrix is not None and query_matrix.shape[-2] != image:
            raise ValueError(
                f"query_matrix has {query_matrix.shape[-2]} rows and key_matrix {image};"
                " they must agree."
            )
        self.kernel, self.dim, self.batch_shape = request.kernel, request.dim, request.batch_shape
        self.lengthscale = float(lengthscale)
        projection = request.projection.antithetic_base or request.projection
        inner = replace(
            request,
            dim=image,
            num_features=2 * num_frequencies,
            kernel=Gaussian(),
            projection=projection,
        )
        self.inner = RandomFeatures(inner, Trigonometric())
        self.num_features = self.inner.num_features
        self.register_buffer("query_matrix", _stored(query_matrix))
        self.register_buffer("key_matrix", _stored(key_matrix))

    def _moved(self, x: Tensor, matrix: Tensor | None) -> Tensor:
        image = x if matrix is None else x @ matrix.to(x.dtype).transpose(-1, -2)
        return image / self.lengthscale

    def _query(self, x: Tensor) -> Features:
        return self.inner._query(self._moved(x, self.query_matrix))

    def _key(self, y: Tensor) -> Features:
        return self.inner._key(self._moved(y, self.key_matrix))

    def mean(self, x: Tensor, y: Tensor) -> Tensor:
        """The Gaussian kernel of the images, also under autocast in the dtype of x."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            moved = self._moved(x, self.query_matrix), self._moved(y, self.key_matrix)
            return Gaussian()(*moved)

    def _covariance(self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool) -> Tensor | None:
        """Of the same pair by the closed form of trigonometric features; of two pairs for independent
        frequencies."""
        if other is not self:
            return None
        a, b = self._moved(x, self.query_matrix), self._moved(y, self.key_matrix)
        count = self.inner.num_projections
        if not grid:
            relative = self.inner.relative_variance(a, b)
            if relative is None:
                return None
            squares = -2.0 * Gaussian().log(a, b)
            near = relative * torch.exp(-squares)
            return torch.where(squares < _FAR, near, torch.full_like(near, 0.5 / count))
        if self.inner.relative_covariance(a[..., :1, :], b[..., :1, :]) is None:
            return None
        differences = a.unsqueeze(-2) - b.unsqueeze(-3)  # [*b, n, n', p]
        mean = self.mean(x, y)
        plus, minus = (Gaussian()(differences, sign * differences) for sign in (1.0, -1.0))
        return (0.5 * (plus + minus) - mean.unsqueeze(-1) * mean.unsqueeze(-2)) / count

    def resample_(self, generator: torch.Generator) -> GaussianSwitch:
        """Redraw the frequencies."""
        self.inner.resample_(generator)
        return self

    @property
    def unbiased(self) -> bool:
        """As the projection."""
        return self.inner.unbiased

    @property
    def symmetric(self) -> bool:
        """Whether queries and keys are moved alike."""
        if self.query_matrix is None or self.key_matrix is None:
            return True
        return bool(torch.equal(self.query_matrix, self.key_matrix))

    @property
    def num_projections(self) -> int:
        """Frequencies."""
        return self.inner.num_projections

    def draws(self) -> list[Tensor]:
        """The frequencies."""
        return self.inner.draws()

    def extra_repr(self) -> str:
        """Lengthscale and frequencies."""
        return f"lengthscale={self.lengthscale:g}, num_frequencies={self.num_projections}"


def _stored(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.detach().double().clone()
