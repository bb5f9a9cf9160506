"""Pointwise errors of coupled directions: against naive features and the closed forms."""

import math

import pytest
import torch

from bochner.projections import IID, Orthogonal, Simplex
from bochner.request import Request
from experiments.hybrid_random_features import simplex, simplex_report
from tests.naive import estimate, mean_is, variance_is


@pytest.mark.parametrize("family", simplex.FAMILIES)
def test_contributions_add_up_to_the_estimate(generator, family):
    normals = Orthogonal().draw(6, 5, generator=generator, batch_shape=(2,))
    request = Request(
        5, 6, projection=simplex.Drawn(normals), batch_shape=(2,), dtype=torch.float64
    )
    phi = simplex.feature_map(family, request, 1.0)
    frame = torch.randn(2, 3, 5, 2, generator=generator, dtype=torch.float64)
    x, y = simplex.points(0.8, *torch.linalg.qr(frame).Q.unbind(-1))
    assert torch.allclose(y.norm(dim=-1), torch.tensor(0.8, dtype=torch.float64))
    parts = simplex.contributions(phi, x, y)
    assert parts.shape == (2, 3, len(simplex.ANGLES), phi.num_projections)
    for draw in range(2):
        for pair in range(3):
            one, many = x[draw, pair : pair + 1], y[draw, pair]
            kernel = torch.exp(one @ many.T)[0]
            found = parts[draw, pair].sum(-1) * kernel
            assert torch.allclose(found, phi.estimate(x[draw], many)[draw, pair])
            if family != "gerf":
                omega = phi.draws()[0][draw]
                assert torch.allclose(found, estimate(family, omega, one, many)[0])


def test_variance_at_one_point_is_the_closed_form(generator):
    draws, size, radius = 40_000, (8, 8), 0.5
    normals = Simplex().draw(8, 8, generator=generator, batch_shape=(draws,))
    request = Request(
        8, 8, projection=simplex.Drawn(normals), batch_shape=(draws,), dtype=torch.float64
    )
    phi = simplex.feature_map("positive", request, radius)
    x, y = simplex.points(
        radius, *torch.eye(8, dtype=torch.float64)[:2].expand(draws, 1, 2, 8).unbind(-2)
    )
    ratio = simplex.contributions(phi, x, y)[:, 0, 2].sum(-1)  # at a right angle
    closed = simplex.closed_variance("positive", Simplex(), size, radius)[2]
    mean_is(ratio, 1.0, see=0.05)
    variance_is(ratio, closed, see=0.25)


def test_closed_forms_in_the_known_order():
    by_coupling = [
        simplex.closed_variance("positive", projection, (64, 64), 1.0)
        for projection in (IID(), Orthogonal(), Simplex())
    ]
    for iid, orthogonal, tetrahedral in zip(*by_coupling, strict=True):
        assert iid > orthogonal > tetrahedral
    phi = 2 * (1 + math.cos(math.pi * 0.25))  # |x + y|^2 at the second angle
    assert by_coupling[0][1] == pytest.approx(math.expm1(phi) / 64)


def test_simplex_by_hadamard_has_simplex_angles(generator):
    rows = simplex.SimplexHadamard().draw(64, 64, generator=generator)
    units = rows / rows.norm(dim=-1, keepdim=True)
    cosines = (units @ units.T)[~torch.eye(64, dtype=torch.bool)]
    assert torch.allclose(cosines, torch.full_like(cosines, -1 / 63))
    norms = (
        simplex.SimplexHadamard().draw(64, 64, generator=generator, batch_shape=(200,)).norm(dim=-1)
    )
    mean_is(norms.square().mean(-1), 64.0, see=0.05)


def test_a_cell_agrees_with_the_closed_form(tmp_path):
    cell = {"coupling": "simplex", "dim": 16, "features": 16, "draws": 4_000, "seed": 3}
    rows = simplex.run(cell, tmp_path)
    assert rows == simplex.run(cell, tmp_path), "a cell is determined by its fields"
    assert len(rows) == len(simplex.FAMILIES) * len(simplex.ANGLES)
    for row in rows:
        assert row["within_reach"]
        assert row["low"] < row["rmse"] < row["high"]
        stderr = (row["high"] - row["low"]) / 3.92
        assert abs(row["rmse"] - row["closed"]) < 6.5 * stderr
        assert stderr < 0.06 * row["closed"]
        assert abs(row["bias"]) < 6.5 * row["bias_stderr"]


def test_quick_rows_make_claims_tables_and_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(simplex, "BATCH", 20)
    cells = [cell | {"draws": 20} for cell in simplex.cells(True)]
    rows = [row for cell in cells for row in simplex.run(cell, tmp_path)]
    values = simplex.measured(rows)
    assert values["simplex-never-worse"][0] >= 1.0 - 1e-4
    assert len(values) == 4 * len(simplex_report.CLAIMED) + 1
    text = simplex.summary(rows)
    assert "positive | simplex" in text
    assert "beyond the reach" in text
    simplex.draw(rows, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"errors.png", "gains.png"}


def test_gain_needs_both_and_their_reach():
    row = {
        "coupling": "iid",
        "rmse": 2.0,
        "low": 1.9,
        "high": 2.1,
        "closed": 2.2,
        "within_reach": True,
    }
    rows = [row, row | {"coupling": "simplex", "rmse": 1.0, "low": 0.9, "high": 1.1, "closed": 1.1}]
    value, low, high, closed = simplex_report.gain(rows, "simplex", "iid")
    assert (value, closed) == (2.0, pytest.approx(2.0))
    assert low * high == pytest.approx(4.0)
    assert math.isnan(
        simplex_report.gain([row, rows[1] | {"within_reach": False}], "simplex", "iid")[0]
    )
    assert math.isnan(simplex_report.gain([row], "simplex", "iid")[3])
