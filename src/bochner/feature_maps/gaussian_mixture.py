"""The Gaussian-mixture hybrid: random weights that fall off with the distance from a pair of clusters.

    K^ = sum lambda^_k K^_{A_k} + (1 - sum lambda^_k) K^_trig
    lambda_k = c exp(-|A_k x + A_k^-T y|^2 / (2 tau_k^2))

of centred x and y, for the diagonal A_k of each pair of clusters, tau_k^2 the mean of
|A_k x + A_k^-T y|^2 over the pair and one c <= 1 such that the weights add up to at most 1 on
calibration pairs.

Error:      docs/theory.md 9. Larger than the hard clustered hybrid's: what is gained where a weight is
            right is lost to its own noise. It is here to be compared.
Reference:  Choromanski et al., Hybrid Random Features, 2022 (Gaussian lambda-coefficients).
Differs:    second moments instead of centres, tau and c from the data; means are taken out first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.clusters import Clusters
from bochner.exponential import ComplexExponential
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.hybrids import mixture
from bochner.nonlinearities import Trigonometric
from bochner.pair_matrices import real_from_moments
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.specification import FeatureMapSpec
from bochner.statistics import Moments, evenly, pooled
from bochner.switches import Damped, GaussianSwitch
from bochner.transformed import TransformedFeatures
from bochner.transforms import Centring

CLUSTERS = 2
_CALIBRATION_POINTS = 256  # of either side, whose pairs bound the sum of the weights


def columns(counts: tuple[int, int] = (CLUSTERS, CLUSTERS)) -> int:
    """Columns a projection: two for each weighed map, and base features times what is left."""
    pairs = counts[0] * counts[1]
    return 2 * pairs + 2 * (1 + 2 * pairs)


def fit(
    request: Request,
    queries: Tensor,
    keys: Tensor,
    *,
    counts: tuple[int, int] = (CLUSTERS, CLUSTERS),
) -> FeatureMap:
    """Centre, then k-means on either side, a weight and a map for every pair, trigonometric features
    as the base.

    Arguments:  counts: clusters of queries and of keys.
    Raises:     ValueError if num_features is no multiple of `columns(counts)`.
    """
    centring = Centring.fit(Moments.of(queries, keys, batch_shape=request.batch_shape))
    sides = [
        Clusters.of(
            name,
            points,
            count=count,
            batch_shape=request.batch_shape,
            generator=request.generator,
        ).shifted(centre)
        for name, points, centre, count in (
            ("queries", queries, centring.query_centre, counts[0]),
            ("keys", keys, centring.key_centre, counts[1]),
        )
    ]
    pairs = counts[0] * counts[1]
    count = request.num_projections(columns(counts), f"{pairs} Gaussian weights")
    single, base = request.with_features(count), request.with_features(2 * count)
    switches, maps = [], []
    for i in range(counts[0]):
        for j in range(counts[1]):
            (_, mean, squares), (_, key_mean, key_squares) = (
                sides[0].cluster(i),
                sides[1].cluster(j),
            )
            matrix = real_from_moments(squares, key_squares)
            matrix = matrix.expand(*request.batch_shape, request.dim)
            spread = (matrix.square() * squares + key_squares / matrix.square()).sum(-1)
            spread = spread + 2.0 * (mean * key_mean).sum(-1)
            width = torch.where(spread > 0, spread, 1.0).sqrt()[..., None, None]
            switches.append(
                GaussianSwitch(
                    request,
                    query_matrix=torch.diag_embed(matrix) / width,
                    key_matrix=-torch.diag_embed(1.0 / matrix) / width,
                )
            )
            maps.append(ComplexExponential(single, matrix))
    x, y = (
        evenly(pooled(name, points, request.batch_shape).double(), _CALIBRATION_POINTS)
        for name, points in (("queries", queries), ("keys", keys))
    )
    share = _share(switches, centring.queries(x).points, centring.keys(y).points)
    weights = [Damped(share, s) for s in switches]
    mixed = mixture(weights, maps, RandomFeatures(base, Trigonometric()))
    return TransformedFeatures(mixed, centring)


def _share(switches: list[GaussianSwitch], x: Tensor, y: Tensor) -> Tensor:
    """c [*batch]: 1 over the largest sum of weights of a pair of x and y, at most 1."""
    total = torch.stack([s.mean(x, y) for s in switches]).sum(0)
    return 1.0 / total.amax((-2, -1)).clamp_min(1.0)


def build(request: Request) -> FeatureMap:
    """An unfitted hybrid of 2 x 2 clusters."""
    pairs = CLUSTERS**2
    count = request.num_projections(columns(), f"{pairs} Gaussian weights")
    drawn = pairs + (pairs + 1) * count  # a frequency a weight, `count` for every map
    return UnfittedMap("gaussian-mixture", request, fit, positive=False, num_projections=drawn)


SPEC = FeatureMapSpec(
    name="gaussian-mixture",
    summary="Hybrid: random Gaussian weights about pairs of clusters, trigonometric elsewhere; signed.",
    reference="Choromanski et al. 2022",
    build=build,
    needs_data=True,
    positive=False,
    columns=columns(),
)
