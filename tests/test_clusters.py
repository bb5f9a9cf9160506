"""Clusters found by k-means, and the hybrids built on them."""

import pytest
import torch

from bochner.clusters import Clusters
from bochner.exponential import ComplexExponential
from bochner.feature_maps import cluster, gaussian_mixture
from bochner.projections import IID
from bochner.request import Request
from tests.naive import mean_is, variance_is

CENTRES = torch.tensor([[1.5, 0.0, -0.5], [-1.5, 0.5, 0.5]], dtype=torch.float64)


def clustered(generator: torch.Generator, n: int = 40, spread: float = 0.1) -> torch.Tensor:
    noise = spread * torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    return (CENTRES.unsqueeze(1) + noise).flatten(0, 1)


def of(points: torch.Tensor, generator: torch.Generator, count: int = 2, batch=()) -> Clusters:
    return Clusters.of("queries", points, count=count, batch_shape=batch, generator=generator)


def test_two_clear_clusters_are_found(generator) -> None:
    x = clustered(generator)
    found = of(x, generator)
    order = found.centres[:, 0].argsort(descending=True)
    assert torch.allclose(found.centres[order], CENTRES, atol=0.1)
    for i, half in zip(order, (x[:40], x[40:]), strict=True):
        _, mean, squares = found.cluster(int(i))
        assert torch.allclose(mean, half.mean(0), atol=1e-12)
        assert torch.allclose(squares, half.square().mean(0), atol=1e-12)


def test_heads_are_clustered_apart_and_pooled_over_the_rest(generator) -> None:
    x = torch.stack([clustered(generator), 3.0 * clustered(generator)])  # two heads
    found = of(x.unflatten(1, (2, 40)).transpose(0, 1), generator, batch=(2,))
    assert found.centres.shape == (2, 2, 3)
    spread = found.centres.norm(dim=-1).mean(-1)
    assert float(spread[1] / spread[0]) == pytest.approx(3.0, rel=0.1)
    expanded = of(x[0].expand(500, -1, -1), generator, batch=(500,))  # one k-means, not 500
    assert expanded.centres.shape == (500, 2, 3)
    assert torch.equal(expanded.centres[0], expanded.centres[499])


def test_one_generator_one_clustering(generator) -> None:
    x = torch.randn(50, 3, generator=generator)
    a, b = (of(x, torch.Generator().manual_seed(3), 4) for _ in range(2))
    assert torch.equal(a.centres, b.centres)


def test_degenerate_data(generator) -> None:
    x = torch.zeros(10, 3)
    x[:5, 0] = 1.0  # two distinct points, two constant coordinates
    found = of(x, generator)
    assert bool(torch.isfinite(found.centres).all())
    fewer = of(x, generator, 3)  # the third cluster is empty: nothing is ever nearest to it first
    assert set(torch.cdist(x.double(), fewer.centres).argmin(-1).tolist()) == {0, 1}
    assert torch.allclose(fewer.means[2], x.double().mean(0))
    with pytest.raises(ValueError, match="number of clusters"):
        of(x, generator, 0)


@pytest.mark.parametrize(
    "estimator",
    [cluster.centred_pair, cluster.moment_pair, cluster.centre_pair, cluster.complex_centre_pair],
)
@pytest.mark.parametrize("counts", [(2, 2), (1, 3)])
def test_clustered_hybrids_of_every_kind(generator, estimator, counts) -> None:
    replicas, m = 20_000, 4
    columns = (2 if estimator is cluster.complex_centre_pair else 1) * m * counts[0] * counts[1]
    request = Request(
        dim=3,
        num_features=columns,
        projection=IID(),
        generator=generator,
        batch_shape=(replicas,),
        dtype=torch.float64,
    )
    queries, keys = clustered(generator, spread=0.2), -0.4 * clustered(generator, spread=0.2)
    phi = cluster.fit(
        request,
        queries.expand(replicas, -1, -1),
        keys.expand(replicas, -1, -1),
        counts=counts,
        estimator=estimator,
    )
    x, y = 0.8 * queries[[0, 45]], keys[[3, 50]]
    ratio = phi.estimate(x, y) / phi.kernel(x, y)
    declared = phi.relative_variance(x, y)[0]
    assert phi.positive == (estimator is not cluster.complex_centre_pair)
    for i in range(2):
        for j in range(2):
            if float(declared[i, j]) < 2.0:  # beyond it the tails are too heavy to be sampled
                mean_is(ratio[:, i, j], 1.0, see=0.15)
                variance_is(ratio[:, i, j], float(declared[i, j]), see=2.0)


def test_a_query_fills_the_columns_of_its_own_cluster_only(generator) -> None:
    request = Request(dim=3, num_features=24, generator=generator)
    queries, keys = clustered(generator).float(), -clustered(generator).float()
    phi = cluster.fit(request, queries, keys)
    filled = (phi.query(queries).values > 0).sum(-1)
    assert set(filled.tolist()) == {12}
    assert bool((phi.estimate(queries, keys) > 0).all())


def test_centres_of_opposite_sign_have_no_error_at_the_centres(generator) -> None:
    # the published matrix makes s = 0 between centres whose coordinates have opposite signs
    pair = cluster.ClusterPair((CENTRES[0], CENTRES[0], CENTRES[0] ** 2), (-CENTRES[0] / 2,) * 3)
    r = Request(dim=3, num_features=4, projection=IID(), dtype=torch.float64, generator=generator)
    phi = cluster.centre_pair(r, pair)
    assert isinstance(phi, ComplexExponential)
    x, y = CENTRES[:1] + 0.0, -CENTRES[:1] / 2
    assert float(phi.relative_variance(x[:, :], y)) < 1e-3  # one coordinate is 0: bounded there


@pytest.mark.parametrize("counts", [(2, 2), (1, 3)])
def test_the_weights_of_a_mixture_leave_room_for_the_base(generator, counts) -> None:
    queries, keys = clustered(generator), 0.5 * clustered(generator)
    columns = gaussian_mixture.columns(counts)
    request = Request(dim=3, num_features=2 * columns, generator=generator, dtype=torch.float64)
    phi = gaussian_mixture.fit(request, queries, keys, counts=counts)
    weights = [p.maps[0] for p in phi.inner.maps]
    x, y = phi.transform.queries(queries).points, phi.transform.keys(keys).points
    total = torch.stack([w.mean(x, y) for w in weights[:-1]]).sum(0)
    assert float(total.max()) <= 1 + 1e-12
    assert torch.allclose(weights[-1].mean(x, y), 1 - total, atol=1e-12)
    assert phi.num_features == 2 * columns


def test_shifted_clusters_are_those_of_shifted_points(generator) -> None:
    x, centre = clustered(generator), torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    moved = of(x, torch.Generator().manual_seed(1)).shifted(centre)
    truth = of(x - centre, torch.Generator().manual_seed(1))
    for found, expected in zip(
        (moved.centres, moved.means, moved.squares),
        (truth.centres, truth.means, truth.squares),
        strict=True,
    ):
        assert torch.allclose(found, expected, atol=1e-10)
