"""The letters experiment on words made here: what is compared is what it says, and the bookkeeping."""

from pathlib import Path

import pytest
import torch

from bochner.data import Letters
from bochner.reproduce.claims import read_claims
from bochner.structured import CRF
from experiments.structured import letters, letters_report

CLAIMS = Path(letters.__file__).parent / "claims" / "letters.toml"


@pytest.fixture
def words(generator):
    """Words of 26 letters in a ring, whose images say little of them."""
    count, longest = 200, 6
    start = torch.randint(26, (count, 1), generator=generator)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator)
    labels = (start + torch.arange(longest)) % 26
    noise = torch.rand(count, longest, 128, generator=generator)
    pixels = noise < 0.1 + 0.5 * (torch.arange(128) % 26 == labels.unsqueeze(-1))
    shown = torch.arange(longest) < lengths.unsqueeze(-1)
    return Letters(pixels & shown.unsqueeze(-1), labels * shown, lengths, torch.arange(count) % 10)


@pytest.fixture
def quick(monkeypatch, words):
    monkeypatch.setattr(letters, "ocr_letters", lambda: words)
    monkeypatch.setattr(letters, "REPLACED", ((16, 0), (16, 4), (16, 26)))
    monkeypatch.setattr(letters, "DIAGNOSED", 2)
    return [cell | {"steps": 60} for cell in letters.cells(True)]


def test_judged_by_hand(words, generator):
    tagger = letters.Tagger(letters.KINDS["table"], generator)
    with torch.no_grad():
        tagger.emissions.weight.copy_(torch.randn(26, 128, generator=generator) / 5)
        found = letters.judged(tagger.chain(words), words)
        emissions = tagger.emissions(words.pixels.float())
        crf: CRF = tagger.crf
        best, likely = (f(emissions, words.mask) for f in (crf.decode, crf.posterior_decode))
        expected = crf(emissions, words.labels, words.mask, reduction="token_mean")
        z = [
            crf.chain(emissions[i : i + 1, :n]).log_partition.item()
            for i, n in enumerate(words.lengths.tolist())
        ]
    truth = [row[:n] for row, n in zip(words.labels.tolist(), words.lengths.tolist(), strict=True)]
    total = int(words.lengths.sum())

    def right(paths):
        pairs = zip(paths, truth, strict=True)
        return sum(a == b for p, t in pairs for a, b in zip(p, t, strict=True)) / total

    assert found.accuracy == pytest.approx(right(likely))
    assert found.viterbi == pytest.approx(right(best))
    assert found.words == pytest.approx(sum(p == t for p, t in zip(best, truth, strict=True)) / 200)
    assert found.log_likelihood == pytest.approx(expected.item(), rel=1e-5)
    assert found.log_z.tolist() == pytest.approx(z, rel=1e-5)


def test_no_transitions_are_a_softmax_for_every_letter(words, generator):
    tagger = letters.Tagger(letters.KINDS["none"], generator)
    with torch.no_grad():
        tagger.emissions.weight.copy_(torch.randn(26, 128, generator=generator))
        tagger.crf.start_transitions.zero_()
        tagger.crf.end_transitions.zero_()
        emissions = tagger.emissions(words.pixels.float())
        expected = emissions.softmax(-1) * words.mask.unsqueeze(-1)
        assert torch.allclose(tagger.chain(words).marginals, expected, atol=1e-5)


def test_cells_end_to_end(quick, tmp_path):
    rows = [row for cell in quick for row in letters.run(cell, tmp_path)]
    again = letters.run(quick[-1], tmp_path)
    assert {k: v for k, v in again[0].items() if k != "seconds"} == {
        k: v for k, v in rows[-1].items() if k != "seconds"
    }, "a cell is determined by its fields"
    by_kind = {row["transitions"]: row for row in letters_report.trained(rows)}
    assert list(by_kind) == ["none", "table", "embeddings", "low rank 26", "hybrid"]
    assert by_kind["table"]["accuracy"] > by_kind["none"]["accuracy"]
    exact, features, beam, every = letters_report.replaced(rows)
    assert exact["log_z_error"] == 0
    assert features["log_z_error"] > beam["log_z_error"] > every["log_z_error"]
    assert every["log_z_error"] < 1e-5
    assert {"chi", "eta", "verdict"} <= set(features)
    assert every["accuracy"] == exact["accuracy"]

    found = letters_report.measured(rows)
    assert set(found) == {claim.id for claim in read_claims(CLAIMS, "structured-letters").claims}
    assert found["rank-26-identity"] < 1e-3
    low = by_kind["low rank 26"]["accuracy"] - by_kind["table"]["accuracy"]
    assert letters_report.differences(rows, "low rank 26", "accuracy").value == pytest.approx(low)
    summary = letters_report.summary(rows)
    assert "table (exact)" in summary
    assert "random features | 16" in summary
    letters_report.draw(rows, tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == ["letters.png"]


def test_cells_of_the_full_form():
    cells = letters.cells(False)
    assert len(cells) == letters.FOLDS * len(letters.KINDS)
    assert {cell["fold"] for cell in cells} == set(range(letters.FOLDS))


def test_differences_are_paired_by_fold():
    rows = [
        {"how": "trained", "transitions": kind, "fold": fold, "accuracy": value}
        for kind, values in (("table", (0.5, 0.7, 0.9)), ("hybrid", (0.4, 0.6, 0.8)))
        for fold, value in enumerate(values)
    ]
    found = letters_report.differences(rows, "hybrid", "accuracy")
    assert (found.low, found.high) == pytest.approx((-0.1, -0.1))
    assert letters_report.differences(rows, "none", "accuracy") is None
    assert letters_report.text(found, 100, 2, "+") == "-10.00 ± 0.00"
