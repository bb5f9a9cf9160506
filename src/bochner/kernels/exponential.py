"""The two exponential kernels, which differ by one factor per point.

    Softmax:   K(x, y) = exp(x . y)
    Gaussian:  K(x, y) = exp(-|x - y|^2 / 2)  =  exp(-|x|^2/2) exp(x . y) exp(-|y|^2/2)

Hence one set of features serves both. Inputs are already divided by the temperature (attention:
x = q d^-1/4, y = k d^-1/4) or by the lengthscale.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from bochner.kernels.kernel import Kernel


class ExponentialKernel(Kernel):
    """exp(x.y) times a factor of x and one of y."""

    @staticmethod
    def of(kernel: Kernel, what: str) -> ExponentialKernel:
        """The kernel, if it is one of these.

        Raises:     ValueError that says what needs one.
        """
        if not isinstance(kernel, ExponentialKernel):
            raise ValueError(
                f"kernel={kernel!r}: {what} estimates Softmax() and Gaussian() only; `bochner list` shows"
                " the feature maps of other kernels."
            )
        return kernel

    @abstractmethod
    def log_point_factor(self, x: Tensor) -> Tensor | None:
        """log of the factor that turns exp(x.y) into this kernel, [*b, n, 1]; None if it is 1."""


class Softmax(ExponentialKernel):
    """K(x, y) = exp(x . y), the kernel of attention and of log-linear models.

    Example:
        >>> float(Softmax()(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])))
        2.7182817459106445
    """

    name = "softmax"
    stationary = False

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """x . y for all pairs, also under autocast in the dtype of x."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x @ y.transpose(-1, -2)

    def log_point_factor(self, x: Tensor) -> Tensor | None:
        """None: the features estimate exp(x.y) as they are."""
        return None


class Gaussian(ExponentialKernel):
    """K(x, y) = exp(-|x - y|^2 / 2); a lengthscale is a transform (`Lengthscale`).

    Example:
        >>> float(Gaussian()(torch.zeros(1, 3), torch.ones(1, 3)))
        0.22313016653060913
    """

    name = "gaussian"

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """-|x - y|^2 / 2 for all pairs, never above 0; half precision is computed in float32."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x, y = x.float(), y.float()
        distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        return -0.5 * distances.square()

    def log_point_factor(self, x: Tensor) -> Tensor | None:
        """-|x|^2 / 2."""
        return -0.5 * x.square().sum(dim=-1, keepdim=True)
