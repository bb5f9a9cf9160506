"""The tagger: counts, transitions that are counted and learned, ways around a table, its report."""

from pathlib import Path

import pytest
import torch

from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import check_flat, checked_cells
from bochner.structured import Chain, Dense
from experiments.structured import (
    tagger,
    tagger_corpus,
    tagger_costs,
    tagger_replaced,
    tagger_report,
    tagger_training,
)
from experiments.structured.tagger_model import bigrams, counted_features, fitted_embeddings
from experiments.structured.tagger_training import Tagger, judged, low_rank_transitions


def verses(count, seed=0):
    """Labels that alternate between two testaments' words; words that are ambiguous between the two."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        side = "HG"[int(torch.rand((), generator=g) < 0.5)]
        length = int(torch.randint(2, 6, (), generator=g))
        draws = torch.randint(0, 6, (length,), generator=g).tolist()
        found.append(tuple((f"w{d}", f"{side}{d}") for d in draws))
    return found


@pytest.fixture
def small(monkeypatch):
    made = tagger_corpus.corpus(verses(160))
    for module in (tagger, tagger_replaced, tagger_costs):
        monkeypatch.setattr(module, "bible", lambda count: made)
    return made


def test_words_and_labels_become_integers():
    first = (("And", "G1"), ("the high priest", "G2"), ("and", "H1"))
    made = tagger_corpus.corpus([first, (("priest", "H2"), ("priest", "H2"))])
    words = made.words.tolist()
    assert words[0] == words[2] == words[0]
    assert words[1] == words[3] == words[4]  # the last part that is known
    assert made.label_names == ("G1", "G2", "H1", "H2")
    assert made.hebrew().tolist() == [False, False, True, True]
    assert made.context[0].tolist() == [0, 0, words[0], words[1], words[2]]
    assert made.context[3].tolist() == [0, 0, words[3], words[4], 0]
    assert made.padded_labels(torch.tensor([0, 1])).tolist() == [[0, 1, 2], [3, 3, 0]]


def test_a_word_seen_once_or_only_in_the_test_is_unknown():
    found = [(("seen", "H1"),)] * 7 + [(("test", "H1"),)] + [(("once", "H1"), ("seen", "H1"))]
    made = tagger_corpus.corpus(found)
    assert made.test.tolist() == [7]
    assert made.words[7] == made.words[8] == tagger_corpus.UNKNOWN != made.words[0]


def test_counts_are_those_of_the_verses_that_they_are_given(small):
    counts = tagger_corpus.LabelCounts(small, small.train)
    found = counts.log_probabilities(torch.arange(small.num_words)).exp()
    assert torch.allclose(found.sum(1), torch.ones(small.num_words), atol=1e-5)
    tokens = small.tokens(small.train)
    word, label = small.words[0], small.labels[0]
    of_word = small.words[tokens] == word
    both = float((of_word & (small.labels[tokens] == label)).sum())
    prior = (float((small.labels[tokens] == label).sum()) + 0.1) / (
        len(tokens) + 0.1 * small.num_labels
    )
    expected = (both + 2 * prior) / (float(of_word.sum()) + 2)
    assert float(found[word, label]) == pytest.approx(expected, rel=1e-4)
    unseen = tagger_corpus.LabelCounts(small, small.train[:0])
    assert float(unseen.log_probabilities(torch.tensor([2])).exp().std()) < 1e-6


def test_bigrams_stay_inside_training_verses(small):
    before, after, counts = bigrams(small)
    assert int(counts.sum()) == int((small.lengths[small.train] - 1).sum())
    names = small.label_names
    assert all(names[x][0] == names[y][0] for x, y in zip(before, after, strict=True))


def test_counted_features_are_a_model_of_bigrams(small):
    """They are p(y | x) / p(y), and know that the testament does not change inside a verse."""
    left, right = counted_features(small, 2, torch.Generator().manual_seed(0))
    prior = tagger_corpus.LabelCounts(small, small.train).prior
    table = (left.exp() @ right.exp().T) * prior
    assert torch.allclose(table.sum(1), torch.ones(small.num_labels), atol=1e-3)
    hebrew = small.hebrew()
    # pseudo-counts of 3 at every x and 200 for each of two classes hold it back
    assert float(table[hebrew][:, hebrew].sum(1).mean()) > 0.6


def test_fitted_embeddings_know_the_bigrams(small):
    a, b = fitted_embeddings(small, 4, 40, torch.Generator().manual_seed(0))
    prior = tagger_corpus.LabelCounts(small, small.train).prior
    table = (a @ b.T + prior.log()).softmax(1)
    hebrew = small.hebrew()
    assert float(table[hebrew][:, hebrew].sum(1).mean()) > 0.9


def test_every_training_verse_is_once_in_a_batch_of_its_fold(small):
    found = tagger_training.batches(small, 3)
    assert sorted(torch.cat(found).tolist()) == small.train.tolist()
    assert all(len({int(v) % tagger_corpus.FOLDS for v in batch}) == 1 for batch in found)


def test_training_learns_what_transitions_know(small, tmp_path):
    """No word tells the testament, but all labels of a verse have the same: a chain can know that."""
    cell = {"part": "training", "seed": 0, "verses": 0, "tested": 0, "dim": 8}
    alone = tagger.run({**cell, "rank": 0}, tmp_path)
    chain = tagger.run({**cell, "rank": 4}, tmp_path)
    assert [r["stage"] for r in chain] == ["one pass", "two passes"]
    assert chain[1]["nll"] < alone[1]["nll"]
    check_flat([*alone, *chain], "structured-tagger")


def test_training_goes_on_from_its_checkpoint(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tagger_training, "EVERY", 2)

    def fresh():
        found = Tagger(small, low_rank_transitions(small, 3, 0), 0)
        states = tagger_training.first_pass(small, 0, tmp_path)
        found.emissions.load_state_dict(states["emissions"])
        return found

    whole = fresh()
    tagger_training.second_pass(whole, 0, tmp_path / "whole.pt")
    step, count = tagger_training._step, []

    def interrupted(*args):
        if len(count) == 5:
            raise KeyboardInterrupt
        count.append(1)
        step(*args)

    monkeypatch.setattr(tagger_training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tagger_training.second_pass(fresh(), 0, tmp_path / "parts.pt")
    monkeypatch.setattr(tagger_training, "_step", step)
    parts = fresh()
    tagger_training.second_pass(parts, 0, tmp_path / "parts.pt")
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, parts.state_dict()[name], atol=1e-6), name


def test_judged_is_the_share_of_likeliest_labels(small):
    model = Tagger(small, None, 0)
    found = judged(model, small.test)
    order = small.test[small.lengths[small.test].argsort(stable=True)]
    tokens = small.tokens(order)
    log_p = model.emissions(order).detach().log_softmax(-1)
    right = small.labels[tokens]
    assert found.accuracy == pytest.approx(
        float((log_p.argmax(-1) == right).double().mean()), abs=1e-9
    )
    assert found.nll == pytest.approx(-float(log_p[range(len(right)), right].mean()), rel=1e-4)


def test_ways_around_the_table_agree_where_they_are_exact():
    """The recursion with any matrix is the chain's; a beam of all states is the table."""
    g = torch.Generator().manual_seed(1)
    a, b = 0.4 * torch.randn(2, 9, 3, generator=g)
    u, lengths = torch.randn(3, 5, 9, generator=g), torch.tensor([5, 3, 1])
    batch = tagger_replaced.Verses(u, lengths, a, b)
    chain = Chain(Dense((a @ b.T).unsqueeze(0)), u, lengths=lengths)
    for answer in (tagger_replaced.exact(a, b), tagger_replaced.beam, tagger_replaced.hybrid):
        marginals, log_z = answer(batch)
        assert torch.allclose(log_z.float(), chain.log_partition, atol=1e-4)
        assert torch.allclose(marginals, chain.marginals, atol=1e-5)
    frequency = torch.rand(9, generator=g) + 0.1
    marginals, log_z = tagger_replaced.truncated(a, b, frequency)(batch)  # of full rank here
    assert torch.allclose(log_z.float(), chain.log_partition, atol=1e-3)
    marginals, log_z = tagger_replaced.without(batch)
    there = torch.arange(5) < lengths.unsqueeze(-1)
    assert torch.allclose(log_z, torch.where(there, u.logsumexp(-1), 0.0).sum(-1), atol=1e-4)


