"""The whitening experiment on passages made here: what is sampled, what is judged, and the bookkeeping."""

import collections
from pathlib import Path

import numpy as np
import pytest

from bochner.reproduce.claims import read_claims
from experiments.kernel_machines import passages as brown
from experiments.kernel_machines import whitening, whitening_report

CLAIMS = Path(whitening.__file__).parent / "claims" / "whitening.toml"


@pytest.fixture
def found(monkeypatch):
    """Passages of 40 documents; an embedding says who speaks, in what, and where from."""
    made = [
        brown.Passage(f"{d} {i}", f"c{d:02d}", bool(d % 2), i % 3 == 0)
        for d in range(40)
        for i in range(20)
    ]

    def embeddings(chosen):
        rng = np.random.default_rng(0)
        places = np.random.default_rng(1).standard_normal((40, 24))
        rows = np.stack([places[int(p.document[1:])] for p in chosen])
        rows += 0.3 * rng.standard_normal(rows.shape)
        rows[:, 0] += [3.0 * p.fiction for p in chosen]
        rows[:, 1] += [2.0 * p.person for p in chosen]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    monkeypatch.setattr(whitening, "passages", lambda: made)
    monkeypatch.setattr(whitening, "embeddings", embeddings)
    return made


def test_the_shortcut_works_in_training_rows_only(found):
    train, test, groups = whitening.sample(found, 200, 15, np.random.default_rng(0))
    assert len(train) == 200
    assert np.mean([p.fiction == p.person for p in train]) == pytest.approx(0.95)
    assert not set(train) & set(test)
    counts = collections.Counter((p.fiction, p.person) for p in test)
    assert counts == dict.fromkeys(whitening.GROUPS, 15)
    for group, members in zip(whitening.GROUPS, np.split(np.arange(60), 4), strict=True):
        assert {(test[i].fiction, test[i].person) for i in members} == {group}
        assert len(set(groups[members])) == 1


def test_documents_stay_together(found):
    chosen = whitening.documents(found, 6, 10, np.random.default_rng(0))
    assert len(set(chosen)) == 60
    names = [p.document for p in chosen]
    assert len(set(names)) == 6
    assert all(len(set(names[start : start + 10])) == 1 for start in range(0, 60, 10))


def test_retrieval_by_hand():
    rows = np.array([[1.0, 0.0], [3.0, 0.3], [0.0, 2.0], [1.0, -1.0]])
    found = whitening.retrieval(rows, np.array(["a", "a", "b", "b"]))
    assert found["same_document"] == 0.5  # the last two are nearer to the second
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in (0, 1) for j in (2, 3)]
    assert found["mean_cosine"] == pytest.approx(np.mean(pairs))


def test_linear_whitening_has_covariance_one(monkeypatch):
    monkeypatch.setattr(whitening, "SHRINKAGE", 0.0)
    rows = np.random.default_rng(0).standard_normal((500, 5)) * [1, 2, 3, 4, 5] + 3
    assert np.allclose(np.cov(whitening.linear(rows)(rows).T, bias=True), np.eye(5))


def test_a_cell_end_to_end(found, tmp_path):
    (cell,) = whitening.cells(True)
    rows = whitening.run(cell, tmp_path)
    assert rows == whitening.run(cell, tmp_path), "a cell is determined by its fields"
    retrieved = whitening_report.pick(rows, question="retrieval")
    assert len(retrieved) == 6
    assert retrieved[0]["same_document"] > 0.9
    told = whitening_report.pick(rows, question="shortcut", C=1.0)
    assert [row["rows"] for row in told][-2:] == [
        "decorrelation weights",
        "weights that know the groups",
    ]
    worst = {row["rows"]: row["worst"] for row in told}
    assert worst["weights that know the groups"] > worst["embeddings"]
    found_values = whitening_report.measured(rows)
    assert set(found_values) == {c.id for c in read_claims(CLAIMS, "kernel-whitening").claims}
    assert found_values["isotropy"] < 1e-6
    gain = whitening_report.gain(rows, "whitened", "embeddings", "worst", 1.0)
    assert gain.value == pytest.approx(worst["whitened"] - worst["embeddings"])
    text = whitening_report.summary(rows)
    assert "Nyström, whitened" in text
    assert "points above the embeddings" in text
    whitening_report.draw(rows, tmp_path)
    assert (tmp_path / "whitening.png").exists()


def test_passages_say_who_speaks(monkeypatch):
    texts = {
        "ca01": "The jury said nothing of it on Friday, and the court was closed at noon.",
        "ck01": "I told him that we would not go there again before the end of May.\n\nToo short.",
    }
    monkeypatch.setattr(brown, "brown_documents", lambda categories: texts)
    first, second = brown.passages()
    assert (first.fiction, first.person, first.document) == (False, False, "ca01")
    assert (second.fiction, second.person) == (True, True)
    assert len(whitening.cells(False)) == 5
