"""The language-model experiment: metrics against scipy, the loss against torch's, a small run."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from bochner.data.text import BROWN_CATEGORIES
from bochner.features import SignedLog
from bochner.fitting import UnfittedMap
from bochner.request import Request
from experiments.hybrid_random_features import brown_lstm, language_model, softmax_metrics
from experiments.hybrid_random_features.brown_lstm import LanguageModel, Recipe, TiedCrossEntropy
from experiments.hybrid_random_features.softmax_estimators import METHODS
from experiments.hybrid_random_features.softmax_metrics import compare_rows, frobenius

WORDS = 50
SMALL = Recipe(vocabulary=WORDS, hidden=8, bptt=8, batch=4, epochs=2)


def signed(values):
    return SignedLog(values.abs().log(), values.sign())


@pytest.fixture
def rows(generator):
    """(logits, estimates): signed estimates of exp(logits), of any size."""
    logits = 2 * torch.randn(6, WORDS, generator=generator, dtype=torch.float64)
    noise = torch.randn(6, WORDS, generator=generator, dtype=torch.float64)
    return logits, 1e3 * torch.exp(logits) * (0.5 + noise)


# -- metrics ---------------------------------------------------------------------------------------
def test_distances_over_indices_are_those_of_scipy(rows):
    logits, estimates = rows
    found = compare_rows(logits, signed(estimates))
    index = np.arange(WORDS)
    shuffle = torch.randperm(
        WORDS, generator=torch.Generator().manual_seed(softmax_metrics.SHUFFLE_SEED)
    )
    place = torch.argsort(shuffle).numpy()  # where a word stands after renumbering
    for i in range(len(logits)):
        p, r = torch.softmax(logits[i], 0).numpy(), estimates[i].clamp_min(0).numpy()
        expected = scipy.stats.wasserstein_distance(index, index, p, r)
        assert float(found["wasserstein"][i]) == pytest.approx(expected, rel=1e-9)
        expected = scipy.stats.wasserstein_distance(place, place, p, r)
        assert float(found["wasserstein_shuffled"][i]) == pytest.approx(expected, rel=1e-9)
        r /= r.sum()
        assert float(found["kl"][i]) == pytest.approx(scipy.stats.entropy(r, p), rel=1e-9)
        gap = np.abs(np.cumsum(p) - np.cumsum(r))
        assert float(found["ks"][i]) == pytest.approx(gap.max(), rel=1e-9)
        assert float(found["total_variation"][i]) == pytest.approx(0.5 * np.abs(p - r).sum())
        assert float(found["top1"][i]) == float(p.argmax() == r.argmax())


def test_ks_is_that_of_samples():
    """Rows of counts are samples: scipy's two-sample statistic sees the same distributions."""
    counts = torch.tensor([[3.0, 1.0, 0.0, 4.0, 2.0], [1.0, 1.0, 5.0, 2.0, 1.0]])
    samples = [np.repeat(np.arange(5), c.int().numpy()) for c in counts]
    p, r = counts / counts.sum(-1, keepdim=True)
    found = softmax_metrics.compare_distributions(p[None], p.log()[None], r[None])
    expected = scipy.stats.ks_2samp(*samples).statistic
    assert float(found["ks"]) == pytest.approx(expected, rel=1e-6)


def test_size_and_sign_are_of_the_estimates_as_they_are(rows):
    logits, estimates = rows
    found = compare_rows(logits, signed(estimates))
    truth = torch.exp(logits)
    ratio = estimates.sum(-1) / truth.sum(-1)
    assert torch.allclose(found["mass_error"], (ratio - 1).abs())
    assert torch.allclose(found["log_mass_ratio"], ratio.abs().log())
    assert torch.allclose(found["negative"], (estimates < 0).double().mean(-1))
    expected = torch.linalg.norm(estimates - truth) / torch.linalg.norm(truth)
    assert frobenius(found["log_error"], found["log_norm"]) == pytest.approx(float(expected))


def test_the_truth_has_no_error(rows):
    logits, _ = rows
    found = compare_rows(logits, SignedLog(logits + 0.0, torch.ones_like(logits)))
    for name in ("wasserstein", "ks", "total_variation", "kl", "mass_error", "negative"):
        assert float(found[name].abs().max()) < 1e-10
    assert bool((found["top1"] == 1).all())
    assert frobenius(found["log_error"], found["log_norm"]) < 1e-12


def test_a_row_without_a_positive_estimate_becomes_uniform_and_is_counted(rows):
    logits, estimates = rows
    found = compare_rows(logits, signed(-estimates.abs()))
    p = torch.softmax(logits, -1)
    assert bool((found["empty"] == 1).all())
    assert torch.allclose(found["total_variation"], 0.5 * (p - 1 / WORDS).abs().sum(-1))
    zeros = compare_rows(logits, signed(torch.zeros_like(estimates)))
    assert torch.allclose(zeros["mass_error"], torch.ones(6, dtype=torch.float64))
    assert frobenius(zeros["log_error"], zeros["log_norm"]) == pytest.approx(1.0)


def test_estimates_beyond_every_range_have_finite_distances():
    logits = torch.zeros(1, 4)
    huge = SignedLog(torch.tensor([[900.0, 899.0, 100.0, -900.0]]), torch.ones(1, 4))
    found = compare_rows(logits, huge)
    assert float(found["total_variation"]) == pytest.approx(0.5, abs=1e-6)
    assert float(found["log_mass_ratio"]) == pytest.approx(
        900 + math.log1p(math.exp(-1)) - math.log(4)
    )
    assert math.isinf(frobenius(found["log_error"], found["log_norm"]))


