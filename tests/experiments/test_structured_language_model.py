"""The HMM language model: corpus, growth, checkpoints, approximations after training, a small run."""

import math
from collections import Counter

import pytest
import torch

from experiments.structured import kjv_corpus, language_model, language_posthoc, language_training
from experiments.structured.kjv_corpus import END, UNKNOWN, batches, corpus_of
from experiments.structured.language_posthoc import (
    CENTRED,
    FITTED,
    METHODS,
    PLAIN,
    SIGNED,
    SVD,
    approximated,
    estimated,
    floored,
    row_entropy,
)
from experiments.structured.language_training import Recipe, Training, build, perplexity, trained


@pytest.fixture
def invented(monkeypatch):
    """200 verses of 3 to 9 words out of 12, in place of the Bible."""
    generator = torch.Generator().manual_seed(1)
    verses = {}
    for number in range(200):
        length = int(torch.randint(3, 10, (), generator=generator))
        picks = torch.randint(12, (length,), generator=generator).tolist()
        verses[f"Ge1:{number}"] = " ".join("abcdefghijkl"[min(a, 11)] for a in picks)
    monkeypatch.setattr(kjv_corpus, "kjv_verses", lambda: verses)
    return verses


@pytest.fixture
def corpus(invented):
    return kjv_corpus.read_corpus()


SMALL = Recipe(8, None, 0, epochs=2, tokens=80)


# -- corpus ----------------------------------------------------------------------------------------
def test_every_tenth_verse_tests_and_rare_words_are_unknown():
    verses = [["a"] * 3 + ["rare"]] * 4 + [["b"]] * 6 + [["a", "new"]] * 10
    corpus = corpus_of(verses)
    assert corpus.words == [UNKNOWN, END, "a", "new", "b"]
    assert (len(corpus.train), len(corpus.test)) == (18, 2)
    assert corpus.train[0].tolist() == [2, 2, 2, 0, 1]
    assert [verse.tolist() for verse in corpus.test] == [[4, 1], [2, 3, 1]]
    assert corpus.counts.tolist() == [4, 18, 21, 9, 5]


def test_unigram_perplexity():
    corpus = corpus_of([["a"]] * 20)
    assert corpus.unigram_perplexity == pytest.approx(37 / 18)  # unknown counts once, though unseen


def test_batches_hold_every_verse_once_and_pad_nothing(corpus, generator):
    for given in (None, generator):
        found = batches(corpus.train, 40, given)
        rows = Counter(tuple(row.tolist()) for batch in found for row in batch)
        assert rows == Counter(tuple(verse.tolist()) for verse in corpus.train)
        assert max(batch.numel() for batch in found) <= 40
    again = batches(corpus.train, 40, generator)
    assert [b.shape for b in again] != [b.shape for b in found], "the order is drawn anew"


def test_long_verses_are_left_out(invented):
    invented["long"] = " ".join(["a"] * 61)
    corpus = kjv_corpus.read_corpus()
    assert len(corpus.train) + len(corpus.test) == 200
    assert len(kjv_corpus.read_corpus(20).train) == 18


# -- training --------------------------------------------------------------------------------------
def test_the_perplexity_is_the_product_models(corpus):
    hmm = build(SMALL, corpus)
    with torch.no_grad():
        expected = [float(hmm.log_prob(verse)) for verse in corpus.test]
    words = sum(len(verse) for verse in corpus.test)
    assert perplexity(hmm, corpus) == pytest.approx(math.exp(-sum(expected) / words), rel=1e-4)


def test_the_rate_rises_then_falls():
    shares = [language_training.schedule(step, 100) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.96])
    assert shares[50] == 0.5
    assert shares[-1] == language_training.LAST_RATE


@pytest.mark.parametrize("rank", [None, 3])
def test_a_grown_model_is_its_parent_but_for_the_noise(corpus, monkeypatch, rank):
    parent = build(Recipe(5, rank, 0), corpus)
    hmm = build(Recipe(20, rank, 1), corpus)
    batch = batches(corpus.test, 40)[0]
    monkeypatch.setattr(language_training, "NOISE", 0.0)
    language_training.grow_(hmm, parent, torch.Generator().manual_seed(0))
    assert torch.allclose(hmm.log_prob(batch), parent.log_prob(batch), atol=1e-4)
    monkeypatch.setattr(language_training, "NOISE", 0.5)
    language_training.grow_(hmm, parent, torch.Generator().manual_seed(0))
    assert not torch.allclose(hmm.log_prob(batch), parent.log_prob(batch), atol=1e-2)
    assert torch.equal(hmm.emissions.words, parent.emissions.words)


