"""Calibration on the real MiniLM and on tiny random models with padding and grouped queries."""

import json
import random

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from bochner.data import brown_documents, load_minilm, token_windows
from bochner.transformers import calibrate, converted_layers, linearize, report, restore
from bochner.transformers.calibrate_sample import common_length, draw_sample, stacked
from bochner.transformers.observe import Call, observed
from tests.transformers.test_observe import MODELS, model_named
from tests.transformers.tiny import LLAMA


@pytest.fixture(scope="module")
def windows():
    """Windows of 128 tokens of news, from MiniLM's tokenizer."""
    documents = list(brown_documents("a").values())
    return token_windows(load_minilm()[1], documents, length=128, count=24)


@pytest.fixture
def minilm():
    return load_minilm()[0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batches_of(rows, size=2, length=24, seed=3):
    """Random tokens for the tiny models, in batches, without padding."""
    ids = torch.randint(50, (rows, length), generator=seeded(seed))
    return [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids.split(size)]


def padded(batches, by=5, side="left"):
    """The same with padding whose tokens are not zero."""

    def pad(x, value):
        new = torch.full((len(x), by), value, dtype=x.dtype)
        return torch.cat([new, x] if side == "left" else [x, new], dim=1)

    out = []
    for batch in batches:
        mask = pad(batch["attention_mask"], 0)
        ids = pad(batch["input_ids"], 7)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        out.append({"input_ids": ids, "attention_mask": mask, "position_ids": positions})
    return out


def buffers(model):
    return {
        f"{n}.{name}": x
        for n, layer in converted_layers(model).items()
        for name, x in layer.feature_map.state_dict().items()
    }


# -- what it finds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [{}, {"window": 16, "sinks": 4}])
def test_calibrated_features_beat_averaging(minilm, windows, near):
    linearize(minilm, "calibrated", 32, layers=[0, 3], generator=seeded(), **near)
    report = calibrate(minilm, windows.split(4), generator=seeded())
    assert report.num_heads == 24
    assert report.sample.sequences == 16
    assert report.sample.held_out_tokens == 8 * 128
    assert 0.4 < report.median_averaging < 0.9
    assert report.median_error < (0.75 if not near else 0.5) * report.median_averaging


def test_every_layer_gets_the_map_of_its_own_data(minilm, windows):
    linearize(minilm, "calibrated", 32, layers=[0, 5], generator=seeded())
    report = calibrate(minilm, windows.split(4), generator=seeded())
    first, last = converted_layers(minilm).values()
    first.feature_map, last.feature_map = last.feature_map, first.feature_map
    swapped = calibrate(minilm, windows.split(4), generator=seeded())
    for number in (0, 5):
        own, other = report.layers[number].measured, swapped.layers[number].measured
        assert own.median() < 0.8 * other.median(), number


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("feature_map", ["calibrated", "data-aware"])
def test_measured_errors_are_those_of_the_layer(name, feature_map):
    model = model_named(name)
    linearize(model, feature_map, 16, window=4, sinks=2, generator=seeded())
    batches = batches_of(6)
    report = calibrate(model, batches, generator=seeded())
    layers = converted_layers(model)
    sums = {number: torch.zeros(2, layer.num_heads) for number, layer in layers.items()}

    def compare(call):
        exact = call.exact()
        error = layers[call.layer](call.q, call.k, call.v, causal=call.causal) - exact
        for total, x in zip(sums[call.layer], (error, exact), strict=True):
            total += x.square().sum((0, 2, 3))
        return exact

    with torch.no_grad(), observed(model, compare):
        model(**batches[1])  # the held-out one
    for number, (error, energy) in sums.items():
        found = report.layers[number].measured.float()
        torch.testing.assert_close(found, (error / energy).sqrt(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_part(name, side, monkeypatch):
    def fitted(batches):
        model = model_named(name)
        linearize(model, "data-aware", 16, generator=seeded())
        report = calibrate(model, batches, generator=seeded())
        return report, buffers(model)

    report, plain = fitted(batches_of(6))
    padded_report, same = fitted(padded(batches_of(6), side=side))
    assert report.sample == padded_report.sample
    assert plain
    for key, x in plain.items():
        torch.testing.assert_close(same[key], x, rtol=1e-3, atol=1e-3)
    for number, errors in report.layers.items():
        other = padded_report.layers[number].measured
        torch.testing.assert_close(other, errors.measured, rtol=1e-3, atol=1e-4)

    def blind(call):  # a mutant that keeps padded positions
        return Call(call.layer, call.q, call.k, call.v, call.causal, None)

    monkeypatch.setattr(Call, "without_padding", blind)
    _, lost = fitted(padded(batches_of(6), side=side))
    assert any((lost[key] - x).abs().max() > 0.01 for key, x in plain.items())


def test_grouped_queries_are_pooled():
    model = model_named("llama")
    linearize(model, "data-aware", 16, generator=seeded())
    seen = {}

    def keep(call):
        seen[call.layer] = call.without_padding()
        return call.exact()

    with torch.no_grad(), observed(model, keep):
        model(**batches_of(1)[0])
    call = seen[0]
    q, k, v = stacked([call, call], (2,))
    assert [x.shape[:2] for x in (q, k, v)] == [(4, 2)] * 3
    for sequence in range(2):
        for group in range(2):
            row = 2 * sequence + group
            for kv_head in range(2):
                torch.testing.assert_close(q[row, kv_head], call.q[0, 2 * kv_head + group])
                torch.testing.assert_close(k[row, kv_head], call.k[0, kv_head])
                torch.testing.assert_close(v[row, kv_head], call.v[0, kv_head])
    q, k, v = stacked([call, call], (4,))
    assert torch.equal(q[1], call.q[0])
    assert [torch.equal(k[1, h], call.k[0, h // 2]) for h in range(4)] == [True] * 4


# -- layer by layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_in_turn_each_layer_sees_the_model_converted_so_far(name):
    batches = batches_of(6)
    at_once, in_turn = model_named(name), model_named(name)
    for model in (at_once, in_turn):
        linearize(model, "data-aware", 16, generator=seeded())
    first = calibrate(at_once, batches, generator=seeded())
    second = calibrate(in_turn, batches, sequential=True, generator=seeded())
    torch.testing.assert_close(first.layers[0].measured, second.layers[0].measured)
    assert not torch.allclose(first.layers[1].measured, second.layers[1].measured)
    # by hand: layer 1's queries of the held-out batch once layer 0 is linear
    layers, errors = converted_layers(in_turn), []

    def observer(call):
        out = call.converted(layers[call.layer])
        if call.layer == 1:
            exact = call.exact()
            sums = [x.square().sum((0, 2, 3)) for x in (out - exact, exact)]
            errors.append((sums[0] / sums[1]).sqrt())
        return out

    with torch.no_grad(), observed(in_turn, observer):
        in_turn(**batches[1])
    torch.testing.assert_close(second.layers[1].measured.float(), errors[0], rtol=1e-4, atol=1e-6)


# -- heads that stay exact -------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (3, 3), (0.25, 2), (1.0, 8), (8, 8)])
def test_the_worst_heads_stay_exact(budget, kept):
    model = model_named("llama")
    linearize(model, "data-aware", 16, generator=seeded())
    report = calibrate(model, batches_of(6), exact_heads=budget, generator=seeded())
    assert len(report.exact_heads) == kept
    errors = {(n, h): float(e) for n, x in report.layers.items() for h, e in enumerate(x.measured)}
    worst = sorted(errors, key=errors.__getitem__, reverse=True)[:kept]
    assert set(worst) == set(report.exact_heads)
    flags = [bool(x) for layer in converted_layers(model).values() for x in layer.exact_heads]
    assert flags == [(n, h) in worst for n, h in errors]
    if kept:
        assert f"{kept} heads stay exact" in report.verdict


def test_with_all_heads_exact_the_model_is_what_it_was():
    model, (batch, *_) = model_named("llama"), batches_of(6)
    before = model(**batch).logits
    linearize(model, "data-aware", 16, generator=seeded())
    calibrate(model, batches_of(6), exact_heads=1.0, generator=seeded())
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-4)
    calibrate(model, batches_of(6), generator=seeded())  # without a budget again
    assert not torch.allclose(model(**batch).logits, before, atol=1e-3)


# -- the report ------------------------------------------------------------------------------------


def test_the_report_as_text_and_as_json():
    model = model_named("bert")
    linearize(model, "data-aware", 16, generator=seeded())
    report = calibrate(model, batches_of(6), exact_heads=1, generator=seeded())
    text = str(report)
    assert text.startswith("data-aware, 16 features: fitted on 96 tokens, 4 sequences of 24")
    assert "| layer | error |" in text
    assert "averaging the values" in text
    assert all(errors.predicted is not None for errors in report.layers.values())
    again = json.loads(json.dumps(report.to_dict()))
    assert again["exact_heads"] == [list(pair) for pair in report.exact_heads]
    assert again["sample"]["tokens"] == 96
    assert again["layers"]["1"]["measured"] == report.layers[1].measured.tolist()


def test_heads_worse_than_averaging_are_named():
    model = model_named("bert")
    linearize(model, "positive", 2, generator=seeded())
    report = calibrate(model, batches_of(6), generator=seeded())
    by_hand = sum(int((e.measured >= e.averaging).sum()) for e in report.layers.values())
    assert by_hand == len(report.worse_than_averaging) > 0
    assert f"{by_hand} of 4 heads are worse than averaging" in report.verdict


# -- the sample ------------------------------------------------------------------------------------


def test_the_sample_is_bounded_and_uniform():
    kept = torch.zeros(100)
    ids = torch.arange(100).unsqueeze(1).expand(-1, 10)
    batches = [x for part in ids.split(1) for x in (part, ids[:1])]  # every second: 1 of 4 held out
    for seed in range(400):
        sample = draw_sample(
            [ids, ids[:1]], max_tokens=105, count=lambda row: 1, generator=seeded(seed)
        )
        assert len(sample.fit) == 10
        assert sum(sample.fit_tokens) <= 105
        for row in sample.fit:
            kept[int(row["input_ids"][0, 0])] += 1
    # binomial(400, 1/10): sd 6; 100 counts, false alarm below 1e-6 in all at 6 sd
    assert (kept - 40).abs().max() < 36
    assert len(batches) == 200


def test_every_fourth_batch_is_held_out():
    ids = torch.arange(40).unsqueeze(1).expand(-1, 3)
    sample = draw_sample(
        iter(ids.split(4)), max_tokens=1000, count=lambda row: 1, generator=seeded()
    )
    assert (sample.fit_batches, sample.held_out_batches) == (7, 3)
    held = [int(row["input_ids"][0, 0]) for row in sample.held_out]
    assert held == [*range(4, 8), *range(20, 24), *range(36, 40)]


def test_sequences_are_cut_to_the_length_that_keeps_most():
    lengths = [5, 9, 9, 9, 20]
    random.Random(0).shuffle(lengths)
    assert common_length(lengths) == 9
    assert common_length([4]) == 4


def test_ragged_batches_are_cut():
    batches = batches_of(6)
    batches[0]["attention_mask"][0, 10:] = 0
    model = model_named("bert")
    linearize(model, "data-aware", 16, generator=seeded())
    report = calibrate(model, batches, generator=seeded())
    assert (report.sample.sequences, report.sample.length, report.sample.left_out) == (3, 24, 1)


def test_a_budget_of_memory_takes_layers_in_groups(monkeypatch):
    def found():
        model = model_named("llama")
        linearize(model, "data-aware", 16, generator=seeded())
        calibrate(model, batches_of(6), generator=seeded())
        return buffers(model)

    whole = found()
    monkeypatch.setattr("bochner.transformers.calibrate_fit._KEPT_ELEMENTS", 1)
    for key, x in found().items():
        assert torch.equal(x, whole[key]), key


# -- errors ----------------------------------------------------------------------------------------


def test_what_cannot_be_calibrated():
    model, batches = model_named("bert"), batches_of(6)
    with pytest.raises(ValueError, match="without converted layers"):
        calibrate(model, batches)
    linearize(model, "data-aware", 16, generator=seeded())
    for wrong, error, said in (
        ([batches[0]], ValueError, r"1 batch\(es\).*at least 2"),
        ([], ValueError, r"0 batch\(es\)"),
        (torch.zeros(4, 6, dtype=torch.long), TypeError, r"shape \[6\].*windows\.split"),
        (["text"], TypeError, "'text'; expected dictionaries"),
    ):
        with pytest.raises(error, match=said):
            calibrate(model, wrong)
    for budget in (-1, 5, 1.5, True, -0.1):
        with pytest.raises(ValueError, match=r"exact_heads=.*between 0 and 4"):
            calibrate(model, batches, exact_heads=budget)
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        calibrate(model.train(), batches)


def test_after_an_error_and_after_restoring_nothing_is_left():
    model, (batch, *_) = model_named("bert"), batches_of(6)
    before = model(**batch)[0]
    linearize(model, "data-aware", 16, generator=seeded())
    calibrate(model, batches_of(6), sequential=True, generator=seeded())
    with pytest.raises(TypeError):
        calibrate(model, [batch, batch, "text"])
    restore(model)
    assert torch.equal(model(**batch)[0], before)


def test_compiled_code_knows_the_heads_that_stay_exact():
    model = linearize(model_named("llama"), "positive", 16, generator=seeded())
    calibrate(model, batches_of(6), exact_heads=3, generator=seeded())
    layers = converted_layers(model).values()
    assert sum(len(layer._kept) for layer in layers) == 3  # what compiled code reads
    assert all(layer._kept == tuple(layer.exact_heads.nonzero().flatten()) for layer in layers)


def test_a_calibration_that_fails_leaves_the_exact_heads():
    model = linearize(model_named("llama"), "positive", 16, generator=seeded())
    converted_layers(model)[0].keep_exact([1])
    with pytest.raises(ValueError, match="at least 2"):
        calibrate(model, [], generator=seeded())
    assert converted_layers(model)[0].kept_heads() == (1,)


def test_a_second_calibration_says_that_it_fitted_nothing():
    model = linearize(model_named("llama"), "data-aware", 16, layers=[0], generator=seeded())
    first = calibrate(model, batches_of(6), generator=seeded())
    before = buffers(model)
    second = calibrate(model, batches_of(6, seed=4), generator=seeded())
    assert all(torch.equal(x, before[name]) for name, x in buffers(model).items())
    assert (first.fitted_layers, second.fitted_layers) == (1, 0)
    assert "fitted on" in str(first)
    assert "no map fitted" in str(second)
    assert "restore(model)" in str(second)
    assert "fitted on" not in str(second)


@pytest.mark.parametrize("feature_map", ["calibrated", "positive"])
def test_layers_that_no_batch_reaches_are_named(feature_map):
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            image_size=8, patch_size=4,
        ),
        text_config=LlamaConfig(**LLAMA),
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    for layers in ([0, 2], [2, 0]):
        linearize(model, feature_map, 8, layers=layers, generator=seeded())
        for function in (calibrate, report):
            if function is calibrate or feature_map == "positive":
                with pytest.raises(ValueError, match=r"vision_tower.*never ran.*layers="):
                    function(model, batches_of(6))
        restore(model)
    linearize(model, feature_map, 8, layers=[2, 3], generator=seeded())
    assert calibrate(model, batches_of(6), generator=seeded()).num_heads == 4
