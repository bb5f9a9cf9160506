"""The report of a converted model against direct computations with dense attention."""

import json
import math

import pytest
import torch

from bochner.attention.window import ExactWindow
from bochner.transformers import (
    Training,
    calibrate,
    converted_layers,
    finetune,
    linearize,
    report,
)
from bochner.transformers.observe import observed
from bochner.validation import NotFittedError
from tests.transformers.test_calibrate import batches_of, padded, seeded
from tests.transformers.test_observe import MODELS, model_named
from tests.transformers.tiny import FAMILIES


def converted(name, feature_map="positive", **options):
    model = model_named(name)
    linearize(model, feature_map, 16, generator=seeded(), **options)
    return model


def calls_of(model, batch):
    calls = {}

    def keep(call):
        calls[call.layer] = call
        return call.exact()

    with torch.no_grad(), observed(model, keep):
        model(**batch)
    return calls


def relative(approximate, exact):
    sums = [x.square().sum((0, 2, 3)) for x in (approximate - exact, exact)]
    return (sums[0] / sums[1]).sqrt()


def banded(call, window, sinks):
    """Softmax attention within window and prefix sinks alone, causal, by a dense mask."""
    n = call.q.shape[2]
    row, column = torch.arange(n)[:, None], torch.arange(n)
    near = (row - column < window) | (column < sinks)
    groups = call.q.shape[1] // call.k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (call.k, call.v))
    logits = (call.q @ k.mT).masked_fill(~(near & (column <= row)), -torch.inf)
    return torch.softmax(logits, dim=-1) @ v


def test_the_parts_of_a_hybrid():
    model, batch = converted("llama", window=4, sinks=2), batches_of(2)[0]
    found = report(model, [batch])
    for number, call in calls_of(model, batch).items():
        errors, layer = found.layers[number], converted_layers(model)[number]
        exact = call.exact()
        n = call.q.shape[2]
        means = call.v.cumsum(2) / torch.arange(1, n + 1)[:, None]
        expected = {
            "window": banded(call, 4, 2),
            "averaging": means.repeat_interleave(2, dim=1),
            "features": call.linear(layer.feature_map, None),
            "converted": call.linear(layer.feature_map, ExactWindow(4, sinks=2)),
        }
        for name, out in expected.items():
            wanted = relative(out, exact)
            torch.testing.assert_close(
                getattr(errors, name).float(), wanted, rtol=1e-4, atol=1e-5, msg=name
            )


