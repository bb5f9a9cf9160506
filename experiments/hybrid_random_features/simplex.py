"""How much directions that repel each other are worth, pair by pair: iid, orthogonal, simplex, Sobol.

One draw of r directions estimates K(x, y) with |x| = |y| = radius at a given angle. Its relative
squared error is measured over many draws, each seen from PAIRS random pairs of points, and set beside
the closed form (docs/theory.md 1 to 3) wherever there is one.

Where the kernel is small, a single feature has tails that few draws reach. Its second moment is known,
though, so there sum_i Z_i^2 / r^2 inside the squared error is replaced by its mean: an estimate without
bias of which only the coupling of different directions is left to chance. Hadamard directions are only nearly
normal, so they get the plain mean. Where E[Z^2] / K^2 exceeds REACH (PLAIN_REACH for the plain mean), tails
that were not drawn make errors and intervals too small, and no measured figure is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bochner.feature_map import FeatureMap
from bochner.feature_maps.gerf import isotropic_proposal
from bochner.nonlinearities import Nonlinearity, Positive, Trigonometric
from bochner.projections import IID, Hadamard, Orthogonal, Projection, Simplex, Sobol
from bochner.projections.simplex import simplex_directions
from bochner.random_features import RandomFeatures
from bochner.reproduce import Cell, Experiment, Row
from bochner.request import Request
from experiments.hybrid_random_features.simplex_report import draw, measured, summary

RADII = (0.5, 1.0, 1.5, 2.0)
ANGLES = (0.02, 0.25, 0.5, 0.75, 0.98)  # in units of pi
SIZES = ((64, 64), (64, 256), (16, 16), (4, 4))  # dimension, features
FAMILIES = ("positive", "gerf", "trigonometric")
PAIRS = 4  # pairs of points that see one draw
BATCH = 250  # draws at one time
HEAVY = 2.0  # E[Z^2] / K^2 from which the mean of sum_i Z_i^2 replaces its value
REACH = 400.0
"""The interval hangs on tails of 2 sqrt(log E[Z^2]) standard deviations: 4.9, met once in 2e6 draws."""
PLAIN_REACH = 8.0
"""That of the plain mean on 4 sqrt(log E[Z^2]): 5.8, once in 3e8."""


@dataclass(frozen=True)
class SimplexHadamard(Projection):
    """Simplex rows rotated by H D3 H D2 H D1: no QR, nearly the law of `Simplex` (d a power of two)."""

    unbiased = False

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """Corners times the unit rows of `Hadamard`, with the norms of `Hadamard`'s rows."""
        blocks = -(-num_projections // dim)
        rows = Hadamard().sample((*shape, blocks), dim, dim, generator)
        norms = rows.norm(dim=-1, keepdim=True)
        turned = simplex_directions(dim) @ (rows / norms) * norms
        return turned.flatten(-3, -2)[..., :num_projections, :]


@dataclass(frozen=True, eq=False)
class Drawn(Projection):
    """Directions that exist already, so that several maps can look at the same draw."""

    normals: Tensor

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        """The first rows."""
        return self.normals[..., :num_projections, :]


COUPLINGS: dict[str, Projection] = {
    "iid": IID(),
    "orthogonal": Orthogonal(),
    "simplex": Simplex(),
    "hadamard": Hadamard(),
    "simplex-hadamard": SimplexHadamard(),
    "sobol": Sobol(),
}


def feature_map(family: str, request: Request, radius: float) -> FeatureMap:
    """The family's map; GERF's A suits the mean |x+y|^2 over all angles, 2 radius^2."""
    nonlinearity: Nonlinearity = Trigonometric() if family == "trigonometric" else Positive()
    if family != "gerf":
        return RandomFeatures(request, nonlinearity)
    mean_square = torch.tensor(2.0 * radius**2, dtype=torch.float64)
    return RandomFeatures(request, nonlinearity, isotropic_proposal(mean_square, request.dim))


def points(radius: float, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., d] and y [..., angles, d] of one norm, in the plane of two orthonormal vectors [..., d]."""
    theta = math.pi * torch.tensor(ANGLES, dtype=torch.float64).unsqueeze(-1)
    y = theta.cos() * first.unsqueeze(-2) + theta.sin() * second.unsqueeze(-2)
    return radius * first, radius * y


def closed_variance(
    family: str, projection: Projection, size: tuple[int, int], radius: float
) -> list[float] | None:
    """Relative variance at each of ANGLES; None where theory has none."""
    dim, features = size
    generator = torch.Generator().manual_seed(0)  # the closed form does not depend on the draw
    request = Request(dim, features, projection=projection, generator=generator)
    x, y = points(radius, *torch.eye(dim, dtype=torch.float64)[:2])
    variance = feature_map(family, request, radius).relative_variance(x.unsqueeze(0), y)
    return None if variance is None else variance[0].tolist()


def contributions(phi: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """What each direction adds to estimate / kernel: [b, pairs, angles, r], for x and y of `points`."""
    queries, keys = phi.query(x), phi.key(y.flatten(-3, -2))
    logs = keys.log_scale.unflatten(-2, y.shape[1:3]) + queries.log_scale.unsqueeze(-2)
    logs = logs - (x.unsqueeze(-2) * y).sum(-1, keepdim=True)  # the kernel is exp(x.y)
    products = keys.values.unflatten(-2, y.shape[1:3]) * queries.values.unsqueeze(-2)
    by_direction = products.unflatten(-1, (-1, phi.num_projections)).sum(-2)
    return by_direction * torch.exp(logs)


def cells(quick: bool) -> list[Cell]:
    """One for each coupling and size."""
    names = ("iid", "orthogonal", "simplex") if quick else tuple(COUPLINGS)
    return [
        {
            "coupling": coupling,
            "dim": dim,
            "features": features,
            "draws": (200 if quick else 10_000) * 64 // max(features, 64),
            "seed": seed,
        }
        for seed, coupling in enumerate(names)
        for dim, features in SIZES
    ]


def run(cell: Cell, folder: Path) -> list[Row]:
    """Errors of all families, radii and angles with one set of draws."""
    coupling, dim, features = str(cell["coupling"]), int(cell["dim"]), int(cell["features"])
    generator = torch.Generator().manual_seed(int(cell["seed"]))
    settings = [(f, r) for f in FAMILIES for r in (RADII if dim == 64 else RADII[1:2])]
    samples: dict[tuple[str, float], list[Tensor]] = {setting: [] for setting in settings}
    for start in range(0, int(cell["draws"]), BATCH):
        shape = (min(BATCH, int(cell["draws"]) - start),)
        normals = COUPLINGS[coupling].draw(features, dim, generator=generator, batch_shape=shape)
        frame = torch.randn(*shape, PAIRS, dim, 2, generator=generator, dtype=torch.float64)
        first, second = torch.linalg.qr(frame).Q.unbind(-1)
        request = Request(
            dim,
            features,
            projection=Drawn(normals),
            batch_shape=shape,
            generator=generator,
            dtype=torch.float64,
        )
        for family, radius in settings:
            phi = feature_map(family, request, radius)
            parts = contributions(phi, *points(radius, first, second))
            deviation = parts.sum(-1) - 1.0
            of_draw = (deviation, deviation.square(), parts.square().sum(-1))
            samples[family, radius].append(torch.stack(of_draw, dim=-1).mean(1))
    rows: list[Row] = []
    for (family, radius), batches in samples.items():
        rows += _rows(cell, family, radius, torch.cat(batches))
    return rows


def _rows(cell: Cell, family: str, radius: float, samples: Tensor) -> list[Row]:
    """Rows of one family and radius, from deviation, its square, sum_i Z_i^2 / r^2 [draws, angles, 3]."""
    projection, size = COUPLINGS[str(cell["coupling"])], (int(cell["dim"]), int(cell["features"]))
    closed = closed_variance(family, projection, size, radius)
    single = closed_variance(family, IID(), size, radius)
    directions = size[1] // (2 if family == "trigonometric" else 1)
    rows: list[Row] = []
    for index, angle in enumerate(ANGLES):
        deviation, square, diagonal = samples[:, index].unbind(-1)
        assert single is not None
        second_moment = 1.0 + directions * single[index]
        if projection.unbiased and second_moment > HEAVY:
            square = square - diagonal + second_moment / directions
        row: Row = {name: cell[name] for name in ("coupling", "dim", "features")}
        row |= {"family": family, "radius": radius, "angle": angle, "normal": projection.unbiased}
        row["closed"] = None if closed is None else _short(closed[index] ** 0.5)
        mean, stderr = _mean_and_stderr(square)
        ends = {"rmse": mean, "low": mean - 1.96 * stderr, "high": mean + 1.96 * stderr}
        row |= {name: _short(math.sqrt(max(value, 0.0))) for name, value in ends.items()}
        row["bias"], row["bias_stderr"] = map(_short, _mean_and_stderr(deviation))
        row["within_reach"] = second_moment <= (REACH if projection.unbiased else PLAIN_REACH)
        rows.append(row)
    return rows


def _mean_and_stderr(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(values.numel())


def _short(value: float) -> float:
    """Five significant digits: all that an interval supports."""
    return float(f"{value:.5g}")


EXPERIMENT = Experiment(
    name="hrf-simplex",
    title="Simplex random features: the error of single kernel values under coupled directions",
    paper="Reid, Choromanski, Likhosherstov and Weller, Simplex Random Features, 2023",
    cells=cells,
    run=run,
    draw=draw,
    measured=measured,
    summary=summary,
    requires=("matplotlib",),
)