# -- model -----------------------------------------------------------------------------------------
def test_the_loss_is_torchs(generator):
    queries = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (7,), generator=generator)
    ours = TiedCrossEntropy.apply(queries, keys, targets)
    naive = torch.nn.functional.cross_entropy(queries @ keys.t(), targets)
    assert torch.allclose(ours, naive)
    for mine, theirs in zip(
        torch.autograd.grad(2 * ours, (queries, keys)),
        torch.autograd.grad(2 * naive, (queries, keys)),
        strict=True,
    ):
        assert torch.allclose(mine, theirs)


def test_tokens_and_vocabulary():
    words = brown_lstm.tokens("The cat's 3.5 a-b\n\nThe END.")
    assert words == ["the", "cat's", "3.5", "a-b", "</s>", "the", "end", "</s>"]
    assert brown_lstm.vocabulary(words, 4) == ["<unk>", "</s>", "the", "3.5"]


def test_windows_cover_every_transition_once():
    stream = torch.arange(47)
    pairs = [
        (int(a), int(b))
        for inputs, following in brown_lstm.windows(stream, 4, 3)
        for a, b in zip(inputs.flatten(), following.flatten(), strict=True)
    ]
    assert all(b == a + 1 for a, b in pairs)
    assert sorted(a for a, _ in pairs) == [a for a in range(44) if a % 11 != 10]


@pytest.fixture
def invented(monkeypatch):
    """Six documents of invented words for each genre, in place of Brown."""
    picks = torch.randint(60, (1000,), generator=torch.Generator().manual_seed(1)).tolist()
    names = [f"c{genre}{i:02}" for genre in BROWN_CATEGORIES for i in range(1, 7)]
    documents = {
        name: " ".join(f"w{picks[(7 * i + j) % 1000] ** 2 // 60}" for j in range(40))
        for i, name in enumerate(names)
    }
    monkeypatch.setattr(brown_lstm, "brown_documents", lambda: documents)
    return documents


def test_every_part_has_every_genre_and_no_document_twice(invented):
    parts = brown_lstm.split(invented, None)
    assert sorted(name for names in parts.values() for name in names) == sorted(invented)
    for names in parts.values():
        assert {name[1] for name in names} == set(BROWN_CATEGORIES)


def test_an_interrupted_training_ends_at_the_same_weights(invented, tmp_path, monkeypatch):
    corpus = brown_lstm.read_corpus(SMALL)
    state = torch.random.get_rng_state()
    whole = brown_lstm.train(SMALL, corpus, tmp_path / "whole.pt", lambda _: None)
    assert torch.equal(torch.random.get_rng_state(), state)

    class Interrupted(Exception):
        pass

    train_epoch = brown_lstm.train_epoch

    def interrupted(model, optimizer, stream, recipe, epoch):
        if epoch == 1:
            raise Interrupted
        return train_epoch(model, optimizer, stream, recipe, epoch)

    monkeypatch.setattr(brown_lstm, "train_epoch", interrupted)
    with pytest.raises(Interrupted):
        brown_lstm.train(SMALL, corpus, tmp_path / "cut.pt", lambda _: None)
    monkeypatch.setattr(brown_lstm, "train_epoch", train_epoch)
    resumed = brown_lstm.train(SMALL, corpus, tmp_path / "cut.pt", lambda _: None)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_queries_and_keys_give_the_model_its_loss(invented, tmp_path):
    corpus = brown_lstm.read_corpus(SMALL)
    model = LanguageModel(SMALL, len(corpus.words))
    queries, targets, loss = brown_lstm.outputs(model, corpus.test, SMALL)
    logits = queries @ model.embedding.weight.t()
    found = torch.nn.functional.cross_entropy(logits, targets)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-5)


# -- the experiment --------------------------------------------------------------------------------
def test_a_small_run_from_cells_to_files(invented, tmp_path, monkeypatch):
    monkeypatch.setattr(language_model, "QUICK", SMALL)
    monkeypatch.setattr(language_model, "QUICK_QUERIES", 12)
    experiment = language_model.EXPERIMENT
    cells = [
        cell
        for cell in experiment.cells(True)
        if cell["part"] != "estimate" or cell["budget"] in (64, 512)
    ]
    rows = [row for cell in cells for row in experiment.run(cell, tmp_path)]
    assert len(list(tmp_path.glob("lstm-*-softmax-12.pt"))) == 1
    estimates = [row for row in rows if row["kind"] == "estimate"]
    assert {row["method"] for row in estimates} == set(METHODS)
    for row in estimates:
        assert 0 <= row["total_variation"] <= 1
        if row["accounting"] == "features":
            assert row["num_features"] <= 2 * row["budget"]
    for quantity in ("angle", "query length", "key length"):
        shares = [
            r["share"] for r in rows if r["kind"] == "histogram" and r["quantity"] == quantity
        ]
        assert sum(shares) == pytest.approx(1.0)
    found = experiment.measured(rows)
    assert found["lm-wasserstein-ratio-angular-8"] == pytest.approx(
        found["lm-wasserstein-angular-8-512"] / found["lm-wasserstein-angular-8-64"]
    )
    text = experiment.summary(rows)
    assert all(method.label in text for method in METHODS.values())
    assert "nan" not in text


@pytest.mark.parametrize("name", METHODS)
def test_budgets_are_what_they_say(name, generator):
    method = METHODS[name]
    sizes = {a: method.num_features(64, a) for a in ("paper", "features")}
    for accounting, num_features in sizes.items():
        request = Request(
            dim=8, num_features=num_features, projection=method.projection, generator=generator
        )
        phi = method.build(request)
        if isinstance(phi, UnfittedMap):
            points = torch.randn(64, 8, generator=generator)
            phi = phi.fit(points, points.flip(0))
        assert phi.num_features == num_features
        if accounting == "features":
            assert num_features <= 128
    bases = sizes["paper"] // method.columns
    assert bases * method.projections == 64
