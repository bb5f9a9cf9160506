"""The experiment on local and wavelet features: its models against formulas, its tables, its claims."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bochner.kernels import Gaussian
from bochner.reproduce.claims import read_claims
from experiments.kernel_machines import local_wavelet as script
from experiments.kernel_machines import local_wavelet_problems as problems
from experiments.kernel_machines import local_wavelet_report as report

CLAIMS = Path(script.__file__).parent / "claims" / "local_wavelet.toml"


@pytest.fixture(scope="module")
def rows():
    """All rows of a form smaller than the quick one."""
    small = {"rows": 80, "tests": 40, "features": "32"}
    cells = [c | {k: v for k, v in small.items() if k in c} for c in script.cells(True)]
    cells = [c | {"m": 16} if c["kind"] == "kernel" else c for c in cells]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "CHUNKS", 1)
        return [row for cell in cells for row in script.run(cell, Path())]


def test_the_evidence_is_the_density_of_the_targets():
    random = np.random.default_rng(0)
    train, noise = random.normal(size=(30, 7)), random.normal(size=30)
    y = train @ random.normal(size=7) + 0.3 * noise
    found, outputscale, alpha = problems.evidence(train, y)

    def log_density(o, a):
        return multivariate_normal(np.zeros(30), o * (train @ train.T + a * np.eye(30))).logpdf(y)

    assert found == pytest.approx(log_density(outputscale, alpha))
    others = [log_density(outputscale, a) for a in (0.8 * alpha, 1.25 * alpha)]
    assert max(others) < found + 0.05  # alpha is one of a grid, a step of 1.8
    assert log_density(1.1 * outputscale, alpha) < found


def test_regression_on_all_features_is_the_exact_process():
    data = problems.field(1, 60, 20, 0.01, 0)
    values, vectors = np.linalg.eigh(
        problems.kernel_matrix(Gaussian(), *(np.concatenate((data.x, data.x_test)),) * 2)
    )
    root = vectors * np.sqrt(np.maximum(values, 0))
    phi = {60: root[:60], 20: root[60:]}
    found = problems.regression(lambda x: phi[len(x)], data, 1.0, 0.01)
    truth = problems.exact(Gaussian(), data, 1.0, 0.01)
    assert np.allclose(found.mean, truth.mean, atol=1e-6)
    assert np.allclose(found.variance, truth.variance, atol=1e-6)


def test_scores_of_a_perfect_model():
    x = np.zeros((1000, 1))
    f = np.random.default_rng(0).normal(size=1000)
    data = problems.Split(x, f, x, f, 0.25)
    scores = problems.Prediction(f, np.zeros(1000), 0.25, 1.0).scores(data)
    assert scores["rmse"] == 0.0
    assert scores["coverage"] == pytest.approx(0.95)
    assert scores["nlpd"] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 0.25))


def test_signals_have_the_ratio_asked_for():
    for name in problems.SIGNALS:
        data = problems.signal(name, 4000, 4000, 7.0, 0)
        assert data.f_test.std() == pytest.approx(7.0, rel=0.01)
        assert data.x.min() >= -1.5
        assert np.abs(data.x).max() <= 1.5
        assert data.y.std() == pytest.approx(50**0.5, rel=0.1)


def test_rows_and_tables(rows, tmp_path):
    kinds = {kind: report.pick(rows, kind=kind) for kind in ("kernel", "field", "signal")}
    assert {row["features"] for row in kinds["kernel"]} == {"local", "iid", "orthogonal"}
    near = report.pick(kinds["kernel"], dim=2, radius=0.25)
    by_features = {row["features"]: row["rmse"] for row in near}
    assert by_features["local"] < 1e-3 * by_features["orthogonal"]
    models = {row["model"] for row in kinds["field"]}
    assert models == {"exact", "waves, iid", "waves, orthogonal", "local"}
    assert {row["model"] for row in kinds["signal"]} == {
        "exact, gaussian",
        "exact, matern-3/2",
        "exact, wavelet",
        "waves, iid",
        "waves, orthogonal",
        "wavelets",
    }
    summary = report.summary(rows)
    for words in ("### Fields", "### Signals", "times the exact RMSE", "paired by seed"):
        assert words in summary
    report.draw(rows, tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == ["local_wavelet.png"]
    found = report.measured(rows)
    known = {claim.id for claim in read_claims(CLAIMS, "kernel-local-wavelet").claims}
    assert set(found) == known
    assert 0.5 < found["local-predicted"] < 1.5
    assert 0.9 < found["exact-coverage"] < 0.99


def test_a_cell_is_determined_by_its_fields(rows):
    cell = next(c for c in script.cells(True) if c["kind"] == "signal") | {
        "rows": 80,
        "tests": 40,
        "features": "32",
    }
    again = script.run(cell, Path())
    before = report.pick(rows, kind="signal", signal=cell["signal"], seed=cell["seed"])
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in again] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in before
    ]


def test_cells_of_the_full_form():
    cells = script.cells(False)
    count = {kind: sum(c["kind"] == kind for c in cells) for kind in ("kernel", "field", "signal")}
    assert count == {"kernel": 15, "field": 9, "signal": 30}