def test_without_window_there_is_no_ablation_of_it():
    found = report(converted("bert"), batches_of(2))
    assert found.median("window") is None
    assert found.layers[0].window is None
    assert torch.equal(found.layers[0].converted, found.layers[0].features)
    assert found.features_unused == []
    assert "with window and sinks alone" not in str(found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_part(name, side):
    model = converted(name, window=4, sinks=2)
    plain, same = report(model, batches_of(4)), report(model, padded(batches_of(4), side=side))
    assert plain.tokens == same.tokens == 96
    for number, errors in plain.layers.items():
        for part in ("converted", "features", "window", "averaging"):
            torch.testing.assert_close(
                getattr(same.layers[number], part), getattr(errors, part), rtol=1e-3, atol=1e-4
            )
    for figure, value in plain.outputs.to_dict().items():
        assert math.isclose(getattr(same.outputs, figure), value, rel_tol=1e-3, abs_tol=1e-4), (
            figure
        )


def test_a_language_model():
    model, batches = converted("llama"), batches_of(4)
    outputs = report(model, batches).outputs
    exact = model_named("llama")
    with torch.no_grad():
        losses = [
            sum(float(m(**b, labels=b["input_ids"]).loss) for b in batches) / len(batches)
            for m in (exact, model)
        ]
        before, after = (
            torch.cat([m(**b).logits for b in batches]).log_softmax(-1) for m in (exact, model)
        )
    assert math.isclose(outputs.perplexity_exact, math.exp(losses[0]), rel_tol=1e-4)
    assert math.isclose(outputs.perplexity_converted, math.exp(losses[1]), rel_tol=1e-4)
    kl = float((before.exp() * (before - after)).sum(-1).mean())
    assert math.isclose(outputs.kl, kl, rel_tol=1e-4)
    assert outputs.agreement == float((before.argmax(-1) == after.argmax(-1)).float().mean())
    assert outputs.mean_cosine is None


def test_labels_that_are_left_out_are_left_out():
    model, (batch, *_) = converted("llama"), batches_of(2)
    labels = batch["input_ids"].clone()
    labels[:, :10] = -100
    outputs = report(model, [batch | {"labels": labels}]).outputs
    with torch.no_grad():
        loss = float(model(**batch, labels=labels).loss)
    assert math.isclose(outputs.perplexity_converted, math.exp(loss), rel_tol=1e-4)


def test_an_encoder():
    model, batches = converted("bert"), batches_of(4)
    outputs = report(model, batches).outputs
    exact = model_named("bert")
    with torch.no_grad():
        pairs = [
            [torch.cat([m(**b).last_hidden_state.mean(1) for b in batches]) for m in (exact, model)]
        ]
    cosines = torch.cosine_similarity(*pairs[0], dim=-1)
    assert math.isclose(outputs.mean_cosine, float(cosines.mean()), rel_tol=1e-4)
    assert math.isclose(outputs.worst_cosine, float(cosines.min()), rel_tol=1e-4)
    assert outputs.kl is None


def test_labels_of_an_encoder_decoder_are_not_shifted_twice():
    family = FAMILIES["bart-decoder"]
    model, inputs = linearize(family.model(), "positive", 16, generator=seeded()), family.inputs()
    labels = inputs.pop("decoder_input_ids")
    outputs = report(model, [inputs | {"labels": labels}]).outputs
    with torch.no_grad():
        loss = float(model(**inputs, labels=labels).loss)
    assert math.isclose(outputs.perplexity_converted, math.exp(loss), rel_tol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_calibrated_finetuned_and_reported(name):
    family = FAMILIES[name]
    model, batches = family.model(), [family.inputs()] * 2
    linearize(model, "dark", 16, generator=seeded())
    calibration = calibrate(model, batches, generator=seeded())
    training = Training(learning_rate=1e-2, progress=False)
    losses = finetune(model, batches, steps=(20, 5), training=training, generator=seeded())
    found = report(model, batches)
    assert list(found.layers) == list(calibration.layers) == list(converted_layers(model))
    assert losses.attention[-1] < losses.attention[0]
    for errors in found.layers.values():
        assert errors.converted.isfinite().all()
        assert (errors.averaging > 0).all()
    assert found.outputs.to_dict()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_stays_exact_is_at_distance_zero(name):
    model = converted(name, "data-aware", window=4)
    calibrate(model, batches_of(4), exact_heads=1.0, generator=seeded())
    found = report(model, batches_of(4))
    assert found.median("converted") < 1e-4
    assert found.median("features") > 0.01
    if name == "bert":
        assert found.outputs.worst_cosine > 1 - 1e-5
    else:
        assert abs(found.outputs.kl) < 1e-5
        assert found.outputs.agreement == 1.0


def test_features_that_are_not_used_are_found():
    """With a window over everything the features cannot matter."""
    model = converted("llama", window=24)
    found = report(model, batches_of(2))
    assert found.median("converted") < 1e-4
    assert found.median("window") < 1e-4
    narrow = report(converted("llama", "positive", window=8), batches_of(2))
    by_hand = sum(int((e.window <= e.converted).sum()) for e in narrow.layers.values())
    assert len(narrow.features_unused) == by_hand
    assert f"{by_hand} of 8 heads would do as well without features" in str(narrow)


def test_the_report_as_text_and_as_json():
    found = report(converted("llama", window=4), batches_of(2))
    text = str(found)
    assert "| layer | as converted | features only | window only | averaging |" in text
    assert "| all |" in text
    assert "Perplexity:" in text
    again = json.loads(json.dumps(found.to_dict()))
    assert again["layers"]["1"]["window"] == found.layers[1].window.tolist()
    assert again["outputs"]["kl"] == found.outputs.kl


def test_what_cannot_be_reported():
    model = model_named("bert")
    with pytest.raises(ValueError, match="without converted layers"):
        report(model, batches_of(2))
    linearize(model, "data-aware", 16, generator=seeded())
    with pytest.raises(NotFittedError, match="calibrate"):
        report(model, batches_of(2))
    with pytest.raises(ValueError, match="batches gave no batch"):
        report(converted("bert"), [])
    with pytest.raises(ValueError, match="training mode"):
        report(converted("bert").train(), batches_of(2))
