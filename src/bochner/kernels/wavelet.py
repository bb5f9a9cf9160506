"""A kernel of wavelets: non-stationary, with structure at every scale around the origin."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bochner.features import SignedLog
from bochner.kernels.kernel import Kernel

_NODES = 20  # of the quadrature, for every octave of scales


class Wavelet(Kernel):
    """Mexican hats of log-uniform scales s, at places t ~ N(0, spread^2 I).

        K(x, y) = E_{s, t}[ a(s)^2 psi((x-t)/s) psi((y-t)/s) ],   psi(u) = (d - |u|^2) exp(-|u|^2/2)

    a(s) is such that every scale adds the same variance at the origin, and K(0, 0) = 1. Over t the mean
    is a Gaussian integral of a polynomial; with h = (x-y)/2, m = (x+y)/2, b = spread^2,

        K_s = Q / Q_0 exp(-|h|^2/s^2 - |m|^2/(s^2 + 2b)),   c = b / (s^2 + 2b),   e = s m / (s^2 + 2b)
        Q = (d - |h/s + e|^2 - d c)(d - |h/s - e|^2 - d c) + 4 c (|e|^2 - |h/s|^2) + 2 d c^2

    and Q_0 is Q at 0. Values can be negative or 0: `signed_log` has them, `log` raises. The prior variance
    K(x, x) falls like exp(-|x|^2 / (s^2 + 2b)): beyond a few spreads there is none. As spread grows the
    kernel becomes stationary.

    Arguments:  smallest, largest: scales, in the units of x; spread: of the places.
    Numerics:   Gauss-Legendre quadrature over log s, 20 nodes an octave, in float64: absolute error below
                1e-13 (K(0, 0) is 1); never overflows, and the logarithm stays finite where K underflows.
    Cost:       O(n n' 20 log2(largest/smallest)).
    Raises:     ValueError unless 0 < smallest < largest and spread > 0.
    Reference:  Kumar and Chakraborty, Random Wavelet Features, 2026 (features from sampled scales and
                translations); the measure and its exact kernel: docs/theory.md, Wavelet features.
    Example:
        >>> x = torch.tensor([[0.0], [3.0]])
        >>> [[f"{v:.4f}" for v in row] for row in Wavelet()(x, x).tolist()]
        [['1.0000', '-0.1192'], ['-0.1192', '0.1517']]
    """

    name = "wavelet"
    stationary = False

    def __init__(self, smallest: float = 0.5, largest: float = 4.0, spread: float = 1.0) -> None:
        if not 0.0 < smallest < largest < math.inf:
            raise ValueError(
                f"smallest={smallest!r} and largest={largest!r} must be scales with 0 < smallest < largest."
            )
        if not 0.0 < spread < math.inf:
            raise ValueError(f"spread={spread!r} must be positive and finite.")
        self.smallest, self.largest, self.spread = float(smallest), float(largest), float(spread)

    @cached_property
    def _quadrature(self) -> tuple[list[float], list[float]]:
        """Scales and weights, which add up to 1; panels of an octave at most."""
        octaves = math.log2(self.largest / self.smallest)
        panels = math.ceil(octaves)
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        places = (np.arange(panels)[:, None] + 0.5 * (nodes + 1.0)) / panels
        scales = self.smallest * 2.0 ** (octaves * places)
        return scales.ravel().tolist(), np.tile(0.5 * weights / panels, panels).tolist()

    def scales(self, quantiles: Tensor) -> Tensor:
        """The scales with these quantiles of the log-uniform law."""
        low, high = math.log(self.smallest), math.log(self.largest)
        return torch.exp(low + (high - low) * quantiles)

    def log_amplitude(self, scales: Tensor, dim: int) -> Tensor:
        """log a(s): a(s)^2 = ((s^2 + 2b)/s^2)^(d/2) / Q_0(s)."""
        wide = scales.square() + 2.0 * self.spread**2
        c = self.spread**2 / wide
        at_origin = (dim * (1.0 - c)).square() + 2.0 * dim * c.square()
        return 0.25 * dim * torch.log(wide / scales.square()) - 0.5 * torch.log(at_origin)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Raises ValueError: some values are negative."""
        raise ValueError(
            f"{self!r} takes values of both signs and has no logarithm; use signed_log."
        )

    def signed_log(self, x: Tensor, y: Tensor) -> SignedLog:
        """By quadrature over the scales; half precision comes back in float32."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        x, y = x.double(), y.double()
        dim, b = x.shape[-1], self.spread**2
        mode = "donot_use_mm_for_euclid_dist"
        hh = 0.25 * torch.cdist(x, y, compute_mode=mode).square()
        mm = 0.25 * torch.cdist(x, -y, compute_mode=mode).square()
        norms = x.square().sum(-1).unsqueeze(-1), y.square().sum(-1).unsqueeze(-2)
        hm = 0.25 * (norms[0] - norms[1])

        def exponent(s: float) -> Tensor:
            return -hh / s**2 - mm / (s**2 + 2.0 * b)

        largest = exponent(self.largest)  # no scale has a larger one
        total = torch.zeros_like(hh)
        for s, weight in zip(*self._quadrature, strict=True):
            wide = s**2 + 2.0 * b
            c = b / wide
            half, place, cross = hh / s**2, mm * (s / wide) ** 2, 2.0 * hm / wide
            inner = dim * (1.0 - c) - half - place
            q = inner.square() - cross.square() + 4.0 * c * (place - half) + 2.0 * dim * c**2
            q_0 = (dim * (1.0 - c)) ** 2 + 2.0 * dim * c**2
            total = total + weight / q_0 * q * torch.exp(exponent(s) - largest)
        log_abs = torch.log(total.abs()) + largest
        return SignedLog(log_abs.to(dtype), torch.sign(total).to(dtype))
