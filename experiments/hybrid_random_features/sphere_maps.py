"""The maps that are compared on spheres, and their sizes under three accountings of a budget.

    projections   R = 128: bases have R projections, hybrids m n = R (m base projections, n random weights),
                  as in the paper's code, which takes n = 8
    length64      feature columns: the size nearest to 64
    length256     feature columns: the size nearest to 256

`m` is the number of projections of each base. A hybrid of two bases draws both separately.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bochner.feature_map import FeatureMap
from bochner.feature_maps.gerf import isotropic_proposal
from bochner.hybrids import bipolar
from bochner.nonlinearities import Hyperbolic, Nonlinearity, Positive, Trigonometric
from bochner.projections import IID, Antithetic, Orthogonal, Projection, Simplex
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.switches import GaussianSwitch, SignSwitch, Switch

DIM = 64
PROJECTIONS = 128
LENGTHS = {"length64": 64, "length256": 256}
ACCOUNTINGS = ("projections", *LENGTHS)
SHOWN = (0.02, 0.25, 0.5, 0.75, 0.98)  # angles of the tables, in units of pi


@dataclass(frozen=True)
class Draw:
    """What one map is built from: m, the radii that fitted maps are fitted to, batch, randomness."""

    m: int
    radii: tuple[float, ...]
    batch_shape: tuple[int, ...]
    generator: torch.Generator

    def request(self, columns: int, projection: Projection) -> Request:
        """For m projections of so many columns each."""
        return Request(
            dim=DIM,
            num_features=columns * self.m,
            projection=projection,
            batch_shape=self.batch_shape,
            generator=self.generator,
        )


@dataclass(frozen=True)
class Base:
    """Random features; `fitted` ones have FAVOR++'s spread for phi = E|x+y|^2 = 2 r^2, as `gerf` fits it.

    The normals are shared between the radii, the spread is not. An antithetic pair counts as one of
    the m projections and takes two columns.
    """

    nonlinearity: Nonlinearity
    projection: Projection
    fitted: bool = False

    @property
    def paired(self) -> bool:
        return self.projection.antithetic_base is not None

    def build(self, draw: Draw) -> FeatureMap:
        columns = 2 if self.paired else self.nonlinearity.columns
        request = draw.request(columns, self.projection)
        if not self.fitted:
            return RandomFeatures(request, self.nonlinearity)
        phi = 2 * torch.tensor(draw.radii, dtype=torch.float64).square()
        proposal = isotropic_proposal(phi if len(draw.radii) > 1 else phi[0], DIM)
        return RandomFeatures(request, self.nonlinearity, proposal)


@dataclass(frozen=True)
class Weight:
    """The random weight of a hybrid's first base: `kind` from n iid groups of signs, or frequencies."""

    kind: str
    n: int

    def build(self, request: Request) -> Switch:
        if self.kind == "angular":
            return SignSwitch.angular(request, num_signs=self.n)
        if self.kind == "majority":
            return SignSwitch.majority(request, num_groups=self.n)
        return GaussianSwitch(request, 1.0, num_frequencies=self.n)


@dataclass(frozen=True)
class SphereMap:
    """A base, or the hybrid weight * first + (1 - weight) * second."""

    label: str
    first: Base
    second: Base | None = None
    weight: Weight | None = None

    def build(self, draw: Draw) -> FeatureMap:
        if self.second is None or self.weight is None:
            return self.first.build(draw)
        switch = self.weight.build(replace(draw.request(1, IID()), num_features=1))
        return bipolar(switch, self.first.build(draw), self.second.build(draw))

    @property
    def columns(self) -> int:
        """Feature columns that each of the m projections costs."""
        return self.build(Draw(1, (1.0,), (), torch.Generator())).num_features

    def size(self, accounting: str) -> int:
        """m."""
        if accounting == "projections":
            return PROJECTIONS // (self.weight.n if self.weight else 1)
        return max(1, round(LENGTHS[accounting] / self.columns))

    def made(
        self,
        accounting: str,
        radii: tuple[float, ...],
        generator: torch.Generator,
        batch_shape: tuple[int, ...] = (),
    ) -> FeatureMap:
        """One map, or a batch [replicates, 1] of them, for points [radii, n, d]."""
        return self.build(Draw(self.size(accounting), radii, batch_shape, generator))


ORTHOGONAL, PAIRS = Orthogonal(), Antithetic(Orthogonal())
TRIG, HYP = Base(Trigonometric(), ORTHOGONAL), Base(Hyperbolic(), ORTHOGONAL)
TRIG_IID, HYP_IID = Base(Trigonometric(), IID()), Base(Hyperbolic(), IID())
WIDE_PAIRS = Base(Positive(), PAIRS, fitted=True)

MAPS = {
    made.label: made
    for made in (
        SphereMap("trigonometric iid", TRIG_IID),
        SphereMap("trigonometric orthogonal", TRIG),
        SphereMap("positive iid", Base(Positive(), IID())),
        SphereMap("positive orthogonal (FAVOR+)", Base(Positive(), ORTHOGONAL)),
        SphereMap("positive simplex (SimRF)", Base(Positive(), Simplex())),
        SphereMap("hyperbolic iid", HYP_IID),
        SphereMap("hyperbolic orthogonal", HYP),
        SphereMap("FAVOR++ iid", Base(Positive(), IID(), fitted=True)),
        SphereMap("FAVOR++ orthogonal", Base(Positive(), ORTHOGONAL, fitted=True)),
        SphereMap("FAVOR++ ± orthogonal", WIDE_PAIRS),
        SphereMap("FAVOR++ simplex", Base(Positive(), Simplex(), fitted=True)),
        SphereMap("angular n=1", HYP, TRIG, Weight("angular", 1)),
        SphereMap("angular n=3", HYP, TRIG, Weight("angular", 3)),
        SphereMap("angular n=8", HYP, TRIG, Weight("angular", 8)),
        SphereMap("angular n=8, iid bases", HYP_IID, TRIG_IID, Weight("angular", 8)),
        SphereMap("angular n=1, FAVOR++ ±", WIDE_PAIRS, TRIG, Weight("angular", 1)),
        SphereMap("majority n=1", HYP, TRIG, Weight("majority", 1)),
        SphereMap("gaussian n=1", TRIG, HYP, Weight("gaussian", 1)),
        SphereMap("gaussian n=8", TRIG, HYP, Weight("gaussian", 8)),
    )
}
"""Orthogonal bases unless the label says otherwise; the random weights are iid."""
