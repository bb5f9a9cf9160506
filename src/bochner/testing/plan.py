"""How much a contract check draws, and the fixed points and calibration data that it uses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bochner.kernels import Kernel, Softmax
from bochner.projections import Projection, Sobol

_USUAL = math.exp(-0.605)
"""The Gaussian kernel at |x - y| = 1.1, its smallest value at the contract's points."""
_LARGEST_FACTOR = 64


@dataclass(frozen=True)
class Plan:
    """Sizes of a contract check, fixed before anything is drawn.

    Arguments:
        dims: dimensions for the statistical part. 5: not a power of two, and m=8 is not a multiple.
        num_features: m, rounded up to what the map and its projection allow.
        replicates: independent redraws of all randomness.
        bias_tolerance: relative bias allowed to maps that declare `unbiased=False`; Hadamard
            directions reach 0.035 at these points (d from 3 to 16).
        seed: of the generator; a check is reproducible.
    """

    dims: tuple[int, ...] = (5, 1)
    num_features: int = 8
    replicates: int = 40_000
    bias_tolerance: float = 0.05
    seed: int = 20_240_229

    @classmethod
    def of(cls, projection: Projection, columns: int = 1, kernel: Kernel | None = None) -> Plan:
        """The default plan; few but long draws for Sobol, whose scrambling has no batched form: at least
        32 projections, for a map that spends `columns` on one. A kernel that is small at the contract's
        points gets more features, and the bias that it may have is that much larger in its units."""
        base = projection.antithetic_base or projection
        if isinstance(base, Sobol):
            plan = cls(num_features=max(256, 32 * columns), replicates=1_000)
        elif (
            2 < columns <= 8
        ):  # 8 columns are one or two projections: too few to see 30 % of a variance
            plan = cls(num_features=32, replicates=80_000)
        else:
            plan = cls()
        smallest = plan._smallest(Softmax() if kernel is None else kernel)
        factor = max(1.0, _USUAL / smallest) if smallest else 1.0
        # errors fall as 1/sqrt(m); half of it is to spare, but for mirrored pairs and a bias to be added
        spare = int(projection.antithetic_base is None and projection.unbiased)
        more = min(_LARGEST_FACTOR, 1 << max(0, int(2 * math.log2(factor)) - spare))
        return replace(
            plan,
            num_features=more * plan.num_features,
            bias_tolerance=factor * plan.bias_tolerance,
        )

    def _smallest(self, kernel: Kernel) -> float:
        """Smallest |K| at the points of the contract."""
        found = (points(dim, self.seed) for dim in self.dims)
        return min(float(kernel(p.x, p.y).diagonal().abs().min()) for p in found)


@dataclass(frozen=True)
class Points:
    """Pairs (x_i, y_i), i < n, with what each stands for.

    Shapes:     x, y [n, d] float64. `moderate` of the labels, the last ones, are close enough to 0
                for sample variances to be trusted.
    """

    labels: tuple[str, ...]
    x: Tensor
    y: Tensor
    moderate: tuple[int, ...]


def points(dim: int, seed: int) -> Points:
    """The points of the contract, |x+y| <= 1.1 and |x-y| <= 1.1 so that tails stay light.

    A positive feature at distance s = |x+y| is log-normal with deviation s: beyond s = 2 the mean of
    10^5 of them is no longer normal and the z-test fails (design, Tests 2).
    """
    generator = torch.Generator().manual_seed(seed)

    def direction() -> Tensor:
        u = torch.randn(dim, generator=generator, dtype=torch.float64)
        return u / u.norm()

    ones = torch.full((dim,), dim**-0.5, dtype=torch.float64)
    sums = {
        "random points": (1.1 * direction(), 0.9 * direction()),
        "random points, apart": (0.7 * direction(), 1.1 * direction()),
        "the all-ones direction": (1.1 * ones, 0.4 * ones),
        "x = y": (1.1 * direction(), 0.0 * ones),
        "x = -y": (0.0 * ones, 1.1 * direction()),
        "x = 0": (0.9 * (away := direction()), -0.9 * away),
        "moderate points": (0.7 * direction(), 0.7 * direction()),
        "moderate points, all-ones": (0.7 * ones, 0.5 * direction()),
        "moderate x = y": (0.7 * direction(), 0.0 * ones),
    }
    plus = torch.stack([s for s, _ in sums.values()])
    minus = torch.stack([t for _, t in sums.values()])
    moderate = tuple(i for i, label in enumerate(sums) if label.startswith("moderate"))
    return Points(tuple(sums), 0.5 * (plus + minus), 0.5 * (plus - minus), moderate)


def calibration(dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fixed queries and keys [8 d + 8, d] for data-aware maps: means off 0, unlike covariances.

    Their moments are what is written here, to rounding: no chance makes a fit extreme.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    count = 8 * dim + 8

    def sample(mean: float) -> Tensor:
        axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
        deviations = torch.linspace(0.3, 0.45, dim, dtype=torch.float64)
        normals = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        exact = torch.linalg.qr(normals - normals.mean(0)).Q * count**0.5  # mean 0, covariance I
        return mean / dim**0.5 + exact @ (axes * deviations) @ axes.mT

    return sample(0.4), sample(-0.1)
