"""The deep-kernel experiment: splits, scores, losses that differ as they say, a report."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from bochner.reproduce.claims import read_claims
from bochner.reproduce.experiment import check_flat, checked_cells
from experiments.kernel_machines import deep_kernel, deep_kernel_report
from experiments.kernel_machines.deep_kernel import Normals, Rows, judged, last_layer, loss_of
from tests.maps import normal, seeded


def test_cells_run_and_report(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(deep_kernel, "STEPS", (20, 40))
    monkeypatch.setattr(deep_kernel, "FEATURES", 32)
    rows = []
    for kind in deep_kernel.KINDS:
        cell = {"set": "diabetes", "train": 60, "kind": kind, "seed": 0, "steps": 40}
        (row,) = deep_kernel.run(cell, tmp_path)
        check_flat([row], kind)
        rows.append(row)
    assert {row["kind"] for row in rows} == set(deep_kernel_report.NAMES)
    assert all(0.4 < row["rmse"] < 2.0 for row in rows)
    assert [("steps" in row) for row in rows] == [True] * 5 + [False] * 2
    text = deep_kernel_report.summary(rows)
    assert "### diabetes, 60 training rows" in text
    assert deep_kernel_report.NAMES[deep_kernel_report.best(rows, "nlpd")] in text
    deep_kernel_report.draw(rows, tmp_path)
    assert (tmp_path / "density_and_coverage.png").stat().st_size > 5_000
    assert deep_kernel_report.measured(rows) == {}


def test_cells_are_checked_and_the_same_split_serves_every_kind() -> None:
    assert len(checked_cells(deep_kernel.EXPERIMENT, False)) == 5 * 4 * 7
    assert len(checked_cells(deep_kernel.EXPERIMENT, True)) == 4
    train, test = deep_kernel.split("diabetes", 300, seed=1)
    again, _ = deep_kernel.split("diabetes", 300, seed=1)
    other, _ = deep_kernel.split("diabetes", 300, seed=2)
    assert torch.equal(train.x, again.x)
    assert not torch.equal(train.y, other.y)
    assert len(test.y) == 142
    assert abs(float(train.y.mean())) < 1e-5
    assert float(train.y.std(unbiased=False)) == pytest.approx(1.0, rel=1e-5)


def test_scores_of_a_normal_law() -> None:
    y = 2.0 * normal(100_000)
    scores = judged(Normals(torch.zeros(100_000).double(), torch.full((100_000,), 4.0).double()), y)
    assert scores["rmse"] == pytest.approx(2.0, rel=0.02)
    assert scores["nlpd"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 4.0), rel=0.02)
    assert scores["coverage"] == pytest.approx(0.95, abs=0.005)


def test_kinds_differ_in_what_they_say_they_do() -> None:
    corrected, uncorrected = (loss_of(kind, 3, 10, seeded(0)) for kind in ("bound", "uncorrected"))
    features = 0.1 * torch.ones(2, 4)
    assert float(corrected.model.white_variance(features).min().detach()) > 0.9
    assert float(uncorrected.model.white_variance(features).max().detach()) == 0.0
    assert not uncorrected.model.log_prior_variance.requires_grad
    spectrum = loss_of("spectrum", 3, 10, seeded(0)).model
    found = spectrum.features(torch.ones(2, 3)).detach().square().sum(-1)
    assert torch.allclose(found, torch.ones(2))


def test_the_last_layer_is_chosen_by_the_evidence() -> None:
    x = normal(200, 2).float()
    y = x[:, 0] + 0.3 * normal(200, seed=1).float()
    found = last_layer(nn.Identity(), Rows(x, y))(x)
    assert float(found.variance.mean()) == pytest.approx(0.09, rel=0.3)
    assert float((found.mean - x[:, 0].double()).abs().max()) < 0.2


def test_claims_can_be_read() -> None:
    folder = Path(deep_kernel.__file__).parent / "claims"
    assert read_claims(folder / "deep_kernel.toml", "kernel-deep") is not None
