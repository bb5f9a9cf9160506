"""What a kernel is: exact values, the oracle that every estimate is measured against."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bochner.features import SignedLog


class Kernel(ABC):
    """A positive definite function K(x, y) on R^d, as logarithms.

    Inputs are already divided by the lengthscale: a lengthscale is a transform. Parameters (a smoothness, a
    degree) are public attributes; two kernels are equal if type and parameters are.
    """

    name: str
    stationary: bool = True
    """Whether K(x, y) depends on x - y alone, so that points may be centred."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """log K(x_i, y_j) for all pairs: x [*b, n, d], y [*b, n', d] -> [*b, n, n'].

        Raises:     ValueError for a kernel whose values can be 0 or negative; `signed_log` has them.
        """

    def signed_log(self, x: Tensor, y: Tensor) -> SignedLog:
        """K(x_i, y_j) for all pairs [*b, n, n'] as signed logarithms."""
        log = self.log(x, y)
        return SignedLog(log, torch.ones_like(log))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """K(x_i, y_j) for all pairs, [*b, n, n']; inf where it leaves the dtype's range."""
        return self.signed_log(x, y).value()

    def _parameters(self) -> dict[str, object]:
        """The public attributes of the object, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={value!r}" for name, value in self._parameters().items())
        return f"{type(self).__name__}({parameters})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Kernel)
            and type(self) is type(other)
            and self._parameters() == other._parameters()
        )

    def __hash__(self) -> int:
        return hash((type(self), *self._parameters().items()))
