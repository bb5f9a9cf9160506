"""The language-model experiment: losses against transformers' own, masks, lengths, its report."""

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import check_flat, checked_cells
from experiments.darkformer import decoder, decoder_report, next_token
from experiments.darkformer.contestants import AVERAGING, CONTESTANTS, EXACT, TRUNCATED, Conversion


@pytest.fixture
def llama():
    """Two layers of four query and two key/value heads, in place of SmolLM2."""
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for layer in model.model.layers:  # attention that matters
                layer.self_attn.q_proj.weight *= 60
                layer.self_attn.v_proj.weight *= 40
    return model


@pytest.fixture
def small(monkeypatch, llama, generator):
    ids = torch.randint(60, (12, 80), generator=generator)
    monkeypatch.setattr(decoder, "language_model", lambda: llama)
    monkeypatch.setattr(decoder, "smollm2_windows", lambda part, documents, n: ids[:documents, :n])
    monkeypatch.setattr(decoder, "source", lambda: "made up")
    return ids


def test_losses_are_those_of_the_model(llama, generator, monkeypatch):
    monkeypatch.setattr(next_token, "SLICE", 7)
    ids = torch.randint(60, (30,), generator=generator)
    losses = decoder.token_losses(llama, ids)
    with torch.no_grad():
        expected = llama(input_ids=ids[None], labels=ids[None]).loss
    assert losses.shape == (29,)
    assert float(losses.mean()) == pytest.approx(float(expected), rel=1e-5)


def test_the_window_alone_sees_nothing_else(llama, generator):
    ids = torch.randint(60, (40,), generator=generator)
    mask = decoder.band(40, window=5, sinks=2)
    for i in range(40):
        seen = mask[0, 0, i].nonzero().flatten().tolist()
        assert seen == [j for j in range(i + 1) if i - j < 5 or j < 2]
    one_layer = llama
    one_layer.model.layers = one_layer.model.layers[:1]
    before = decoder.token_losses(one_layer, ids, mask)
    other = ids.clone()
    other[10] = (other[10] + 1) % 60
    after = decoder.token_losses(one_layer, other, mask)
    same = [i for i in range(39) if i not in range(9, 15)]  # 9 predicts it, 10 to 14 see it
    assert torch.equal(before[same], after[same])
    assert not torch.allclose(before[10:15], after[10:15])
    full = decoder.token_losses(one_layer, ids)
    assert torch.allclose(before[:5], full[:5])
    assert not torch.allclose(before[10:], full[10:])


def test_means_are_over_the_first_positions(monkeypatch):
    monkeypatch.setattr(decoder, "LENGTHS", (3, 5, 9))
    losses = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [0.0] * 6])
    row = decoder.by_length(losses)
    found = {name: row[name] for name in row if name.startswith("loss")}
    assert found == {"loss_3": 0.75, "loss_5": 1.875, "loss_7": 5.25}
    assert row["late"] == pytest.approx(28 / 3, rel=1e-4)
    assert row["spread"] == pytest.approx(10.5 / math.sqrt(2) / math.sqrt(2))


@pytest.mark.parametrize("quick", [True, False])
def test_cells(quick):
    cells = checked_cells(decoder.EXPERIMENT, quick)
    names = {c["map"] for c in cells}
    assert {EXACT, TRUNCATED, AVERAGING} <= names
    if not quick:
        assert names == {EXACT, TRUNCATED, *CONTESTANTS}
        assert {c["columns"] for c in cells if c["map"] == "data-aware"} == {32, 64, 256}


def test_a_converted_model_reads_the_same_windows(small, tmp_path, llama):
    texts = {"layers": 2, "length": 40, "documents": 2, "fitted": 4, "fit_length": 32}
    expected = torch.stack([decoder.token_losses(llama, ids) for ids in small[:2, :40]])
    (row,) = decoder.run(decoder.cell(EXACT, 0, False, texts), tmp_path)
    assert row["loss_40"] == pytest.approx(float(expected.mean()), rel=1e-5)
    (row,) = decoder.run(decoder.cell("positive", 8, False, texts), tmp_path)
    assert row["loss_40"] != pytest.approx(float(expected.mean()), rel=1e-3)


def test_a_window_as_long_as_the_text_is_exact(small, tmp_path, monkeypatch, llama):
    monkeypatch.setattr(decoder, "WINDOW", 40)
    texts = {"layers": 2, "length": 40, "documents": 2, "fitted": 4, "fit_length": 32}
    expected = torch.stack([decoder.token_losses(llama, ids) for ids in small[:2, :40]])
    (row,) = decoder.run(decoder.cell(AVERAGING, 1, True, texts), tmp_path)
    assert row["loss_40"] == pytest.approx(float(expected.mean()), rel=1e-4)


@pytest.fixture
def rows(small, monkeypatch):
    """Rows of all quick cells, the model left as it is and losses in their place."""
    levels = {EXACT: 3.0, TRUNCATED: 3.5, AVERAGING: 6.0, "positive": 5.0, "dark": 4.5}
    current = []

    def losses(model, window, mask=None):
        return torch.full((95,), levels.get(current[-1], 4.0))

    def run(cell):
        current.append(cell["map"])
        return decoder.run(cell, Path())

    monkeypatch.setattr(decoder, "token_losses", losses)
    monkeypatch.setattr(Conversion, "apply", lambda self, model, batches: None)
    return [row for cell in decoder.cells(True) for row in run(cell)]


def test_rows_give_claims_tables_and_pictures(rows, tmp_path):
    check_flat(rows, "darkformer-decoder")
    file = Path(decoder.__file__).parent / "claims" / "decoder.toml"
    measured = decoder.EXPERIMENT.measured(rows)
    assert measured["gap-closed-dark"] == pytest.approx(0.25)
    assert measured["gap-closed-calibrated"] == pytest.approx(0.5)
    assert len(claim_rows(read_claims(file, "darkformer-decoder"), measured)) == 3
    text = decoder_report.summary(rows)
    assert f"a lower loss than averaging the values ({math.exp(6):.1f}) has Performer" in text
    assert f"a lower loss than window and sinks alone ({math.exp(3.5):.1f}) has no map" in text
    decoder_report.draw(rows, tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == ["perplexity.png"]
