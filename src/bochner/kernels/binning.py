"""The kernel that weighted random binning has: smooth, and a product over the coordinates.

    K(x, y) = prod_l g(x_l - y_l),   g(t) = E_w[(f * f)(t / w)],   w ~ theta Gamma(k, 1)

f is the B-spline of order p >= 2 (2: a triangle, 3: a piecewise parabola, ...) scaled to [-1/2, 1/2] and to
int f^2 = 1, f * f its convolution with itself, w the width of a bin. Order 1 is the indicator, and with
k = 2 it has g(t) = exp(-|t|): the Laplacian kernel, which has a class of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bochner.kernels.kernel import Kernel
from bochner.validation import check_count


class SplineBinning(Kernel):
    """The exact kernel of random binning with spline windows and Gamma widths.

        g(theta t) = sum_{j<p} a_j e^{-c_j t} q(c_j t),   c_j = p/(p-j)
        q(c) = sum_i C(k-2p, i) c^{k-2p-i} (2p-1+i)! / (k-1)!
        a_j = (-1)^j C(2p, j) (p-j)^{2p-1} / sum_i (-1)^i C(2p, i) (p-i)^{2p-1}

    for f * f is a B-spline of order 2p, a sum of powers (1 - c_j t/w)_+^{2p-1}, and the mean of each over w
    is a shifted Gamma integral. A Gaussian process with this kernel is p-1 times mean-square differentiable.

    Arguments:  order: p >= 2; shape: k >= 2p of the widths: small k mixes narrow and wide bins (heavier
                tails, t^{k-2p} e^{-t/theta}).
    Scale:      theta is such that g(t) = 1 - t^2/2 + ..., as the Gaussian kernel's factors.
    Numerics:   float64 inside; the largest exponential is taken out, so that the logarithm is finite.
    Cost:       O(n n' d p).
    Raises:     ValueError for an order below 2 or a shape below 2 * order.
    Reference:  Kapralov, Nouri, Razenshteyn, Velingker, Zandieh, Scaling up Kernel Ridge Regression via
                Locality Sensitive Hashing, 2020; docs/theory.md, Random binning.
    Example:
        >>> x, y = torch.zeros(1, 1), torch.tensor([[0.1], [1.0], [20.0]])
        >>> [f"{v:.4f}" for v in SplineBinning()(x, y)[0].tolist()]      # exp(-t^2/2): 0.9950, 0.6065
        ['0.9952', '0.6905', '0.0000']
    """

    name = "spline-binning"

    def __init__(self, order: int = 2, shape: int = 7) -> None:
        if check_count("order", order) < 2:
            raise ValueError("order=1 must be at least 2; the kernel of order 1 is Laplacian().")
        if check_count("shape", shape) < 2 * order:
            raise ValueError(
                f"shape={shape} must be at least 2 * order = {2 * order}: with more narrow bins the"
                " kernel has no derivatives at 0."
            )
        self.order, self.shape = order, shape

    @property
    def scale(self) -> float:
        """theta: widths are theta Gamma(shape, 1)."""
        curvature = -sum(a * c * c for a, c in self._terms()) * self._power * (self._power - 1)
        return math.sqrt(curvature / ((self.shape - 1) * (self.shape - 2)))  # -g''(0) = 1

    @property
    def _power(self) -> int:
        return 2 * self.order - 1

    def _terms(self) -> list[tuple[float, float]]:
        """(a_j, c_j)."""
        p = self.order
        raw = [(-1) ** j * math.comb(2 * p, j) * (p - j) ** self._power for j in range(p)]
        return [(a / sum(raw), p / (p - j)) for j, a in enumerate(raw)]

    def _polynomial(self, c: Tensor) -> Tensor:
        """q(c)."""
        rest = self.shape - 1 - self._power
        coefficients = [
            math.comb(rest, i) * math.factorial(self._power + i) / math.factorial(self.shape - 1)
            for i in range(rest + 1)
        ]
        value = torch.full_like(c, coefficients[0])
        for coefficient in coefficients[1:]:
            value = value * c + coefficient
        return value

    def log_factor(self, t: Tensor) -> Tensor:
        """log g(t), of any shape, float64."""
        t = t.double().abs() / self.scale
        total = torch.zeros_like(t)
        for weight, factor in self._terms():  # the first factor is 1, the slowest exponential
            total = total + weight * torch.exp((1.0 - factor) * t) * self._polynomial(factor * t)
        return torch.log(total) - t

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of log g over coordinates; half precision comes back in float32."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        x, y = x.double(), y.double()
        total = x.new_zeros(())
        for left, right in zip(x.unbind(-1), y.unbind(-1), strict=True):
            total = total + self.log_factor(left.unsqueeze(-1) - right.unsqueeze(-2))
        return total.to(dtype)
