"""Draws of a posterior as functions: evaluated anywhere, differentiable, a few kilobytes.

    f(x) = mean + phi(z)'w + sum_j k(z, c_j) v_j,        z = (x - offset) / lengthscale

By Matheron's rule, w is a draw of the prior's weights and v corrects it at the data:
f | y = f_p + k(., X) (k(X, X) + s I)^-1 (y - f_p(X) - e). Far from the data the prior is untouched, so that
the variance does not starve. Draws of the weights' own posterior have no v.

Reference:  Wilson et al., Efficiently Sampling Functions from Gaussian Process Posteriors, 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bochner.feature_map import FeatureMap
from bochner.kernels import Kernel
from bochner.validation import check_points


class PosteriorPaths(nn.Module):
    """S functions drawn from a posterior.

    Shapes:     weights [m, S]; centres [p, d] and coefficients [p, S], with p = 0 for draws of
                weights. `paths(x)`: x [*b, n, d] -> [*b, S, n]. `paths.each(x)`: x [S, n, d] ->
                [S, n], path i at points of its own.
    Numerics:   computed in float64; the result has the dtype of x.
    Cost:       O(n (m + p) (d + S)) time.
    Raises:     ValueError or TypeError for points of a wrong shape or dtype.
    Example:
        >>> import bochner
        >>> phi = bochner.make("trigonometric", dim=1, num_features=2, kernel="gaussian")
        >>> paths = PosteriorPaths(phi, torch.zeros(2, 3))   # three times the zero function
        >>> paths(torch.zeros(4, 1)).shape
        torch.Size([3, 4])
    """

    weights: Tensor
    centres: Tensor
    coefficients: Tensor
    offset: Tensor
    inverse_lengthscales: Tensor

    def __init__(
        self,
        feature_map: FeatureMap,
        weights: Tensor,
        *,
        centres: Tensor | None = None,
        coefficients: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.feature_map = feature_map
        dim, count = feature_map.dim, weights.shape[-1]
        centres = torch.zeros(0, dim) if centres is None else centres
        coefficients = torch.zeros(0, count) if coefficients is None else coefficients
        self.register_buffer("weights", weights.detach().double())
        self.register_buffer("centres", centres.detach().double())
        self.register_buffer("coefficients", coefficients.detach().double())
        self.register_buffer("offset", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("inverse_lengthscales", torch.ones(dim, dtype=torch.float64))
        self.mean = 0.0

    def in_units(
        self, *, offset: Tensor, inverse_lengthscales: Tensor, mean: float
    ) -> PosteriorPaths:
        """Self, from now on a function of points (x - offset) * inverse_lengthscales, plus a mean."""
        self.offset.copy_(offset)
        self.inverse_lengthscales.copy_(inverse_lengthscales)
        self.mean = float(mean)
        return self

    @property
    def kernel(self) -> Kernel:
        """The kernel that the prior's features estimate, exact in the correction."""
        return self.feature_map.kernel

    @property
    def num_paths(self) -> int:
        """S."""
        return self.weights.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """All paths at all points: [*b, n, d] -> [*b, S, n]."""
        phi, kernel = self._parts(x)
        values = phi @ self.weights + kernel @ self.coefficients
        return (self.mean + values).transpose(-1, -2).to(x.dtype)

    def each(self, x: Tensor) -> Tensor:
        """Path i at its own points x[..., i, :, :]: [*b, S, n, d] -> [*b, S, n]."""
        if x.ndim < 3 or x.shape[-3] != self.num_paths:
            raise ValueError(
                f"x has shape {list(x.shape)}; expected [*b, S={self.num_paths}, n,"
                f" d={self.feature_map.dim}], points for every path."
            )
        phi, kernel = self._parts(x)
        values = torch.einsum("...snm,ms->...sn", phi, self.weights)
        values = values + torch.einsum("...snp,ps->...sn", kernel, self.coefficients)
        return (self.mean + values).to(x.dtype)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """phi [*b, n, m] and k(z, centres) [*b, n, p], float64."""
        check_points("x", x, self.feature_map.dim)
        z = (x.double() - self.offset) * self.inverse_lengthscales
        return self.feature_map.query(z).materialise(), self.kernel(z, self.centres)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"num_paths={self.num_paths}, centres={len(self.centres)}, kernel={self.kernel!r}"
