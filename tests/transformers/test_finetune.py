"""Distillation on MiniLM and on tiny random models: it learns, takes up where it stopped, leaves no trace."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from bochner.data import brown_documents, load_minilm, token_windows
from bochner.transformers import (
    DistillationTrainer,
    Training,
    attention_losses,
    calibrate,
    converted_layers,
    distillation_loss,
    finetune,
    from_pretrained,
    linearize,
    report,
    save_pretrained,
)
from bochner.transformers.finetune_losses import relative_square
from bochner.transformers.finetuning import ends
from tests.transformers.test_calibrate import batches_of, seeded
from tests.transformers.test_observe import model_named

QUIET = Training(progress=False)


def converted(name, feature_map="dark", num_features=16, **options):
    model = model_named(name)
    linearize(model, feature_map, num_features, generator=seeded(), **options)
    calibrate(model, batches_of(6), generator=seeded())
    return model


def weights(model):
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


# -- it learns -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows():
    documents = list(brown_documents("a").values())
    return token_windows(load_minilm()[1], documents, length=128, count=24)


def test_distilling_attention_lowers_the_held_out_error_of_dark_on_minilm(windows):
    model = load_minilm()[0]
    linearize(model, "dark", 32, layers=[0, 3], generator=seeded())
    calibrate(model, windows[:16].split(4), generator=seeded())
    before = report(model, windows[16:].split(4)).median("converted")
    found = finetune(model, windows[:16].split(4), steps=30, training=QUIET, generator=seeded())
    after = report(model, windows[16:].split(4)).median("converted")
    assert after < 0.9 * before
    first, last = ends(found.attention)
    assert last < 0.9 * first
    assert found.parameters == 2 * 12 * 32 * 32


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("options", [{}, {"window": 4, "sinks": 1}])
def test_both_stages_lower_their_losses(name, options):
    model = converted(name, **options)
    found = finetune(model, batches_of(4), steps=(40, 40), training=QUIET, generator=seeded())
    for curve in (found.attention, found.outputs):
        assert len(curve) == 40
        first, last = ends(curve)
        assert last < first


def test_calibrated_features_learn_when_told_to(tmp_path):
    model = converted("llama", "calibrated", window=4)
    with pytest.raises(ValueError, match=r"LandmarkFeatures.*trainable_\(\)"):
        finetune(model, batches_of(4), steps=1, training=QUIET)
    for layer in converted_layers(model).values():
        layer.feature_map.trainable_()
    slow = Training(learning_rate=1e-3, progress=False)
    found = finetune(model, batches_of(4), steps=40, training=slow, generator=seeded())
    assert ends(found.attention)[1] < 0.95 * ends(found.attention)[0]
    assert found.parameters > 0
    save_pretrained(model, tmp_path)
    with torch.no_grad():
        before = model(**batches_of(2)[0]).logits
        assert torch.equal(from_pretrained(tmp_path)(**batches_of(2)[0]).logits, before)


def test_training_all_weights_does_better_and_keeps_its_teacher():
    model, batches = converted("llama"), batches_of(4)
    exact = model_named("llama")
    fast = Training(weights_learning_rate=1e-2, progress=False)
    found = finetune(model, batches, steps=(0, 60), train="all", training=fast, generator=seeded())
    assert ends(found.outputs)[1] < 0.5 * ends(found.outputs)[0]
    # the teacher was the model before training: the reached distance is to the true one
    with torch.no_grad():
        loss = distillation_loss(model(**batches[0]), exact(**batches[0]), batches[0])
    assert float(loss) < 0.6 * found.outputs[0]
    assert not torch.equal(model.model.embed_tokens.weight, exact.model.embed_tokens.weight)


def test_labels_as_the_objective():
    model = converted("llama")
    batches = [batch | {"labels": batch["input_ids"]} for batch in batches_of(2)]
    training = Training(weights_learning_rate=1e-2, objective="labels", progress=False)
    found = finetune(
        model, batches, steps=(0, 30), train="all", training=training, generator=seeded()
    )
    assert ends(found.outputs)[1] < ends(found.outputs)[0] - 0.5
    with pytest.raises(ValueError, match="gave no loss for a batch.*expected labels"):
        finetune(model, batches_of(2), steps=(0, 1), train="all", training=training)


def test_attention_only_leaves_all_other_weights_alone():
    model = converted("llama")
    before = weights(model)
    finetune(model, batches_of(4), steps=(3, 3), training=QUIET, generator=seeded())
    changed = {name for name, x in weights(model).items() if not torch.equal(x, before[name])}
    assert len(changed) == 2
    assert all("bochner_attention.feature_map" in name for name in changed)


# -- the losses ------------------------------------------------------------------------------------


def test_the_loss_of_a_layer_does_not_depend_on_the_size_of_its_values():
    small, large = (converted("bert") for _ in range(2))
    with torch.no_grad():
        for layer in large.encoder.layer[:1]:
            layer.attention.self.value.weight *= 100
            layer.attention.self.value.bias *= 100
    losses = [attention_losses(model, batches_of(2)[0])[0] for model in (small, large)]
    assert math.isclose(*losses, rel_tol=1e-4)


def test_padding_is_no_part_of_the_losses():
    model = converted("llama")
    batch = batches_of(2)[0]
    short = {name: x[:, :20] for name, x in batch.items()}
    padded = batch | {"attention_mask": batch["attention_mask"].clone()}
    padded["attention_mask"][:, 20:] = 0
    losses = [attention_losses(model, inputs) for inputs in (short, padded)]
    for number, loss in losses[0].items():
        assert math.isclose(loss, losses[1][number], rel_tol=1e-4)
    exact = model_named("llama")
    with torch.no_grad():
        distances = [
            float(distillation_loss(model(**inputs), exact(**inputs), inputs))
            for inputs in (short, padded)
        ]
    assert math.isclose(*distances, rel_tol=1e-4)


def test_the_loss_of_every_layer_is_on_the_activations_of_the_exact_model():
    model = converted("bert")
    losses = attention_losses(model, batches_of(2)[0])
    errors = report(model, batches_of(2)[:1]).layers
    for number, loss in losses.items():
        # the errors of heads are normalised one by one, the loss by the layer
        low, high = errors[number].converted.aminmax()
        assert float(low) <= math.sqrt(loss) <= float(high)
    first = converted_layers(model)[0]
    phi, first.feature_map = first.feature_map, converted_layers(model)[1].feature_map
    changed = attention_losses(model, batches_of(2)[0])
    assert changed[0] != losses[0]
    assert changed[1] == losses[1]
    first.feature_map = phi


def test_gradients_are_those_of_the_mean_square():
    model = converted("bert")
    layers = converted_layers(model)
    batch = batches_of(2)[0]
    attention_losses(model, batch, backward=True)
    found = [p.grad.clone() for layer in layers.values() for p in layer.parameters()]
    parameter = next(layers[1].parameters())
    direction = torch.randn(parameter.shape, generator=seeded())
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * 1e-3 * direction
        losses.append(sum(attention_losses(model, batch).values()))
        with torch.no_grad():
            parameter -= sign * 1e-3 * direction
    slope = (losses[0] - losses[1]) / 2e-3
    assert math.isclose(slope, float((found[1] * direction).sum()), rel_tol=0.05)


def test_relative_square():
    exact = torch.tensor([[1.0, 1.0], [5.0, 5.0]])
    where = torch.tensor([True, False])
    assert float(relative_square(exact + 1, exact, where)) == 1.0


# -- taking up where it stopped --------------------------------------------------------------------


@pytest.mark.parametrize("train", ["attention", "all"])
@pytest.mark.parametrize("stop_at", [7, 13])
def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path, train, stop_at):
    training = Training(save_every=1, progress=False)
    options = {"steps": (10, 10), "train": train, "training": training}
    whole = converted("llama")
    expected = finetune(whole, batches_of(6), generator=seeded(5), **options)

    path, model, calls = tmp_path / "state.pt", converted("llama"), []

    class Stopping(list):
        def __getitem__(self, index):
            calls.append(index)
            if len(calls) > stop_at:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        finetune(model, Stopping(batches_of(6)), resume=path, generator=seeded(5), **options)
    again = converted("llama")
    with torch.no_grad():  # what was trained comes from the file
        next(converted_layers(again)[0].parameters()).add_(1.0)
    # the teacher of the second run is the exact model, whose weights no run had touched yet
    found = finetune(again, batches_of(6), resume=path, generator=seeded(6), **options)
    assert len(found.attention) == len(found.outputs) == 10
    torch.testing.assert_close(found.attention, expected.attention, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=1e-5, atol=0)
    for name, x in weights(whole).items():
        torch.testing.assert_close(weights(again)[name], x, rtol=1e-5, atol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    # a finished run is not run again
    calls.clear()
    done = finetune(again, Stopping(batches_of(6)), resume=path, generator=seeded(7), **options)
    assert done.attention == found.attention


def test_the_state_of_another_run_is_refused(tmp_path):
    model, path = converted("bert"), tmp_path / "state.pt"
    finetune(model, batches_of(6), steps=2, training=QUIET, resume=path)
    with pytest.raises(ValueError, match="state of a run with.*Pass the same arguments"):
        finetune(model, batches_of(6), steps=3, training=QUIET, resume=path)


# -- batches and seeds -----------------------------------------------------------------------------


def test_the_generator_decides_the_order_of_a_list():
    def curve(seed):
        model = converted("bert")
        return finetune(
            model, batches_of(8), steps=8, training=QUIET, generator=seeded(seed)
        ).attention

    assert curve(1) == curve(1) != curve(2)


def test_loaders_and_generators():
    model = converted("bert")
    rows = [{name: x[0] for name, x in batch.items()} for batch in batches_of(6, size=1)]
    loader = torch.utils.data.DataLoader(rows, batch_size=3)
    assert finetune(model, loader, steps=5, training=QUIET).steps == 5
    with pytest.raises(ValueError, match="cannot be read again"):
        finetune(model, iter(batches_of(4)), steps=5, training=QUIET)
    with pytest.raises(ValueError, match="batches is empty"):
        finetune(model, [], steps=5, training=QUIET)


def test_the_bar_can_be_switched_off(capsys):
    model = converted("bert")
    finetune(model, batches_of(2), steps=2, training=QUIET)
    assert capsys.readouterr().err == ""
    finetune(model, batches_of(2), steps=2)
    assert "attention: 100%" in capsys.readouterr().err


# -- what is left behind, and what is refused ------------------------------------------------------


def test_nothing_is_left_behind():
    model = converted("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    finetune(model, batches_of(2), steps=(2, 2), training=QUIET)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    state = torch.get_rng_state()
    finetune(model.train(), batches_of(2), steps=2, training=QUIET, generator=seeded())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_report_as_text_and_as_json():
    model = converted("bert")
    found = finetune(model, batches_of(2), steps=(2, 3), training=QUIET)
    assert "Trained 256 numbers (attention)" in str(found)
    assert "| outputs | 3 |" in str(found)
    again = json.loads(json.dumps(found.to_dict()))
    assert again["steps"] == 5
    assert again["attention"] == found.attention


def test_what_cannot_be_trained():
    model = model_named("bert")
    with pytest.raises(ValueError, match="without converted layers"):
        finetune(model, batches_of(2), steps=1)
    linearize(model, "positive", 8, generator=seeded())
    with pytest.raises(ValueError, match=r"RandomFeatures\) have no parameters.*such as 'dark'"):
        finetune(model, batches_of(2), steps=1)
    assert finetune(model, batches_of(2), steps=(0, 1), train="all", training=QUIET).steps == 1
    for steps in (0, -1, (1, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match="steps="):
            finetune(converted("bert"), batches_of(2), steps=steps)
    with pytest.raises(ValueError, match="train='some'"):
        finetune(converted("bert"), batches_of(2), steps=1, train="some")
    for options in ({"objective": "x"}, {"learning_rate": 0}, {"clip": 0}, {"warmup": 2}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Training(**options)


def test_a_loss_that_is_no_number_is_an_error(monkeypatch):
    model = converted("bert")
    before = weights(model)

    def broken(model, inputs, backward):
        return {0: math.nan}

    monkeypatch.setattr("bochner.transformers.finetuning.attention_losses", broken)
    with pytest.raises(FloatingPointError, match="'attention' is nan at step 0; lower the"):
        finetune(model, batches_of(2), steps=20, training=QUIET)
    assert all(torch.equal(x, before[name]) for name, x in weights(model).items())


def test_a_gradient_that_is_no_number_changes_nothing(monkeypatch):
    model = converted("bert")
    before = weights(model)

    def broken(model, inputs, backward):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, math.inf)
        return {0: 1.0}

    monkeypatch.setattr("bochner.transformers.finetuning.attention_losses", broken)
    with pytest.raises(FloatingPointError, match="gradient of stage 'attention' has norm"):
        finetune(model, batches_of(2), steps=20, training=QUIET)
    assert all(torch.equal(x, before[name]) for name, x in weights(model).items())


# -- transformers' own Trainer ---------------------------------------------------------------------


def arguments(tmp_path, **options):
    return TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **options,
    )


def examples():
    rows = [{name: x[0] for name, x in batch.items()} for batch in batches_of(8, size=1)]
    return [row | {"labels": row["input_ids"]} for row in rows]


def test_a_converted_model_trains_with_a_plain_trainer(tmp_path):
    model = converted("llama")
    before = weights(model)
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=examples())
    start = trainer.evaluate(examples())["eval_loss"]
    trainer.train()
    assert trainer.evaluate(examples())["eval_loss"] < start - 0.5
    changed = {name for name, x in weights(model).items() if not torch.equal(x, before[name])}
    assert any("bochner_attention.feature_map" in name for name in changed)
    assert any("mlp" in name for name in changed)


def test_the_distillation_trainer(tmp_path):
    model, teacher = converted("llama"), model_named("llama")
    trainer = DistillationTrainer(
        model=model, teacher=teacher, args=arguments(tmp_path), train_dataset=examples()
    )
    kept, batch = copy.deepcopy(teacher.state_dict()), batches_of(8)[0]

    def distance():
        with torch.no_grad():
            return float(distillation_loss(model(**batch), teacher(**batch), batch))

    start = distance()
    trainer.train()
    assert distance() < 0.7 * start
    assert all(torch.equal(x, kept[name]) for name, x in teacher.state_dict().items())


def test_accumulated_gradients_of_the_distillation_trainer_are_a_mean(tmp_path):
    found = []
    for size, pieces in ((4, 1), (1, 4)):
        model = converted("llama")
        options = {"max_steps": 1, "per_device_train_batch_size": size, "max_grad_norm": 0.0}
        trainer = DistillationTrainer(
            model=model,
            teacher=model_named("llama"),
            args=replace(arguments(tmp_path), gradient_accumulation_steps=pieces, **options),
            train_dataset=examples(),
        )
        trainer.create_optimizer()
        norms = []
        trainer.optimizer.register_step_pre_hook(
            lambda *_, norms=norms, model=model: norms.append(
                torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
            )
        )
        trainer.train()
        found.append(norms[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