@pytest.mark.parametrize("quick", [True, False])
def test_cells(quick):
    cells = checked_cells(tagger.EXPERIMENT, quick)
    seeds = {(c["rank"], c["seed"]) for c in cells if c["part"] == "training"}
    if not quick:
        assert {(0, 0), (0, 1), (0, 2), (64, 0), (64, 1), (64, 2), (16, 0)} == seeds


def test_rows_give_claims_tables_and_a_picture(small, tmp_path):
    cells = [c for c in tagger.cells(True)]
    rows = [row for cell in cells for row in tagger.run(dict(cell), tmp_path)]
    check_flat(rows, "structured-tagger")
    file = Path(tagger.__file__).parent / "claims" / "tagger.toml"
    values = tagger_report.measured(rows)
    assert values["labels"] == small.num_labels
    assert claim_rows(read_claims(file, "structured-tagger"), values)
    text = tagger_report.summary(rows)
    assert "| low rank, m = 4 | two passes | 1 |" in text
    assert "| exact table |" in text
    assert "`diagnose()` on the random features says **" in text
    assert "1 seed, seed by seed; one draw, no interval" in text
    tagger_report.draw(rows, tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == ["accuracy.png"]


def test_costs_are_extrapolated_by_the_power_of_the_program():
    measured = [{"states": 100, "seconds": 2.0, "reason": None}]
    row = tagger_costs._for_all("torch-struct", 1000, 11 * 3600, measured)
    assert row["seconds"] == pytest.approx(2000.0)
    assert row["epoch_hours"] == pytest.approx(2000.0)
    assert tagger_costs.laid_out("torch-struct", 14057) == pytest.approx(88.9e12, rel=1e-3)
    none = tagger_costs._for_all("torch-struct", 1000, 1, [{"seconds": None, "reason": "absent"}])
    assert (none["seconds"], none["reason"]) == (None, "absent")
