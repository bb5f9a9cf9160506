"""The clustered experiment: points with the stated signs, errors against naive loops, rows to claims."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import check_flat
from experiments.hybrid_random_features import clustered, clustered_maps, clustered_report
from experiments.hybrid_random_features.clustered_points import (
    DIM,
    SETTINGS,
    Setting,
    centres,
    points,
)
from tests.naive import mean_is

SMALL = {"variance": 1, "kept": 12, "per_cluster": 20, "instance": 0}


@pytest.mark.parametrize("kept", [12, 25])
def test_signs_oppose_from_the_kept_coordinates_on(generator, kept):
    queries, keys = centres(kept, generator)
    assert queries.shape == keys.shape == (2, DIM)
    signs = torch.sign(queries[:, None] * keys[None, :])
    assert bool((signs[..., kept:] == -1).all())
    agreeing = float((signs[..., :kept] > 0).double().mean())
    assert 0.2 < agreeing < 0.8
    norms = queries.norm(dim=-1)  # of 50 entries in [3, 4]
    assert bool(((norms > 3 * DIM**0.5) & (norms < 4 * DIM**0.5)).all())


def test_points_have_the_stated_lengths_and_spread():
    data = points(Setting(10, 12), 0, per_cluster=200)
    assert torch.allclose(data.queries.norm(dim=-1), torch.tensor(0.1, dtype=torch.float64))
    assert torch.allclose(data.keys.norm(dim=-1), torch.tensor(1.0, dtype=torch.float64))
    near, far = data.keys[:200], data.keys[200:]
    assert float(torch.nn.functional.cosine_similarity(near.mean(0), far.mean(0), dim=0)) < 0.95
    again = points(Setting(10, 12), 0, per_cluster=200)
    assert torch.equal(data.kernel, again.kernel)
    assert not torch.equal(data.kernel, points(Setting(10, 12), 1, per_cluster=200).kernel)
    assert 0.9 < float(data.kernel.min()) < float(data.kernel.max()) < 1.11


def test_the_published_hybrid_is_its_formula(generator):
    data = points(SETTINGS[0], 0, per_cluster=8)
    method = clustered_maps.METHODS[clustered_maps.HYBRID]
    phi = method.build(4 * 3, data, generator)
    assert phi.num_features == 12
    assert phi.num_projections == 3, "shared by the pairs of clusters"
    omega = phi.draws()[0].double()
    pairs = clustered.cluster_pairs(data)
    estimates = phi.estimate(data.queries[:, None], data.keys[None].expand(16, 16, DIM))
    for i, j in itertools.product((0, 9), (3, 12)):
        x, y = data.queries[i], data.keys[j]
        pair = min(  # the one whose centres are nearest
            pairs,
            key=lambda p: float((p.query[0] - x).norm() + (p.key[0] - y).norm()),
        )
        a = (pair.key[0] / pair.query[0]).abs().sqrt()
        u, v = a * x, y / a
        terms = [
            math.exp(float(w @ u - u @ u / 2)) * math.exp(float(w @ v - v @ v / 2)) for w in omega
        ]
        assert float(estimates[i, 0, j]) == pytest.approx(math.fsum(terms) / 3, rel=1e-5)


@pytest.mark.parametrize("label", clustered_maps.METHODS)
def test_every_map_has_the_size_it_is_listed_with(generator, label):
    method = clustered_maps.METHODS[label]
    phi = method.build(4 * method.columns, points(SETTINGS[2], 0, per_cluster=20), generator)
    assert phi.num_features == 4 * method.columns
    assert phi.unbiased
    assert all(budget % method.columns == 0 for budget in clustered.COLUMNS)


def test_squared_errors_are_those_of_the_estimates(generator):
    data = points(SETTINGS[0], 0, per_cluster=12)
    phi = clustered_maps.METHODS[clustered_maps.TRIG].build(8, data, generator)
    seed = torch.Generator().manual_seed(5)
    found = clustered.squared_errors(phi, data, 2, 2, seed)
    estimate = phi.estimate(data.queries[::2], data.keys[::2])  # of the last draw
    wanted = (estimate - data.kernel[::2, ::2]).square().mean()
    assert float(found[1]) == pytest.approx(float(wanted), rel=1e-4)
    assert found[0] != found[1]


def test_the_mean_over_runs_is_the_closed_form(generator):
    data = points(SETTINGS[0], 0, per_cluster=10)
    phi = clustered_maps.METHODS[clustered_maps.MOMENT].build(4 * 40, data, generator)
    errors = clustered.squared_errors(phi, data, 1, 700, generator)
    mean_is(errors, clustered.expected(phi, data), see=0.5)


def test_small_coordinates_make_large_entries_of_the_published_matrix(tmp_path):
    cell = {"part": "instances", **SMALL, "variance": 10, "instances": 4}
    rows = clustered.run(cell, tmp_path)
    largest = {
        label: max(row["largest_a"] for row in rows if row["method"] == label)
        for label in clustered.MATRICES
    }
    assert (
        largest[clustered_maps.HYBRID]
        > largest[clustered_maps.BOUNDED]
        > largest[clustered_maps.MOMENT]
    )


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustered, "QUICK_PER_CLUSTER", 10)
        patch.setattr(clustered, "QUICK_INSTANCES", 1)
        return [row for cell in clustered.cells(True) for row in clustered.run(cell, None)]


def test_rows_give_all_claims_and_tables(rows):
    check_flat(rows, "hrf-clustered")
    script = Path(clustered.__file__)
    claims = read_claims(script.parent / "claims" / "clustered.toml", "hrf-clustered")
    assert len(claims.claims) == 3 * 3 * 4 + 4
    table = claim_rows(claims, clustered.measured(rows))
    assert len(table) == len(claims.claims)
    text = clustered_report.summary(rows)
    assert all(text.count(f"| {label} |") >= 2 for label in clustered_maps.METHODS)
    assert "(1 + q.k, no randomness)" in text


def test_rows_give_pictures(rows, tmp_path):
    clustered_report.draw(rows, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"projections.png", "columns.png"}
