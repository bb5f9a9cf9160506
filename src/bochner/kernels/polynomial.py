"""The polynomial kernel, the one here that can be negative.

K(x, y) = (x . y + c)^p
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from bochner.features import SignedLog
from bochner.kernels.kernel import Kernel
from bochner.validation import check_count


class Polynomial(Kernel):
    """K(x, y) = (x . y + offset)^degree; a factor of x . y is a transform of the points.

    Raises:     ValueError unless degree is an integer of at least 1 and offset finite and >= 0, without
                which the kernel is not positive definite.
    Example:
        >>> float(Polynomial(degree=3, offset=1.0)(torch.ones(1, 2), -torch.ones(1, 2)))     # (-2 + 1)^3
        -1.0
    """

    name = "polynomial"
    stationary = False

    def __init__(self, degree: int = 2, offset: float = 1.0) -> None:
        self.degree = check_count("degree", degree)
        if not (math.isfinite(offset) and offset >= 0):
            raise ValueError(f"offset={offset!r} of a polynomial kernel must be finite and >= 0.")
        self.offset = float(offset)

    def log(self, x: Tensor, y: Tensor) -> NoReturn:
        """Raises ValueError: values can be 0 or negative."""
        raise ValueError(
            f"{self!r} can be 0 or negative and has no logarithm; use signed_log, or the kernel itself."
        )

    def signed_log(self, x: Tensor, y: Tensor) -> SignedLog:
        """degree log|x.y + offset| with its sign, for all pairs; -inf and 0 where it vanishes."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x, y = x.float(), y.float()
        with torch.autocast(device_type=x.device.type, enabled=False):
            root = x @ y.transpose(-1, -2) + self.offset
        sign = torch.sign(root)
        zero = root == 0
        logs = torch.log(root.masked_fill(zero, 1.0).abs()).masked_fill(zero, -math.inf)
        return SignedLog(self.degree * logs, sign if self.degree % 2 else sign.abs())
