"""The two kernels, exactly: the oracle that every estimate is measured against.

    Softmax:   K(x, y) = exp(x . y)
    Gaussian:  K(x, y) = exp(-|x - y|^2 / 2)  =  exp(-|x|^2/2) exp(x . y) exp(-|y|^2/2)

They differ by one factor per point, hence one set of features serves both. Inputs are already
divided by the temperature (attention: x = q d^-1/4, y = k d^-1/4) or by the lengthscale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bochner.validation import unknown_name


class Kernel(ABC):
    """A positive kernel on R^d, as its logarithm."""

    name: str

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """log K(x_i, y_j) for all pairs: x [*b, n, d], y [*b, n', d] -> [*b, n, n']."""

    @abstractmethod
    def log_point_factor(self, x: Tensor) -> Tensor | None:
        """log of the factor that turns exp(x.y) into this kernel, [*b, n, 1]; None if it is 1."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """K(x_i, y_j) for all pairs, [*b, n, n']; inf where it leaves the dtype's range."""
        return torch.exp(self.log(x, y))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class Softmax(Kernel):
    """K(x, y) = exp(x . y), the kernel of attention and of log-linear models.

    Example:
        >>> float(Softmax()(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])))
        2.7182817459106445
    """

    name = "softmax"

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """x . y for all pairs, also under autocast in the dtype of x."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x @ y.transpose(-1, -2)

    def log_point_factor(self, x: Tensor) -> Tensor | None:
        """None: the features estimate exp(x.y) as they are."""
        return None


class Gaussian(Kernel):
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


KERNELS: dict[str, type[Kernel]] = {"softmax": Softmax, "gaussian": Gaussian}


def kernel_from_name(kernel: str | Kernel) -> Kernel:
    """The kernel for a name (edges only); a Kernel passes through.

    Raises:     UnknownNameError for a name that is not one of softmax, gaussian.
    Example:
        >>> kernel_from_name("gaussian")
        Gaussian()
    """
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise unknown_name("kernel", str(kernel), KERNELS)
    return KERNELS[kernel]()
