"""What a feature map is: two functions whose inner product estimates a kernel, and their error."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bochner.features import Features, SignedLog, log_inner, value_products
from bochner.kernels import Kernel
from bochner.validation import check_batch, check_finite, check_points


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32 (logits in half precision are wrong)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Monomial(NamedTuple):
    """weight * the product of independently drawn estimators."""

    weight: float
    leaves: tuple[FeatureMap, ...]


class FeatureMap(nn.Module, ABC):
    """query(x) . key(y) estimates K(x, y).

    Shapes:     x [*b, n, d], y [*b, n', d]; a map made with batch_shape (one map per head) wants
                leading dimensions that broadcast with it.
    Dtypes:     any floating dtype comes in; features are float32 (float64 for float64 input), also
                under autocast.
    Raises:     ValueError or TypeError, naming the argument, for wrong shapes, dtypes, NaN.
    Subclasses: implement `_query`, `_key`, `log_exact`, `resample_` and the properties; see
                CONTRIBUTING, "Add a feature map".
    """

    kernel: Kernel
    dim: int
    num_features: int
    batch_shape: tuple[int, ...]

    # -- what subclasses give ---------------------------------------------------------------------
    @abstractmethod
    def _query(self, x: Tensor) -> Features:
        """Features of checked queries in the compute dtype."""

    @abstractmethod
    def _key(self, y: Tensor) -> Features:
        """Features of checked keys in the compute dtype."""

    @abstractmethod
    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """What E[estimate(x, y)] is, exactly, for all pairs [*b, n, n'] (float64 in, float64 out)."""

    @abstractmethod
    def resample_(self, generator: torch.Generator) -> FeatureMap:
        """Redraw all random directions in place and return self; fitted and learned parts stay."""

    @property
    @abstractmethod
    def positive(self) -> bool:
        """Whether all features, and so all estimates, are positive."""

    @property
    @abstractmethod
    def unbiased(self) -> bool:
        """Whether E[estimate] = exact over the random directions."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether query and key are one and the same function."""

    @property
    @abstractmethod
    def num_projections(self) -> int:
        """Random directions drawn; `num_features` counts the columns that a consumer pays for."""

    @abstractmethod
    def draws(self) -> list[Tensor]:
        """The random tensors of this map: maps that share one are dependent."""

    @property
    def changes_kernel(self) -> bool:
        """Whether the map estimates another kernel than `kernel`: trained, or in other coordinates."""
        return False

    def log_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the kernel that the map stands for, for all pairs [*b, n, n']: exact values that
        may take the place of estimates. Differentiable, in the dtype of x, also in what is trained.

        It is the kernel of the map's name: a biased map does not estimate it, but is meant to.
        """
        return self.kernel.log(x, y)

    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Var[estimate] / exact^2 for all pairs [*b, n, n'], float64; None where theory has none."""
        return None

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Cov[estimate_ij, estimate_ik] / (exact_ij exact_ik), [*b, n, n', n'], float64, or None.

        Directions are taken as independent: exact for iid projections; for coupled ones the
        coupling, which lowers the error, is left out.
        """
        return None

    # -- what closed forms of expressions ask (bochner.expressions) ----------------------------------
    def monomials(self) -> list[Monomial]:
        """This map as a sum of products of estimators; one estimator, unless it is an expression."""
        return [Monomial(1.0, (self,))]

    def unit_mean(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(log u, E[estimate] / u) for all pairs, u > 0 a unit in which this map's moments are
        moderate: |exact| unless the exact value can be 0."""
        log_abs, sign = self.log_exact(x, y)
        return log_abs, sign

    def covariance_with(
        self, other: FeatureMap, x: Tensor, y: Tensor, *, grid: bool
    ) -> Tensor | None:
        """Cov[this estimate, the other's] in the units of `unit_mean`, for dependent maps.

        Shapes:     of the same pair [*b, n, n'], or with grid of (i, j) and (i, k) [*b, n, n', n'];
                    float64; None where theory has none.
        """
        if other is not self:
            return None
        if not grid:
            return self.relative_variance(x, y)
        covariance = self.relative_covariance(x, y)
        if covariance is None:
            return None
        sign = self.log_exact(x, y).sign
        return covariance * sign.unsqueeze(-1) * sign.unsqueeze(-2)

    # -- what users call ---------------------------------------------------------------------------
    def query(self, x: Tensor) -> Features:
        """Features of queries: x [*b, n, d] -> Features [*b, n, m]."""
        return self._checked("queries", x, self._query)

    def key(self, y: Tensor) -> Features:
        """Features of keys: y [*b, n', d] -> Features [*b, n', m]."""
        return self._checked("keys", y, self._key)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Estimated kernel values for all pairs, [*b, n, n']; inf where they leave the dtype's range."""
        queries, keys = self.query(x), self.key(y)
        if self.positive:
            return log_inner(queries, keys).value()
        products = value_products(queries, keys)
        scale = queries.log_scale + keys.log_scale.transpose(-1, -2)
        # a product that underflowed stays 0, as in `log_estimate`, also where exp(scale) is inf
        lost = (products == 0) & (scale > math.log(torch.finfo(scale.dtype).max))
        return products * torch.exp(scale.masked_fill(lost, 0.0))

    def log_estimate(self, x: Tensor, y: Tensor) -> SignedLog:
        """The estimates as signed logarithms: of any size, never overflowing."""
        return log_inner(self.query(x), self.key(y))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The same as `estimate`."""
        return self.estimate(x, y)

    def _checked(self, name: str, x: Tensor, function: Callable[[Tensor], Features]) -> Features:
        check_points(name, x, self.dim)
        check_batch(name, x, self.batch_shape)
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x.to(compute_dtype(x))
            check_finite(name, x, x.square().sum(dim=-1))
            return function(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FeatureMap:
        """Move to a device; `.half()` and `.to(dtype)` reach parameters only.

        Directions and fitted matrices keep their dtype: rounded to half precision, A and A^-T would no
        longer be each other's inverse, and an exact transform would silently stop being exact.
        """
        buffers = {id(buffer): buffer for buffer in self.buffers()}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            cast = id(tensor) in buffers and moved.dtype != tensor.dtype
            return tensor.to(moved.device) if cast else moved

        return super()._apply(move, recurse)

    if TYPE_CHECKING:  # installed by bochner.algebra, which imports this file and not the reverse

        def __add__(self, other: FeatureMap | float) -> FeatureMap: ...
        def __radd__(self, other: float) -> FeatureMap: ...
        def __sub__(self, other: FeatureMap | float) -> FeatureMap: ...
        def __rsub__(self, other: float) -> FeatureMap: ...
        def __mul__(self, other: FeatureMap | float) -> FeatureMap: ...
        def __rmul__(self, other: float) -> FeatureMap: ...
        def __neg__(self) -> FeatureMap: ...

    def extra_repr(self) -> str:
        """Kernel, dimensions and the declared properties."""
        batch = f", batch_shape={self.batch_shape}" if self.batch_shape else ""
        return (
            f"kernel={self.kernel!r}, dim={self.dim}, num_features={self.num_features}{batch},"
            f" positive={self.positive}, unbiased={self.unbiased}"
        )
