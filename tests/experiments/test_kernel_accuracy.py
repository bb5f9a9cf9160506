"""The kernel-accuracy experiment on rows made here: who sees which rows, and that only features differ."""

from pathlib import Path

import numpy as np
import pytest

from bochner.reproduce.claims import read_claims

pytest.importorskip("sklearn", reason="comes with the extra `experiments`")

from experiments.kernel_machines import accuracy, accuracy_report
from experiments.kernel_machines.datasets import Examples

CLAIMS = Path(accuracy.__file__).parent / "claims" / "accuracy.toml"


@pytest.fixture
def rings():
    """Three rings, one class each, in the plane: no linear model tells them apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=600)
    angle = rng.uniform(0, 2 * np.pi, 600)
    x = (1 + labels + 0.1 * rng.standard_normal(600))[:, None] * np.stack(
        [np.cos(angle), np.sin(angle)], 1
    )
    return Examples(x, labels, 3)


def test_the_quick_form_has_every_claim(monkeypatch, tmp_path, rings):
    monkeypatch.setattr(accuracy, "examples", lambda name: rings)
    cells = [cell for cell in accuracy.cells(True) if cell["set"] == "wine"]
    rows = [row for cell in cells for row in accuracy.run(cell, tmp_path)]
    measured = accuracy_report.measured(rows)
    claims = [claim.id for claim in read_claims(CLAIMS, "kernel-accuracy").claims]
    assert sorted(measured) == sorted(claims)
    scores = {
        name: accuracy_report.scores(accuracy_report.pick(rows, contestant=name)).mean()
        for name in accuracy_report.distinct(rows, "contestant")
    }
    assert scores.pop(accuracy_report.LINEAR) < 0.6
    assert min(scores.values()) > 0.97, scores
    text = accuracy_report.summary(rows)
    assert "`orthogonal` against RBFSampler" in text
    accuracy_report.draw(rows, tmp_path)
    assert (tmp_path / "accuracy.png").exists()


def test_no_row_is_seen_twice(rings):
    parts = accuracy.split(rings, 3)
    assert len(np.intersect1d(parts.train, parts.test)) == 0
    assert len(np.intersect1d(parts.tuned, parts.validation)) == 0
    assert sorted([*parts.tuned, *parts.validation]) == sorted(parts.train)
    assert sorted([*parts.train, *parts.test]) == list(range(600))
    assert parts.x[parts.train].mean(0) == pytest.approx([0, 0], abs=1e-6)
    assert parts.x[parts.test].mean(0) != pytest.approx([0, 0], abs=1e-6)


def test_published_test_rows_stay_so(rings):
    parts = accuracy.split(rings._replace(test=100), 0)
    assert parts.test.tolist() == list(range(500, 600))


def test_the_penalty_is_chosen_on_validation_rows(rings):
    """Test targets that are another permutation of the classes change nothing that is chosen."""
    parts = accuracy.split(rings, 0)
    wrong = parts.y.copy()
    wrong[parts.test] = wrong[parts.test][:, [1, 2, 0]]
    make = accuracy.CONTESTANTS["orthogonal"]
    honest = accuracy.with_features(parts, make, 64, 0)
    spoiled = accuracy.with_features(parts._replace(y=wrong), make, 64, 0)
    assert honest[1:] == spoiled[1:]
    assert honest[0] > 0.97 > 0.1 > spoiled[0]


def test_streamed_ridge_is_scikit_learns(rings):
    """RBFSampler's features with our sums against scikit-learn's pipeline: the same predictions."""
    from sklearn.kernel_approximation import RBFSampler
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    parts = accuracy.split(rings, 0)
    features = accuracy.CONTESTANTS["RBFSampler"](parts.x[parts.train], 64, 0.5, 7)
    solution = accuracy.ridge(accuracy.sums(parts, features, parts.train), 0.1)
    ours = features(parts.x[parts.test]) @ solution.coef + solution.intercept
    pipeline = make_pipeline(
        RBFSampler(gamma=0.5, n_components=64, random_state=7), Ridge(alpha=0.1)
    ).fit(parts.x[parts.train].astype(np.float64), parts.y[parts.train])
    theirs = pipeline.predict(parts.x[parts.test].astype(np.float64))
    assert np.abs(ours - theirs).max() < 2e-4


def test_the_exact_kernel_is_scikit_learns(rings):
    from sklearn.kernel_ridge import KernelRidge

    parts = accuracy.split(rings, 0)
    score, multiple, alpha = accuracy.exact(parts)
    seen, asked = (parts.x[rows].astype(np.float64) for rows in (parts.train, parts.test))
    gamma = multiple / (seen.shape[1] * seen.var())
    mean = parts.y[parts.train].mean(0)
    theirs = KernelRidge(alpha=alpha, kernel="rbf", gamma=gamma)
    predicted = theirs.fit(seen, parts.y[parts.train] - mean).predict(asked) + mean
    assert score == pytest.approx(accuracy.score(parts, predicted, parts.test))


def test_r2_of_a_target(rings):
    parts = accuracy.split(rings._replace(y=rings.x[:, 0] ** 2, classes=0), 0)
    assert parts.y[parts.train].std() == pytest.approx(1)
    truth = parts.y[parts.test]
    assert accuracy.score(parts, truth, parts.test) == 1
    assert accuracy.score(parts, np.full_like(truth, truth.mean()), parts.test) == 0


def test_differences_are_paired_by_seed():
    rows = [
        {"set": "a", "features": 8, "contestant": name, "seed": seed, "score": base + shift}
        for seed, base in enumerate((0.5, 0.7, 0.9))
        for name, shift in (("RBFSampler", 0.0), ("Nystroem", 0.02))
    ]
    found = accuracy_report.difference(rows, "a", 8, "Nystroem")
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


def test_the_full_form():
    cells = accuracy.cells(False)
    assert {cell["set"] for cell in cells} == set(accuracy.SETS)
    seeds = {s: {c["seed"] for c in cells if c["set"] == s} for s in accuracy.SETS}
    assert all(len(found) >= 3 for found in seeds.values())
    assert [c["set"] for c in cells] == sorted(
        [c["set"] for c in cells], key=accuracy.SETS.index
    ), "set by set: the last one is kept in memory"
