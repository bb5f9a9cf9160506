"""The clustered hybrid: k-means on queries and on keys, one exponential estimator a pair of clusters.

    K^(x, y) = K^_{ij}(x, y)   for x in query cluster i and y in key cluster j
    K_{ij}: positive features of A_ij (x - mu_i) and A_ij^-T (y - nu_j), with the exact factors put back

A_ij is diagonal, (Var k / Var q)^(1/4) of the two clusters. Every pair uses its own block of columns,
of which a query fills those of its own cluster; features are zero elsewhere and never negative.

Error:      relative variance (e^{|s|^2} - 1) / r with s = A_ij (x - mu_i) + A_ij^-T (y - nu_j) and
            r = m / (p p') for p and p' clusters (iid directions).
Reference:  Choromanski et al., Hybrid Random Features, 2022
Differs:    the published A_ij is sqrt|key centre / query centre| per coordinate, which explodes where a
            centre is near zero (`centre_pair` has it, with a bound); the means are taken out here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bochner.clusters import Clusters
from bochner.exponential import ComplexExponential
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.hybrids import partition
from bochner.pair_matrices import from_centres, real_from_centres, real_from_moments
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.switches import MembershipSwitch
from bochner.transformed import TransformedFeatures
from bochner.transforms import Centring

CLUSTERS = 2
_SMALLEST_VARIANCE = 1e-6  # of a coordinate within a cluster, relative to the cluster's mean one


@dataclass(frozen=True)
class ClusterPair:
    """A cluster of queries and one of keys: centres, means and mean squares, each [*batch, d]."""

    query: tuple[Tensor, Tensor, Tensor]
    key: tuple[Tensor, Tensor, Tensor]


Estimator = Callable[[Request, ClusterPair], FeatureMap]
"""(request, pair of clusters) -> the map that estimates the kernel between them."""


def centred_pair(request: Request, pair: ClusterPair) -> FeatureMap:
    """Means taken out, then the diagonal that balances the variances: real, positive."""
    (_, query_mean, query_squares), (_, key_mean, key_squares) = pair.query, pair.key
    matrix = real_from_moments(
        _variance(query_squares, query_mean), _variance(key_squares, key_mean)
    )
    inner = ComplexExponential(request, _per_head(matrix, request))
    return TransformedFeatures(inner, Centring(query_mean, key_mean))


def moment_pair(request: Request, pair: ClusterPair) -> FeatureMap:
    """The diagonal of second moments (E k^2 / E q^2)^(1/4): real, positive."""
    matrix = real_from_moments(pair.query[2], pair.key[2])
    return ComplexExponential(request, _per_head(matrix, request))


def centre_pair(request: Request, pair: ClusterPair) -> FeatureMap:
    """The published diagonal sqrt|key centre / query centre|, bounded where a centre is near zero."""
    matrix = real_from_centres(pair.query[0], pair.key[0])
    return ComplexExponential(request, _per_head(matrix, request))


def complex_centre_pair(request: Request, pair: ClusterPair) -> FeatureMap:
    """The same, imaginary where the centres' signs agree: s = 0 at the centres. Signed, 2 columns."""
    matrix = from_centres(pair.query[0], pair.key[0]).to(torch.complex128)
    return ComplexExponential(request, _per_head(matrix, request))


def _variance(squares: Tensor, mean: Tensor) -> Tensor:
    variance = (squares - mean.square()).clamp_min(0.0)
    floor = _SMALLEST_VARIANCE * variance.mean(-1, keepdim=True)
    return torch.where(floor > 0, torch.maximum(variance, floor), torch.ones_like(variance))


def _per_head(matrix: Tensor, request: Request) -> Tensor:
    return matrix.expand(*request.batch_shape, request.dim)


def fit(
    request: Request,
    queries: Tensor,
    keys: Tensor,
    *,
    counts: tuple[int, int] = (CLUSTERS, CLUSTERS),
    estimator: Estimator = centred_pair,
) -> FeatureMap:
    """k-means on either side, one estimator a pair, weighed by membership.

    Arguments:  counts: clusters of queries and of keys; estimator: centred_pair, moment_pair,
                centre_pair or complex_centre_pair.
    Raises:     ValueError if num_features is no multiple of the number of pairs.
    """
    sides = [
        Clusters.of(
            name,
            points,
            count=count,
            batch_shape=request.batch_shape,
            generator=request.generator,
        )
        for name, points, count in zip(("queries", "keys"), (queries, keys), counts, strict=True)
    ]
    indices = [(i, j) for i in range(counts[0]) for j in range(counts[1])]
    per_pair = request.with_features(
        request.num_projections(len(indices), f"{len(indices)} pairs of clusters")
    )
    weights = [
        MembershipSwitch(request, sides[0].centres, sides[1].centres, index=index)
        for index in indices
    ]
    maps = [
        estimator(per_pair, ClusterPair(sides[0].cluster(i), sides[1].cluster(j)))
        for i, j in indices
    ]
    return partition(weights, maps)


def build(request: Request) -> FeatureMap:
    """An unfitted clustered hybrid of 2 x 2 clusters."""
    return UnfittedMap("cluster", request, fit)


SPEC = FeatureMapSpec(
    name="cluster",
    summary="Hybrid: k-means on queries and keys, a balanced positive map for every pair of clusters.",
    reference="Choromanski et al. 2022",
    build=build,
    needs_data=True,
    columns=CLUSTERS**2,
)
