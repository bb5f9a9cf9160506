"""Stationary kernels that are known by their spectrum: K(x, y) = E cos(omega . (x - y)).

Their spectra are Gaussians of random scale, omega_l = sqrt(s_l) g_l with g ~ N(0, I) and s independent of it:

    K(x, y) = E_s exp(-sum_l s_l (x_l - y_l)^2 / 2)

One scale for all coordinates makes an isotropic kernel (Matern, rational quadratic), one for each a product
over coordinates (Laplacian). Any coupling of the normals is a coupling of these frequencies.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from fractions import Fraction

import numpy as np
import scipy.special
import torch
from torch import Tensor

from bochner.kernels.kernel import Kernel

SMOOTHNESS = (0.25, 50.0)
"""Of a Matern kernel: frequencies of rougher ones leave the range of float32, Bessel functions of smoother
ones that of float64."""


class SpectralKernel(Kernel):
    """A stationary kernel, 1 at x = y, whose frequencies are a function of normals and uniforms."""

    @abstractmethod
    def frequencies(self, normals: Tensor, uniforms: Tensor) -> Tensor:
        """omega with the law of the spectrum, [*b, r, d], float64.

        Shapes:     normals [*b, r, d], rows N(0, I); uniforms [*b, r, 1] in (0, 1), independent of them.
        """


def _single_or_double(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision as float32: distances in it are wrong."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return (x.float(), y.float()) if half else (x, y)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j| for all pairs, without the cancellation of |x|^2 + |y|^2 - 2 x.y."""
    x, y = _single_or_double(x, y)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


class Matern(SpectralKernel):
    """K = 2^(1-nu) / Gamma(nu) z^nu K_nu(z), z = sqrt(2 nu) |x - y|: nu - 1/2 derivatives, about.

        nu = 1/2:  exp(-z)         3/2:  (1 + z) exp(-z)         5/2:  (1 + z + z^2/3) exp(-z)

    Spectrum:   multivariate t with 2 nu degrees of freedom, s = nu / Gamma(nu, 1): one scale for all
                coordinates. Independent t coordinates are another kernel, and so is nu instead of 2 nu.
    Numerics:   a polynomial for nu = 1/2, 3/2, ...; else scipy's Bessel function, on the CPU in float64,
                with one derivative.
    Raises:     ValueError unless 1/4 <= nu <= 50; the limit nu -> inf is `Gaussian`.
    Reference:  Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. (4.14) to (4.17).
    Example:
        >>> float(Matern(1.5)(torch.zeros(1, 1), torch.ones(1, 1)))          # (1 + sqrt 3) exp(-sqrt 3)
        0.48335...
    """

    def __init__(self, nu: float = 1.5) -> None:
        low, high = SMOOTHNESS
        if not low <= nu <= high:
            raise ValueError(
                f"nu={nu!r} of a Matern kernel must be between {low:g} and {high:g}; for smoother functions"
                " use Gaussian(), the limit nu -> inf."
            )
        self.nu = float(nu)

    @property
    def name(self) -> str:  # type: ignore[override]
        """matern-1/2, matern-3/2, ...; matern-0.8 where twice nu is no integer."""
        twice = Fraction(self.nu) * 2
        return f"matern-{Fraction(self.nu)}" if twice.denominator == 1 else f"matern-{self.nu:g}"

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm for all pairs, never above 0 but for rounding."""
        z = math.sqrt(2.0 * self.nu) * _distances(x, y)
        order = self.nu - 0.5
        if order != int(order) or order > 20:
            return _LogBessel.apply(z, self.nu)
        return torch.log(_half_integer_polynomial(z, int(order))) - z

    def frequencies(self, normals: Tensor, uniforms: Tensor) -> Tensor:
        """g / sqrt(Gamma(nu, 1) / nu), the gamma variable by its quantiles."""
        gammas = torch.from_numpy(scipy.special.gammaincinv(self.nu, uniforms.cpu().numpy()))
        return normals * (self.nu / gammas.to(normals)).sqrt()


def _half_integer_polynomial(z: Tensor, order: int) -> Tensor:
    """e^z K for nu = order + 1/2: p!/(2p)! sum_i (p+i)! / (i! (p-i)!) (2 z)^(p-i), by Horner's rule."""
    factorial = math.factorial
    scale = factorial(order) / factorial(2 * order)
    total = torch.zeros_like(z)
    for i in range(order + 1):  # from the highest power, i = 0, down
        weight = factorial(order + i) // (factorial(i) * factorial(order - i))
        total = total * z + scale * weight * 2.0 ** (order - i)
    return total


