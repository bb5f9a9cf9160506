"""The sentence-encoder experiment: its metrics against naive figures, a small run, its report."""

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from bochner.catalog import spec
from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import check_flat, checked_cells
from experiments.darkformer import encoder, encoder_report, texts
from experiments.darkformer.contestants import AVERAGING, CONTESTANTS, Conversion, needs_data
from experiments.darkformer.similarity import compare_embeddings, head_errors

TINY = {"layers": 6, "length": 24, "documents": 3, "each": 2, "fitted": 4, "heads_on": 2}


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_embeddings_are_compared_pair_by_pair(generator):
    exact = unit(torch.randn(7, 5, generator=generator, dtype=torch.float64))
    found = unit(exact + 0.4 * torch.randn(7, 5, generator=generator, dtype=torch.float64))
    values = compare_embeddings(exact, found)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    similarities = [[float(x[i] @ x[j]) for i, j in pairs] for x in (exact, found)]
    assert values["ranking"] == pytest.approx(spearmanr(*similarities).statistic)
    cosines = [float(a @ b) for a, b in zip(exact, found, strict=True)]
    assert values["cosine"] == pytest.approx(sum(cosines) / 7)
    assert values["worst"] == pytest.approx(min(cosines))

    def nearest(x, i):
        return max((j for j in range(7) if j != i), key=lambda j: float(x[i] @ x[j]))

    same = [nearest(exact, i) == nearest(found, i) for i in range(7)]
    assert values["neighbour"] == pytest.approx(sum(same) / 7)
    assert 0 < sum(same) < 7, "the test should see both"


def test_the_original_has_no_error(generator):
    exact = unit(torch.randn(6, 5, generator=generator, dtype=torch.float64))
    values = compare_embeddings(exact, exact.clone())
    assert values == pytest.approx(dict.fromkeys(values, 1.0))


def test_head_errors_are_relative_to_each_head(generator):
    exact = torch.randn(2, 3, 5, 4, generator=generator)
    found = exact + torch.tensor([0.0, 1.0, 2.0])[:, None, None] * exact
    assert torch.allclose(head_errors(exact, found), torch.tensor([0.0, 1.0, 2.0]).expand(2, 3))


def test_windows_are_of_single_documents(monkeypatch):
    class Words:
        model_max_length = 100

        def __call__(self, text, **kwargs):
            return {"input_ids": [int(word) for word in text.split()]}

    class Texts:
        evaluation = ("1 2 3 4 5", "6", "11 12 13 14", "21 22 23 24 25")
        source = "made up"

    monkeypatch.setattr(texts, "demo_texts", Texts)
    monkeypatch.setattr("bochner.data.text._special_tokens", lambda tokenizer: ([], []))
    found = texts._windows(Words(), "evaluation", 2, 2, 2)
    assert found.tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]]
    with pytest.raises(ValueError, match="3 documents have 2 windows of 2 tokens, expected 4"):
        texts._windows(Words(), "evaluation", 4, 2, 2)


def test_contestants_are_in_the_catalogue():
    for name in CONTESTANTS:
        assert name == AVERAGING or spec(name).name == name
        assert needs_data(name) == (name != AVERAGING and spec(name).needs_data)


@pytest.mark.parametrize("quick", [True, False])
def test_cells(quick):
    cells = checked_cells(encoder.EXPERIMENT, quick)
    models = [c for c in cells if c["part"] == "model"]
    assert {c["map"] for c in models} == set(CONTESTANTS)
    assert all(CONTESTANTS[c["map"]].trainable for c in models if c["steps"])
    assert {c["map"] for c in models if c["steps"]} == {"dark", "calibrated"}
    assert len([c for c in cells if c["part"] == "existence"]) == 1
    if not quick:
        assert {c["columns"] for c in models} == {1, 32, 64, 128, 256}
        assert {c["seed"] for c in models} == {0, 1, 2}


