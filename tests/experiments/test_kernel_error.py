"""The kernel-error experiment on points made here: errors by hand, intervals that cover, claims that fit."""

import math
from pathlib import Path

import numpy as np
import pytest

from bochner.reproduce.claims import read_claims

pytest.importorskip("sklearn", reason="comes with the extra `experiments`")

from experiments.kernel_machines import datasets, kernel_error, kernel_error_report
from experiments.kernel_machines.datasets import Examples, scaled

CLAIMS = Path(kernel_error.__file__).parent / "claims" / "kernel_error.toml"


@pytest.fixture
def quick(monkeypatch):
    """Two sets of random points in place of the real ones."""
    rng = np.random.default_rng(0)
    sets = {
        name: Examples(rng.standard_normal((200, dim)), np.zeros(200), 0)
        for name, dim in (("wine", 5), ("digits", 20))
    }
    monkeypatch.setattr(kernel_error, "examples", sets.__getitem__)
    return kernel_error.cells(True)


def test_the_quick_form_has_every_claim(quick, tmp_path):
    rows = [row for cell in quick for row in kernel_error.run(cell, tmp_path)]
    claims = [claim.id for claim in read_claims(CLAIMS, "kernel-error").claims]
    measured = kernel_error_report.measured(rows)
    assert sorted(measured) == sorted(claims)
    # 60 pairs that share 20 draws: their mean square is known to some 15 %
    for name in ("iid", "orthogonal", "simplex", "rbfsampler"):
        low, high = measured[f"predicted-{name}"]
        assert 0.75 < low <= high < 1.3, name
    assert measured["orthogonal-median"][1] < 1
    assert "| orthogonal | median |" in kernel_error_report.summary(rows)
    kernel_error_report.draw(rows, tmp_path)
    assert (tmp_path / "kernel_error.png").exists()


def test_the_full_form():
    cells = kernel_error.cells(False)
    assert {cell["set"] for cell in cells} == set(datasets.LOADERS) - {"wine"}
    assert len(cells) == (len(datasets.LOADERS) - 1) * len(kernel_error.FEATURES)
    seeds = sorted({int(cell["seed"]) for cell in cells})
    assert np.diff(seeds).min() > kernel_error.DRAWS, "no two sets may share their draws"


def test_estimates_of_one_contestant_are_its_features_product():
    from sklearn.kernel_approximation import RBFSampler

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 7, 3))
    sampler = RBFSampler(gamma=0.5, n_components=50, random_state=0)
    estimate = kernel_error.of_transformer(sampler, a)
    expected = np.diag(sampler.transform(a) @ sampler.transform(b).T)
    assert estimate(a, b) == pytest.approx(expected)
    (ours,) = kernel_error.projected("orthogonal", 3, 4096, range(1))
    truth = np.exp(-0.5 * ((a - b) ** 2).sum(1))
    assert ours(a, b) == pytest.approx(truth, abs=6 / math.sqrt(4096))


def test_the_interval_of_a_ratio_covers():
    """400 pairs of samples from the same law: 95 % intervals around the ratio 1 miss it 20 ± 4.4 times."""
    rng = np.random.default_rng(2)
    missed = 0
    for samples in rng.chisquare(8, (400, 2, 30)):
        one, other = (
            {"mean_square": s.mean(), "spread": s.std(ddof=1), "draws": len(s)} for s in samples
        )
        found = kernel_error_report.ratio(one, other)
        missed += not found.low < 1 < found.high
    assert 1 <= missed <= 45  # 5 standard deviations above the expected number


def test_scaled_columns():
    x = np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 4.0], [100.0, 7.0, 2.0]])
    found = scaled(x, np.array([0, 1]))
    assert found[:2].tolist() == [[-1, -1], [1, 1]], "the second column is constant on these rows"
    assert found[2].tolist() == [98, 0]
    assert scaled(x, np.array([0, 1]), known=True)[2].tolist() == [98, 0]
    assert scaled(x, np.array([0, 1]), known=True)[0].tolist() == [-1, -2]
