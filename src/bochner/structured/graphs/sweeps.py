"""When an iteration stops, and how it says that it has not converged."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from torch import Tensor

from bochner.validation import check_count


class NotConvergedWarning(UserWarning):
    """An iteration ended before its residual fell below the tolerance."""


@dataclass(frozen=True)
class Sweeps:
    """At most `limit` sweeps over the graph, until no update moves a marginal by more than `tolerance`.

    Arguments:  tolerance: total variation, by an update without damping; damping: how much of the old
                message (its logarithm) stays, 0 <= damping < 1 - what stops loopy belief propagation
                from swinging.
    Example:
        >>> Sweeps(limit=50, damping=0.5)
        Sweeps(limit=50, tolerance=1e-05, damping=0.5)
    """

    limit: int = 200
    tolerance: float = 1e-5
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_count("limit", self.limit)
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise ValueError(
                f"tolerance={self.tolerance!r} must be a positive number, such as 1e-5."
            )
        if not 0 <= self.damping < 1:
            raise ValueError(
                f"damping={self.damping!r} must be at least 0 and below 1: the share of the old message"
                " that stays; 0.5 is usual."
            )

    def report(self, converged: Tensor, residual: Tensor, what: str) -> None:
        """Warn, at the line of the caller's caller, unless every element of the batch has converged."""
        if bool(converged.all()):
            return
        warnings.warn(
            f"{what} has not converged in {self.limit} sweeps for {int((~converged).sum())} of"
            f" {converged.numel()} elements of the batch: the largest residual is"
            f" {float(residual.max()):.3g}, tolerance={self.tolerance:.3g}. Pass"
            " Sweeps(limit=..., damping=0.5) for more sweeps or damping, or use the result knowing this"
            " (its fields `converged` and `residual` say which).",
            NotConvergedWarning,
            stacklevel=3,
        )