def test_existence_is_that_of_the_covariances(generator, monkeypatch):
    """Four heads: small, large, large keys only (separate exists, pooled not), and small again."""
    scales = torch.tensor([[0.3, 0.3], [1.5, 1.5], [0.2, 1.2], [0.1, 0.1]])
    q, k = (
        scales[:, i, None, None] * torch.randn(2, 4, 4000, 3, generator=generator) for i in (0, 1)
    )
    layer = type("Layer", (), {"q": q, "k": k})
    monkeypatch.setattr("bochner.transformers.collect_qkv", lambda model, windows: [layer])
    row = encoder.existence({"part": "existence", "fitted": 4, "length": 16})
    # pooled (0.04 + 1.44) / 2 = 0.74 > 1/2; 1/1.08 + 1/3.88 - 1 > 0; sqrt(0.04 * 1.44) = 0.24 < 1/2
    assert (row["heads"], row["pooled"], row["separate"], row["balanced"]) == (4, 2, 3, 3)


def test_a_small_run_of_a_map_without_data(tmp_path):
    cell = {"part": "model", "map": "positive", "columns": 32, "window": 0, "sinks": 0, "seed": 1}
    (row,) = encoder.run({**cell, "steps": 0, **TINY}, tmp_path)
    assert row["stage"] == "as drawn"
    assert 0.3 < row["cosine"] < 1.0
    (averaging,) = encoder.run({**cell, "steps": 0, **TINY, "map": AVERAGING}, tmp_path)
    original = encoder.exact(3, 2, 24, 2)
    assert averaging["error"] == pytest.approx(
        float(torch.cat(original.averaging, -1).median()), rel=1e-3
    )
    assert averaging["error_mean"] == pytest.approx(
        float(torch.cat(original.averaging, -1).mean()), rel=1e-3
    )


def test_a_map_that_needs_data_is_calibrated_and_one_that_can_be_is_trained(tmp_path):
    cell = {"part": "model", "map": "dark", "columns": 16, "window": 4, "sinks": 1, "seed": 0}
    first, second = encoder.run({**cell, "steps": 3, **TINY}, tmp_path)
    assert (first["stage"], second["stage"]) == ("calibrated", "finetuned")
    assert first["error"] != second["error"]


@pytest.fixture
def rows(monkeypatch):
    """Rows of all quick cells, with figures in place of measurements."""

    def figures(model, cell):
        columns = float(cell["columns"])
        error = 0.8 if cell["map"] in (AVERAGING, "positive") else 0.5 / columns**0.1
        values = {"cosine": 1 - error / 2, "worst": 0.1, "ranking": 0.9, "neighbour": 0.5}
        return {**values, "error": error, "error_mean": error + 0.1, "better": 0.5}

    monkeypatch.setattr(encoder, "measure", figures)
    monkeypatch.setattr(Conversion, "apply", lambda self, model, batches: None)
    monkeypatch.setattr(encoder, "distil", lambda *args: [])
    monkeypatch.setattr(encoder, "minilm_targets", lambda *args: [])
    monkeypatch.setattr(
        encoder,
        "existence",
        lambda cell: (
            cell
            | {"heads": 72, "pooled": 10, "separate": 28, "balanced": 30}
            | {"eigenvalue": 0.8, "source": "made up"}
        ),
    )
    return [row for cell in encoder.cells(True) for row in encoder.run(cell, Path())]


def test_rows_give_claims_tables_and_pictures(rows, tmp_path):
    check_flat(rows, "darkformer-encoder")
    file = Path(encoder.__file__).parent / "claims" / "encoder.toml"
    claims = read_claims(file, "darkformer-encoder")
    table = claim_rows(claims, encoder.EXPERIMENT.measured(rows))
    assert len(table) == len(encoder_report.CLAIMED) + 3
    text = encoder_report.summary(rows)
    assert "the output error lies below that of averaging (0.80) for FAVOR++, FAVOR#" in text
    assert "exists on 10 of 72 heads" in text
    assert "0.50 → 0.50" not in text.split("### After finetuning")[0]
    encoder_report.draw(rows, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["cosine.png", "error.png"]