class _LogBessel(torch.autograd.Function):
    """log of 2^(1-nu)/Gamma(nu) z^nu K_nu(z); its derivative is -K_(nu-1)(z) / K_nu(z)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, nu: float) -> Tensor:
        at = z.detach().cpu().double().numpy()
        scaled = scipy.special.kve(
            nu, at
        )  # e^z K_nu(z): inf at 0, and so near that the kernel rounds to 1
        near = ~np.isfinite(scaled)
        scaled, safe = np.where(near, 1.0, scaled), np.where(near, 1.0, at)
        constant = (1.0 - nu) * math.log(2.0) - scipy.special.gammaln(nu)
        logs = np.where(near, 0.0, constant + nu * np.log(safe) + np.log(scaled) - safe)
        slope = np.where(near, 0.0, -scipy.special.kve(nu - 1.0, safe) / scaled)
        ctx.save_for_backward(torch.from_numpy(slope).to(z))
        return torch.from_numpy(logs).to(z)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * slope, None


class RationalQuadratic(SpectralKernel):
    """K = (1 + |x - y|^2 / (2 alpha))^-alpha: Gaussians of many lengthscales; alpha -> inf is one.

    Spectrum:   s ~ Gamma(alpha, 1) / alpha, one scale for all coordinates.
    Raises:     ValueError unless 0 < alpha < inf.
    Reference:  Rasmussen and Williams, 2006, eq. (4.19).
    Example:
        >>> float(RationalQuadratic(1.0)(torch.zeros(1, 2), torch.ones(1, 2)))       # 1 / (1 + 2/2)
        0.5
    """

    name = "rational-quadratic"

    def __init__(self, alpha: float = 1.0) -> None:
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(
                f"alpha={alpha!r} of a rational quadratic kernel must be finite and above 0; the limit"
                " alpha -> inf is Gaussian()."
            )
        self.alpha = float(alpha)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of the power, for all pairs; never above 0."""
        return -self.alpha * torch.log1p(_distances(x, y).square() / (2.0 * self.alpha))

    def frequencies(self, normals: Tensor, uniforms: Tensor) -> Tensor:
        """g sqrt(Gamma(alpha, 1) / alpha), the gamma variable by its quantiles."""
        gammas = torch.from_numpy(scipy.special.gammaincinv(self.alpha, uniforms.cpu().numpy()))
        return normals * (gammas.to(normals) / self.alpha).sqrt()


class Laplacian(SpectralKernel):
    """K = exp(-|x - y|_1), scikit-learn's `laplacian_kernel`: a product over coordinates, not isotropic.

    Spectrum:   independent Cauchy coordinates (s_l = 1 / chi^2_1), here the quantiles of the normals, which
                keep the order that a quasi-random sequence gave them.
                (exp(-|x - y|_2) is `Matern(0.5)`.)
    Example:
        >>> float(Laplacian()(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])))                # exp(-3)
        0.04978...
    """

    name = "laplacian"

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """-|x - y|_1 for all pairs, never above 0."""
        x, y = _single_or_double(x, y)
        return -torch.cdist(x, y, p=1.0)

    def frequencies(self, normals: Tensor, uniforms: Tensor) -> Tensor:
        """tan(pi (Phi(g) - 1/2)), coordinate by coordinate, precise in both tails; no uniforms needed."""
        tails = torch.special.ndtr(-normals.abs())
        return torch.sign(normals) / torch.tan(math.pi * tails)
