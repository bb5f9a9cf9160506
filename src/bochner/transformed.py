"""A feature map in other coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.kernels import ExponentialKernel, Gaussian
from bochner.transforms import Transform, Transformed
from bochner.wrapped import WrappedMap


class TransformedFeatures(WrappedMap):
    """`inner` applied to transformed points, log-factors put back: exact transforms stay exact.

    For the Gaussian kernel an exact transform T of exp(x.y) also moves the norms, hence the factor
    exp((|Tx|^2 - |x|^2)/2) on either side.

    Error:      that of `inner` at the transformed points.
    Raises:     ValueError if the transform's output dimension is not inner.dim, or if an exact transform of
                exp(x.y) meets a kernel that is no factor of it.
    Example:
        >>> import bochner, torch
        >>> from bochner.transforms import Lengthscale
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = bochner.make("trigonometric", dim=2, num_features=8, kernel="gaussian", generator=g)
        >>> wide = TransformedFeatures(phi, Lengthscale(3.0, dim=2))
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> round(float(wide.estimate(x, x)), 4)            # x = y: trigonometric features are exact
        1.0
    """

    def __init__(self, inner: FeatureMap, transform: Transform) -> None:
        super().__init__(inner)
        if transform.output_dim != inner.dim:
            raise ValueError(
                f"transform gives dimension {transform.output_dim}; the inner map has dim={inner.dim}."
            )
        if transform.exact:  # an identity of exp(x.y)
            ExponentialKernel.of(inner.kernel, type(transform).__name__)
        self.transform = transform
        self.dim = transform.input_dim

    def _with_kernel(self, x: Tensor, moved: Transformed) -> Transformed:
        """The log-factor for this kernel (see the class docstring)."""
        points, factor = moved
        if not (self.transform.exact and isinstance(self.kernel, Gaussian)):
            return moved
        norms = 0.5 * (points.square().sum(-1, keepdim=True) - x.square().sum(-1, keepdim=True))
        return Transformed(points, norms if factor is None else factor + norms)

    def _query(self, x: Tensor) -> Features:
        points, factor = self._with_kernel(x, self.transform.queries(x))
        features = self.inner._query(points)
        return features if factor is None else features.scaled(factor)

    def _key(self, y: Tensor) -> Features:
        points, factor = self._with_kernel(y, self.transform.keys(y))
        features = self.inner._key(points)
        return features if factor is None else features.scaled(factor)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The inner map's exact value at the transformed points, log-factors put back."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            new_x, factor_x = self._with_kernel(x, self.transform.queries(x))
            new_y, factor_y = self._with_kernel(y, self.transform.keys(y))
        log_abs, sign = self.inner.log_exact(new_x, new_y)
        if factor_x is not None:
            log_abs = log_abs + factor_x
        if factor_y is not None:
            log_abs = log_abs + factor_y.transpose(-1, -2)
        return SignedLog(log_abs, sign)

    @property
    def changes_kernel(self) -> bool:
        """Unless the transform is exact and the inner map changes nothing."""
        return self.inner.changes_kernel or not self.transform.exact

    def log_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel of these points if it is unchanged, else the inner map's of the moved points."""
        if not self.changes_kernel:
            return self.kernel.log(x, y)
        new_x, factor_x = self._with_kernel(x, self.transform.queries(x))
        new_y, factor_y = self._with_kernel(y, self.transform.keys(y))
        log = self.inner.log_kernel(new_x, new_y)
        log = log if factor_x is None else log + factor_x
        return log if factor_y is None else log + factor_y.transpose(-1, -2)

    @property
    def symmetric(self) -> bool:
        """Inner map and transform both."""
        return self.inner.symmetric and self.transform.symmetric

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The inner map's, at the transformed points."""
        return self.inner.relative_variance(*self._moved(x, y))

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The inner map's, at the transformed points."""
        return self.inner.relative_covariance(*self._moved(x, y))

    def _moved(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x.detach().double(), y.detach().double()
        return self.transform.queries(x).points.detach(), self.transform.keys(y).points.detach()
