"""What the contract found: a report that says what was checked and how small a fault it could see."""

from __future__ import annotations

from dataclasses import dataclass

from bochner.testing.significance import Deviation, critical_z


class ContractError(AssertionError):
    """A feature map breaks a property that it declares; `failing` names the property."""

    def __init__(self, failing: str, message: str) -> None:
        super().__init__(f"{failing}: {message}")
        self.failing = failing


@dataclass(frozen=True)
class Comparison:
    """One statistical comparison: which property, where, and what was found.

    deviation:  relative to the truth (log-ratio for variances), with its standard error;
    tolerance:  deviation allowed without being counted (0 for maps declared unbiased).
    """

    failing: str
    dim: int
    point: str
    deviation: Deviation
    tolerance: float = 0.0

    @property
    def z(self) -> float:
        """Standard errors beyond the tolerance, signed."""
        value, excess = self.deviation.value, abs(self.deviation.value) - self.tolerance
        if self.tolerance and excess <= 0:
            return 0.0
        return (
            self.deviation.z
            if not self.tolerance
            else (excess / self.deviation.stderr * (1 if value > 0 else -1))
        )

    @property
    def smallest(self) -> float:
        """Smallest deviation that would have been rejected with probability 99 %."""
        return self.tolerance + self.deviation.smallest

    @property
    def rejected(self) -> bool:
        """Whether |z| exceeds the suite's critical value, or is NaN."""
        return not abs(self.z) <= critical_z()

    def __str__(self) -> str:
        return (
            f"{self.failing} at {self.point} (d={self.dim}):"
            f" {self.deviation.value:+.2e} ± {self.deviation.stderr:.1e},"
            f" z={self.z:+.2f}, would have seen {self.smallest:.1e}"
        )


@dataclass(frozen=True)
class FitError:
    """Relative error of a map without randomness, and that of the best constant."""

    dim: int
    error: float
    constant: float

    def __str__(self) -> str:
        return (
            f"fit (d={self.dim}): relative error {self.error:.3g},"
            f" the best constant {self.constant:.3g}"
        )


@dataclass(frozen=True)
class ContractReport:
    """What `check_feature_map` checked.

    comparisons:  every statistical one, with z and the smallest deviation it could have seen;
    checked:      the declared properties that were found true;
    skipped:      what could not be checked, with the reason;
    fits:         errors of a map without randomness, whose bias has no bound.
    """

    name: str
    projection: str
    kernel: str
    num_features: int
    replicates: int
    comparisons: tuple[Comparison, ...]
    checked: tuple[str, ...]
    skipped: tuple[str, ...]
    fits: tuple[FitError, ...] = ()

    def of(self, failing: str) -> tuple[Comparison, ...]:
        """The comparisons of one property."""
        return tuple(c for c in self.comparisons if c.failing == failing)

    @property
    def worst_z(self) -> float:
        """Largest |z| of all comparisons."""
        return max((abs(c.z) for c in self.comparisons), default=0.0)

    @property
    def smallest_bias(self) -> float:
        """A relative bias of this size would have been seen, with probability 99 %, at every point."""
        return max((c.smallest for c in self.of("unbiased")), default=float("inf"))

    @property
    def smallest_variance_error(self) -> float:
        """A wrong variance formula by this log-ratio would have been seen at every point."""
        return max((c.smallest for c in self.of("relative_variance")), default=float("inf"))

    def __str__(self) -> str:
        if self.fits:
            head = (
                f"{self.name}, {self.kernel} kernel: contract kept; m={self.num_features}, nothing"
                " random, biased"
            )
        else:
            head = (
                f"{self.name} with {self.projection}, {self.kernel} kernel: contract kept;"
                f" {self.replicates} replicates, m={self.num_features},"
                f" a bias of {100 * self.smallest_bias:.1f} % would have been seen"
            )
        lines = [f"  {c}" for c in (*self.comparisons, *self.fits)]
        lines.append(f"  checked: {', '.join(self.checked)}")
        lines += [f"  not checked: {reason}" for reason in self.skipped]
        return "\n".join([head, *lines])