def test_an_interrupted_training_ends_at_the_same_model(corpus, tmp_path, monkeypatch):
    whole = trained(SMALL, corpus, tmp_path / "whole")
    assert [round(epochs, 6) for epochs, _ in whole.curve] == [1, 2]
    assert whole.curve[-1][1] < perplexity(build(SMALL, corpus), corpus), "it learns"

    class Interrupted(Exception):
        pass

    update = Training._update
    calls = iter(range(10_000))

    def interrupted(self, batch, share):
        if next(calls) == 30:
            raise Interrupted
        update(self, batch, share)

    monkeypatch.setattr(language_training, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(Training, "_update", interrupted)
    with pytest.raises(Interrupted):
        trained(SMALL, corpus, tmp_path / "cut")
    resumed = trained(SMALL, corpus, tmp_path / "cut")
    assert next(calls) == whole.step + 1, "only what was missing is done"
    for one, other in zip(whole.hmm.parameters(), resumed.hmm.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.curve == whole.curve


def test_large_models_start_from_smaller_ones():
    chosen = language_model.recipe(16_384, 64, 0, quick=False)
    assert chosen.passes == pytest.approx(4.4)
    assert chosen.parent is not None
    assert chosen.parent.parent == language_model.recipe(1_024, 64, 0, quick=False)
    recipes = [chosen, chosen.parent, chosen.parent.parent]
    assert len({recipe.digest for recipe in recipes}) == 3


# -- approximations --------------------------------------------------------------------------------
@pytest.fixture
def hmm(corpus):
    return build(SMALL, corpus)


@pytest.mark.parametrize("method", [PLAIN, CENTRED, FITTED, SIGNED])
def test_estimates_are_those_of_the_exact_weights(method, generator):
    before = 0.3 * torch.randn(6, 4, generator=generator, dtype=torch.float64) + 0.2
    after = 0.3 * torch.randn(6, 4, generator=generator, dtype=torch.float64) - 0.3
    log_abs, sign = estimated(before, after, method, 4096, generator)
    assert bool((sign == 1).all())
    assert float((log_abs - before @ after.T).abs().max()) < 0.1


def test_the_whole_svd_is_the_exact_table(hmm, corpus, generator):
    found = approximated(hmm, corpus, SVD, 8, generator=generator)
    assert found["perplexity"] == pytest.approx(perplexity(hmm, corpus), rel=1e-4)
    assert abs(float(found["row_kl"])) < 1e-6
    assert found["replaced"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_more_features_are_nearer(hmm, corpus, method):
    def divergence(size):
        generator = torch.Generator().manual_seed(3)
        return float(approximated(hmm, corpus, method, size, generator=generator)["row_kl"])

    few, many = (1, 7) if method == SVD else (2, 8192)
    assert 0 <= divergence(many) < divergence(few)


def test_floored():
    log, replaced = floored(torch.tensor([[3.0, 1.0, 0.0, -2.0], [1.0, 1.0, 1.0, 1.0]]))
    assert torch.allclose(log.exp().sum(-1), torch.ones(2))
    assert replaced == 2 / 8
    assert log[0, 3] == log[0, 2] == pytest.approx(math.log(2.5e-4), abs=1e-3)
    assert log[0, 0] - log[0, 1] == pytest.approx(math.log(3))


def test_row_entropy_of_equal_states(corpus):
    hmm = build(SMALL, corpus)
    with torch.no_grad():
        hmm.transitions.before.zero_()
    assert row_entropy(hmm) == pytest.approx(math.log(8))


# -- the experiment --------------------------------------------------------------------------------
def test_a_small_run_from_cells_to_files(invented, tmp_path, monkeypatch):
    experiment = language_model.EXPERIMENT
    monkeypatch.setattr(language_training, "DIM", 4)
    monkeypatch.setattr(language_model, "QUICK_VERSES", 100)
    rows = [row for cell in experiment.cells(True) for row in experiment.run(cell, tmp_path)]
    found = experiment.measured(rows)
    models = {(r["states"], r["rank"]): r for r in rows if r["kind"] == "model"}
    assert found["exact"] == pytest.approx(models[32, None]["perplexity"])
    expected = models[128, 8]["perplexity"] / models[32, None]["perplexity"]
    assert found["low-rank-ratio"] == pytest.approx(expected)
    assert models[512, 8]["passes"] == 2
    text = experiment.summary(rows)
    assert "nan" not in text
    assert all(name in text for name in (PLAIN, SVD, "rank 8", "exact softmax"))
    experiment.draw(rows, tmp_path)
    assert {"states.png", "replaced.png"} <= {path.name for path in tmp_path.iterdir()}


def test_all_cells_are_different_and_the_parents_are_there():
    full = language_model.cells(quick=False)
    models = [(c["states"], c["rank"], c["seed"]) for c in full if c["part"] == "model"]
    assert len(set(models)) == len(models)
    for states, rank, seed in models:
        parent = language_model.recipe(states, rank, seed, quick=False).parent
        if parent is not None:
            place = models.index((parent.states, parent.rank, parent.seed))
            assert place < models.index((states, rank, seed))
    assert {c["method"] for c in full if c["part"] == "posthoc"} == set(language_posthoc.METHODS)
