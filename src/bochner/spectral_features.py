"""Random Fourier features of kernels that are known by their spectrum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.features import Features, SignedLog
from bochner.kernels import SpectralKernel
from bochner.projections import IID, Projection
from bochner.request import Request


class SpectralFeatures(FeatureMap):
    """Cosines and sines of frequencies with the law of a kernel's spectrum (`SpectralKernel`).

        phi(x) = [cos(omega.x), sin(omega.x)] / sqrt(r),    omega = kernel.frequencies(g, u)

    g are the projection's standard normals, coupled as it couples them. The uniforms u, of which random
    scales are made, are independent for iid rows and stratified for coupled ones (one in each of r equal
    intervals, in random order); a row and its negative share theirs.

    Shapes:     x [*b, n, d] -> values [*b, n, 2 r], log_scale [*b, n, 1].
    Error:      unbiased (if the projection is), exact at x = y; relative variance
                ((1 + K(2 (x - y))) / (2 K(x - y)^2) - 1) / r for iid rows (docs/theory.md 20); coupled rows,
                which lower it, have no closed form here.
    Cost:       O(n d r) time, O(n m) memory.
    Raises:     TypeError for a kernel that is no `SpectralKernel`; ValueError for an odd number of features.
    Reference:  Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007; docs/theory.md 20.
    Example:
        >>> from bochner.kernels import Matern
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = SpectralFeatures(Request(dim=4, num_features=4096, kernel=Matern(1.5), generator=g))
        >>> x, y = torch.zeros(1, 4), torch.full((1, 4), 0.3)
        >>> gap = float(phi.estimate(x, y) / phi.kernel(x, y) - 1)
        >>> predicted = float(phi.relative_variance(x, y)) ** 0.5
        >>> abs(gap) < 3 * predicted < 0.1
        True
    """

    kernel: SpectralKernel
    omega: Tensor

    def __init__(self, request: Request) -> None:
        super().__init__()
        if not isinstance(request.kernel, SpectralKernel):
            raise TypeError(
                f"kernel={request.kernel!r} must be a SpectralKernel, such as Matern(1.5): its spectrum is"
                " what is drawn. Softmax() and Gaussian() have RandomFeatures."
            )
        self.kernel = request.kernel
        self.dim, self.num_features = request.dim, request.num_features
        self.batch_shape, self.projection = request.batch_shape, request.projection
        self._count = request.num_projections(2, "spectral features: a cosine and a sine")
        self.register_buffer("omega", self._drawn(request.generator).to(request.dtype))

    def _drawn(self, generator: torch.Generator) -> Tensor:
        """Frequencies [*batch_shape, r, d] in float64."""
        normals = self.projection.draw(
            self._count, self.dim, generator=generator, batch_shape=self.batch_shape
        )
        rows, copies = self._independent()
        uniforms = _uniforms((*self.batch_shape, rows), generator)
        if not isinstance(self._base, IID):
            order = torch.argsort(_uniforms((*self.batch_shape, rows), generator), dim=-1)
            uniforms = (order + uniforms) / rows
        return self.kernel.frequencies(normals, torch.cat((uniforms,) * copies, -1).unsqueeze(-1))

    @property
    def _base(self) -> Projection:
        """The projection whose rows are drawn, mirrored or not."""
        return self.projection.antithetic_base or self.projection

    def _independent(self) -> tuple[int, int]:
        """Rows up to sign, and how many there are of each."""
        copies = 1 if self.projection.antithetic_base is None else 2
        return self._count // copies, copies

    def _query(self, x: Tensor) -> Features:
        projected = x @ self.omega.to(x.dtype).transpose(-1, -2)
        values = torch.cat((torch.cos(projected), torch.sin(projected)), dim=-1)
        scale = values.new_full((1,), -0.5 * math.log(self._count))  # 1/sqrt(r)
        return Features(values, scale.expand(*values.shape[:-1], 1))

    def _key(self, y: Tensor) -> Features:
        return self._query(y)

    def log_exact(self, x: Tensor, y: Tensor) -> SignedLog:
        """The kernel's logarithm; the sign is 1."""
        return self.kernel.signed_log(x, y)

    def resample_(self, generator: torch.Generator) -> SpectralFeatures:
        """Redraw normals and scales."""
        self.omega.copy_(self._drawn(generator))
        return self

    @property
    def positive(self) -> bool:
        """False: cosines and sines."""
        return False

    @property
    def unbiased(self) -> bool:
        """As the projection."""
        return self.projection.unbiased

    @property
    def symmetric(self) -> bool:
        """True: one function for queries and keys."""
        return True

    @property
    def num_projections(self) -> int:
        """Rows of omega."""
        return self._count

    def draws(self) -> list[Tensor]:
        """omega."""
        return [self.omega]

    # -- closed forms -------------------------------------------------------------------------------
    def relative_variance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """docs/theory.md 20, for independent rows; None for coupled ones."""
        if not isinstance(self._base, IID):
            return None
        x, y = x.detach().double(), y.detach().double()
        logs = self.kernel.log(2.0 * x, 2.0 * y)
        log_moment = torch.logaddexp(logs, torch.zeros_like(logs)) - math.log(2.0)
        return (
            torch.expm1(log_moment - 2.0 * self.kernel.log(x, y)).clamp_min(0.0)
            / self._independent()[0]
        )

    def relative_covariance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """docs/theory.md 20; rows taken as independent."""
        if not self.unbiased:
            return None
        x, y = x.detach().double(), y.detach().double()
        gaps = x.unsqueeze(-2) - y.unsqueeze(-3)
        moment = torch.logaddexp(self.kernel.log(gaps, gaps), self.kernel.log(gaps, -gaps))
        logs = self.kernel.log(x, y)
        products = logs.unsqueeze(-1) + logs.unsqueeze(-2)
        return torch.expm1(moment - math.log(2.0) - products) / self._independent()[0]

    def extra_repr(self) -> str:
        """Projection and properties."""
        return f"{self.projection!r}, {super().extra_repr()}"


def _uniforms(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent uniforms in float64, the middles of the cells of a grid of step 2^-53 that holds 0."""
    device = generator.device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=device) + 2.0**-54
