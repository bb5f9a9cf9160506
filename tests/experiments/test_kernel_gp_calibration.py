"""The calibration experiment: its splits, its scores by hand, and what its report says of its own rows."""

from pathlib import Path

import numpy as np
import pytest

from bochner.kernels import Gaussian
from bochner.reproduce.claims import read_claims
from experiments.kernel_machines import gp_calibration, gp_calibration_report

CLAIMS = Path(gp_calibration.__file__).parent / "claims" / "gp_calibration.toml"


@pytest.mark.parametrize("name", gp_calibration.MADE)
def test_made_sets(name):
    split = gp_calibration.made(name, 150, 0)
    assert split.x.shape == (150, {"hole": 2, "friedman": 10}.get(name, 3))
    assert split.new.shape == (gp_calibration.TESTED, split.x.shape[1])
    if name == "hole":
        assert (np.abs(split.x).max(1) > 1).all()
        assert 0.15 < (np.abs(split.new).max(1) < 1).mean() < 0.35
    if name == "unequal":
        assert 0.1 <= split.noise.min() < 0.12 < 0.88 < split.noise.max() <= 0.9
    again = gp_calibration.made(name, 150, 0)
    assert np.array_equal(split.y, again.y)
    assert not np.array_equal(split.y, gp_calibration.made(name, 150, 1).y)


def test_a_draw_has_the_covariance_of_the_kernel():
    """4,000 draws at two points one lengthscale apart: correlation exp(-1/2), |z| < 5."""
    random = np.random.default_rng(0)
    x = np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0]])
    drawn = np.array([gp_calibration.draw_of(Gaussian(), x, random) for _ in range(4000)])
    correlation = np.corrcoef(drawn.T)[0, 1]
    assert abs(np.arctanh(correlation) - np.arctanh(np.exp(-0.5))) < 5 / 4000**0.5


def test_scores_by_hand():
    split = gp_calibration.Split(
        np.zeros((2, 1)),
        np.array([-2.0, 2.0]),  # deviation 2
        np.zeros((20, 1)),
        np.zeros(20),
        np.r_[np.ones(18), 5.0, 5.0],
    )
    mean, std = np.r_[np.zeros(10), np.full(10, 3.0)], np.full(20, 1.0)
    row = gp_calibration.scores(split, mean, std, unsure=np.r_[np.ones(2), np.zeros(18)])
    assert row["coverage"] == 0.5
    assert row["coverage_unsure"] == 1.0
    assert row["coverage_noisy"] == 0.0
    assert row["rmse"] == pytest.approx(4.5**0.5 / 2)
    assert row["nlpd"] == pytest.approx(0.5 * np.log(2 * np.pi / 4) + 0.5 * 4.5)


def test_real_rows_are_standardised_on_those_trained_on():
    split = gp_calibration.real("diabetes", 400, 0)
    assert len(split.x) + len(split.new) == 442
    assert np.allclose(split.x.mean(0), 0, atol=1e-12)
    assert np.allclose(split.x.std(0), 1)
    assert np.allclose([split.y.mean(), split.y.std()], [0, 1])


@pytest.fixture
def rows(monkeypatch, tmp_path):
    monkeypatch.setattr(gp_calibration, "SMALL", 150)
    monkeypatch.setattr(gp_calibration, "SEEDS", {150: 1})
    monkeypatch.setattr(gp_calibration, "SEEDS_OF_RIGHT", {150: 1})
    cells = [cell for cell in gp_calibration.cells(True) if cell["data"] != "diabetes"]
    return [row for cell in cells for row in gp_calibration.run(cell, tmp_path)]


def test_a_quick_run_is_summarised_drawn_and_claimed(rows, tmp_path):
    assert {row["posterior"] for row in rows} == set(gp_calibration_report.NAMES)
    exact = gp_calibration_report.pick(rows, data="draw", posterior="exact")[0]
    reference = gp_calibration_report.pick(rows, data="draw", posterior="scikit-learn")[0]
    assert exact["coverage"] == pytest.approx(reference["coverage"], abs=0.06)
    assert exact["nlpd"] == pytest.approx(reference["nlpd"], abs=0.2)
    text = gp_calibration_report.summary(rows)
    assert "Where the model is right" in text
    assert "nan" not in text
    gp_calibration_report.draw(rows, tmp_path)
    assert (tmp_path / "coverage.png").stat().st_size > 10_000
    values = gp_calibration_report.measured(rows)
    claims = read_claims(CLAIMS, gp_calibration.EXPERIMENT.name)
    assert set(values) == {claim.id for claim in claims.claims}
    assert values["right-exact"][0] > 0.85
