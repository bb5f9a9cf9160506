"""The maps that are compared on clustered points, by label, for m projections.

What the paper compares has independent directions, and its four estimators of the clustered hybrid
share them; the catalogue's maps have their own defaults (orthogonal, antithetic for data-aware).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import bochner
from bochner.catalog import spec
from bochner.directions import Directions
from bochner.exponential import ComplexExponential
from bochner.feature_map import FeatureMap
from bochner.feature_maps import cluster
from bochner.feature_maps.cluster import ClusterPair
from bochner.fitting import UnfittedMap
from bochner.pair_matrices import from_centres, real_from_centres, real_from_moments
from bochner.projections import IID, Orthogonal, Projection
from bochner.request import Request
from experiments.hybrid_random_features.clustered_points import DIM, Points

MatrixOf = Callable[[ClusterPair], Tensor]


@dataclass(frozen=True)
class Method:
    """Columns that one projection takes, and (num_features, points, generator) -> map, fitted."""

    label: str
    columns: int
    build: Callable[[int, Points, torch.Generator], FeatureMap]
    published: bool = False


def published_matrix(pair: ClusterPair) -> Tensor:
    """sqrt|key centre / query centre|, however small a coordinate is."""
    return real_from_centres(pair.query[0], pair.key[0], smallest_share=0.0)


def bounded_matrix(pair: ClusterPair) -> Tensor:
    """The same, with the library's bound on small coordinates."""
    return real_from_centres(pair.query[0], pair.key[0])


def complex_matrix(pair: ClusterPair) -> Tensor:
    """The bounded one, imaginary where the centres agree in sign."""
    return from_centres(pair.query[0], pair.key[0]).to(torch.complex128)


def moment_matrix(pair: ClusterPair) -> Tensor:
    """(E key_l^2 / E query_l^2)^(1/4) of the two clusters."""
    return real_from_moments(pair.query[2], pair.key[2])


def clustered(
    matrix_of: MatrixOf,
    projection: Projection,
    num_features: int,
    points: Points,
    generator: torch.Generator,
) -> FeatureMap:
    """Hard weights of 2 x 2 clusters; the estimators of all pairs share their directions."""
    request = Request(DIM, num_features, projection=projection, generator=generator)
    shared: list[Directions] = []

    def estimator(request: Request, pair: ClusterPair) -> FeatureMap:
        directions = shared[0] if shared else None
        found = ComplexExponential(request, matrix_of(pair), directions=directions)
        shared.append(found.directions)
        return found

    return cluster.fit(request, points.queries, points.keys, estimator=estimator)


def catalogued(
    name: str,
    projection: Projection | None,
    num_features: int,
    points: Points,
    generator: torch.Generator,
) -> FeatureMap:
    """A map of the catalogue, fitted to the points if it wants data."""
    phi = bochner.make(
        name, dim=DIM, num_features=num_features, projection=projection, generator=generator
    )
    return phi.fit(points.queries, points.keys) if isinstance(phi, UnfittedMap) else phi


def _catalogue(
    name: str, label: str | None = None, projection: Projection | None = None, **more: bool
) -> Method:
    return Method(label or name, spec(name).columns, partial(catalogued, name, projection), **more)


def _clusters(label: str, matrix_of: MatrixOf, columns: int = 4, **more: bool) -> Method:
    return Method(label, columns, partial(clustered, matrix_of, IID()), **more)


HYBRID, FAVOR, TRIG = "cluster, published A", "positive, iid", "trigonometric, iid"
CONSTANT, LINEAR = "constant: the mean of exp(q.k)", "1 + q.k, no randomness"
BOUNDED, MOMENT = "cluster, bounded A", "cluster, moment A"
_ALL = (
    _clusters(HYBRID, published_matrix, published=True),
    _catalogue("positive", FAVOR, IID(), published=True),
    _catalogue("trigonometric", TRIG, IID(), published=True),
    _clusters(BOUNDED, bounded_matrix),
    _clusters("cluster, complex A", complex_matrix, columns=8),
    _clusters(MOMENT, moment_matrix),
    Method("cluster, moment A, orthogonal", 4, partial(clustered, moment_matrix, Orthogonal())),
    _catalogue("cluster", "cluster (centred)"),
    _catalogue("gaussian-mixture"),
    _catalogue("complex-exponential"),
    _catalogue("balanced-exponential"),
    _catalogue("aderf"),
    _catalogue("data-aware"),
    _catalogue("positive", "positive, orthogonal"),
    _catalogue("trigonometric", "trigonometric, orthogonal"),
)
METHODS = {method.label: method for method in _ALL}
