"""Nonparametric classification: the linear pass is the dense estimate, and bookkeeping."""

import math

import pytest
import torch

from bochner.data.tabular import Tabular, sklearn_dataset
from experiments.hybrid_random_features import classification, classification_report


@pytest.fixture(scope="module")
def parts():
    return classification.split(sklearn_dataset("wine"))


@pytest.mark.parametrize("family", classification.FAMILIES)
@pytest.mark.parametrize("coupling", classification.COUPLINGS)
def test_the_linear_pass_is_the_dense_estimate(monkeypatch, parts, family, coupling):
    monkeypatch.setattr(classification, "BLOCK", 17)
    x, train = parts.test[0].double() / 3, parts.train.double() / 3
    request = classification.request_for(x.shape[-1], 12, coupling, 3, seed=5)
    phi = classification.feature_map(family, request, train)
    sums, totals = classification.class_sums(phi, x, train, parts.onehot)
    kernel = phi.estimate(x.expand(3, -1, -1), train.expand(3, -1, -1))
    dense = kernel @ parts.onehot.double()
    assert torch.equal(sums.argmax(-1), dense.argmax(-1))
    assert torch.allclose(sums / totals, dense / kernel.sum(-1, keepdim=True), rtol=1e-6, atol=1e-9)


def test_many_features_classify_as_the_exact_kernel(parts):
    x, train = parts.test[0] / 8, parts.train / 8
    request = classification.request_for(x.shape[-1], 4096, "orthogonal", 2, seed=5)
    phi = classification.feature_map("positive", request, train)
    sums, totals = classification.class_sums(phi, x, train, parts.onehot)
    exact = classification.exact_scores(x, train, parts.onehot)
    assert float((sums / totals - exact).abs().max()) < 0.02
    assert float((sums.argmax(-1) == exact.argmax(-1)).double().mean()) > 0.95


def test_exact_scores_by_hand():
    x, train = torch.tensor([[0.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    onehot = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    near, far = math.exp(-0.5), math.exp(-2.0)
    scores = classification.exact_scores(x, train, onehot)
    assert scores[0, 0].item() == pytest.approx(1 / (1 + near + far))


def test_split_is_disjoint_and_standardised_on_the_training_set():
    features = torch.arange(40.0, dtype=torch.float64).reshape(20, 2).square()
    features = torch.cat((features, torch.ones(20, 1, dtype=torch.float64)), dim=1)
    data = Tabular(features, torch.arange(20) % 2, ("a", "b", "c"), ("even", "odd"), "by hand")
    found = classification.split(data, (6, 4, 3))
    sizes = [len(found.train), len(found.validation[0]), len(found.test[0])]
    assert sizes == [6, 4, 3]
    assert found.train.shape[1] == 2, "the constant column is dropped"
    together = torch.cat((found.train, found.validation[0], found.test[0]))
    assert len(together.unique(dim=0)) == 13
    assert found.train.mean(0).abs().max() < 1e-6
    assert torch.allclose(found.train.std(0), torch.ones(2))


def test_bandwidth_is_the_largest_of_the_best():
    accuracies = [0.5] * len(classification.BANDWIDTHS)
    accuracies[3] = accuracies[7] = 0.9
    assert classification.best_bandwidth(accuracies) == classification.BANDWIDTHS[7]


@pytest.mark.parametrize(
    ("multiple", "dim", "expected"), [(0.25, 5, 2), (1.0, 13, 12), (4.0, 9, 36)]
)
def test_num_features(multiple, dim, expected):
    assert classification.num_features(multiple, dim) == expected


def test_a_quick_cell_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(classification, "MULTIPLES", (0.5, 4.0))
    monkeypatch.setattr(classification, "BANDWIDTHS", (1.0, 2.0, 4.0))
    cell = classification.cells(True)[0]
    rows = classification.run(cell, tmp_path)
    assert rows == classification.run(cell, tmp_path), "a cell is determined by its fields"
    pairs = len(classification.FAMILIES) * len(classification.COUPLINGS)
    assert len(rows) == 2 * 2 * pairs
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert (row["change"] is None) == (row["coupling"] == "iid")
        assert row["family"] == "trigonometric" or row["nonpositive"] == 0
    iid, orthogonal, simplex = (row["accuracy"] for row in rows[:3])
    assert rows[1]["change"] == pytest.approx(orthogonal - iid, abs=2e-5)
    assert rows[2]["change"] == pytest.approx(simplex - orthogonal, abs=2e-5)
    assert set(classification.measured(rows)) == {"simplex-features", "simplex-exact"}
    assert "wine" in classification.summary(rows)
    classification.draw(rows, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"accuracy.png", "gains.png"}


def test_average_of_independent_intervals():
    rows = [{"a": 1.0, "a_high": 1.3}, {"a": 2.0, "a_high": 2.4}]
    assert classification_report.average(rows, "a") == pytest.approx((1.5, 1.25, 1.75))
