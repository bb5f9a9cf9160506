"""The finetuning experiment: distillation on small models, what is trained, its report."""

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from bochner.reproduce.claims import claim_rows, read_claims
from bochner.reproduce.experiment import check_flat, checked_cells
from bochner.transformers import collect_qkv, converted_layers, linearize
from experiments.darkformer import distillation, finetuning, finetuning_report
from experiments.darkformer.contestants import EXACT
from experiments.darkformer.distillation import ALL, MAPS


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.weight", "key.weight", "q_proj.weight", "k_proj.weight")):
                parameter *= 20  # attention that matters
    return model


@pytest.fixture
def bert():
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=64,
    )
    return seeded(lambda: BertModel(config))


@pytest.fixture
def llama():
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return seeded(lambda: LlamaForCausalLM(config))


@pytest.fixture
def windows(generator):
    return torch.randint(60, (8, 24), generator=generator)


def cell(method, **fields):
    return {
        "method": method,
        "layers": 2,
        "columns": 16,
        "window": 0,
        "sinks": 0,
        "seed": 3,
        **fields,
    }


def test_targets_are_what_the_original_gave(bert, windows):
    found = distillation.targets(bert, windows)
    for target, qkv in zip(found, collect_qkv(bert, windows), strict=True):
        assert torch.equal(target.values, qkv.v)
    module = bert.encoder.layer[1].attention.self
    with torch.no_grad():
        hidden = bert(windows, output_hidden_states=True).hidden_states[1]
        context = module(hidden)[0]
    assert torch.allclose(found[1].hidden, hidden, atol=1e-6)
    outputs = found[1].outputs.transpose(1, 2).flatten(-2)
    assert torch.allclose(outputs, context, atol=1e-5)


def test_exact_layers_give_the_targets(bert, windows):
    targets = distillation.targets(bert, windows)
    finetuning.convert(bert, cell("positive"), windows.split(2))
    with torch.no_grad():
        linear = list(distillation.layer_outputs(bert, targets))
        for layer in converted_layers(bert).values():
            layer.keep_exact(range(3))
        exact = list(distillation.layer_outputs(bert, targets))
    for target, one, other in zip(targets, exact, linear, strict=True):
        assert torch.allclose(one, target.outputs, atol=1e-5)
        assert not torch.allclose(other, target.outputs, atol=1e-2)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_identity_start_is_performers_start(bert, llama, windows, layers):
    for model in (bert, llama):
        found = []
        for method in ("positive", finetuning.IDENTITY):
            converted = copy.deepcopy(model)
            finetuning.convert(converted, cell(method, layers=layers), windows.split(2))
            with torch.no_grad():
                found.append(converted(input_ids=windows)[0])
        assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize("what", [MAPS, ALL])
def test_distillation_trains_what_it_says_and_nothing_else(bert, windows, generator, what):
    pool = distillation.targets(bert, windows)
    finetuning.convert(bert, cell(finetuning.IDENTITY), windows.split(2))

    def loss():
        with torch.no_grad():
            outputs = distillation.layer_outputs(bert, pool)
            pairs = list(zip(outputs, pool, strict=True))
            return sum(float((o - t.outputs).square().sum()) for o, t in pairs)

    before, first = {n: p.clone() for n, p in bert.named_parameters()}, loss()
    assert list(distillation.distil(bert, pool, what, 30, 4, generator)) == list(range(31))
    assert loss() < 0.9 * first
    changed = {n for n, p in bert.named_parameters() if not torch.equal(p, before[n])}
    maps = {n for n in before if "bochner_attention" in n}
    projections = {n for n in before if ".query." in n or ".key." in n}
    # a bias of the keys moves all logits of a row alike, but not the estimates of their exponentials
    assert changed == (maps if what == MAPS else maps | projections)


def test_landmarks_are_trained_in_small_steps(bert, windows, generator):
    """An absolute step would replace their matrices, which are far smaller than their points."""
    finetuning.convert(bert, cell("calibrated"), windows.split(2))
    pool = distillation.targets(bert, windows)
    groups = distillation.trained_parameters(bert, MAPS)
    before = [group["params"][0].detach().clone() for group in groups]
    list(distillation.distil(bert, pool, MAPS, 5, 4, generator))
    for group, old in zip(groups, before, strict=True):
        moved = (group["params"][0].detach() - old).square().mean().sqrt()
        assert (
            0 < float(moved) <= 5 * distillation.LANDMARK_RATE * float(old.square().mean().sqrt())
        )


def test_without_anything_to_train_the_model_stays(bert, windows, generator):
    pool = distillation.targets(bert, windows)
    finetuning.convert(bert, cell("positive"), windows.split(2))
    before = {n: p.clone() for n, p in bert.named_parameters()}
    list(distillation.distil(bert, pool, MAPS, 2, 4, generator))
    assert all(torch.equal(p, before[n]) for n, p in bert.named_parameters())


@pytest.mark.parametrize("method", ["positive", "dark", EXACT])
def test_a_language_model_learns_its_text(llama, windows, generator, method):
    texts = windows[:2].repeat(4, 1)
    fields = cell(method, steps=12, batch=2, trained=ALL)
    if method != EXACT:
        finetuning.convert(llama, fields, windows.split(2))
    before = {n: p.clone() for n, p in llama.named_parameters()}

    def loss():
        return float(llama(input_ids=texts, labels=texts).loss.detach())

    first = loss()
    steps = finetuning.train_language_model(llama, fields, texts, generator)
    assert list(steps) == list(range(13))
    assert loss() < first
    changed = {n for n, p in llama.named_parameters() if not torch.equal(p, before[n])}
    maps = {n for n in before if "bochner_attention" in n}
    assert bool(maps) == (method == "dark")
    assert changed == maps | {n for n in before if "q_proj" in n or "k_proj" in n}


def test_projections_of_other_models_are_not_guessed():
    assert distillation.projections(torch.nn.Linear(2, 2)) == []


def test_looks_double():
    assert sorted(finetuning.looks(200)) == [0, 6, 12, 25, 50, 100, 200]
    assert sorted(finetuning.looks(1)) == [0, 1]


@pytest.mark.parametrize("quick", [True, False])
def test_cells(quick):
    cells = checked_cells(finetuning.EXPERIMENT, quick)
    trained = {(c["method"], c["trained"]) for c in cells if c["part"] == "encoder"}
    assert trained == {(m, w) for m in finetuning.METHODS for w in (MAPS, ALL)} - {
        ("positive", MAPS),
        ("calibrated", ALL),
    }
    methods = {c["method"] for c in cells if c["part"] == "decoder"}
    assert {EXACT, "positive", finetuning.IDENTITY} <= methods
    if not quick:
        seeds = {c["seed"] for c in cells if c["part"] == "encoder" and not c["window"]}
        assert seeds == {0, 1, 2}


@pytest.fixture
def rows():
    """Rows of all quick cells, with figures in place of measurements."""
    found = []
    for one in finetuning.cells(True):
        learned = one["method"] != "positive"  # exact attention adapts to the text too
        for step in sorted(finetuning.looks(one["steps"])):
            row = {**one, "step": step}
            if one["part"] == "encoder":
                row |= {"parameters": 12, "source": "made up", "cosine": 0.9, "ranking": 0.9}
                row |= {"error": 0.8 if step == 0 else 0.4 if learned else 0.6}
            else:
                start = 3.0 if one["method"] == EXACT else 5.0
                row |= {"loss": start - step * (1.0 if learned else 0.5) / one["steps"]}
            found.append(row)
    return found


def test_rows_give_claims_tables_and_pictures(rows, tmp_path):
    check_flat(rows, "darkformer-finetuning")
    file = Path(finetuning.__file__).parent / "claims" / "finetuning.toml"
    measured = finetuning.EXPERIMENT.measured(rows)
    expected = {"covariance": 0.5, "projections": 0.25, "both": 0.5}
    assert measured == pytest.approx(
        {f"encoder-removed-{name}": share for name, share in expected.items()}
        # after training: Performer 4.5, dark 4, exact 2
        | {"decoder-closed-before": 0.0, "decoder-closed-after": 0.5 / 2.5}
    )
    assert len(claim_rows(read_claims(file, "darkformer-finetuning"), measured)) == 5
    text = finetuning_report.summary(rows)
    assert "0.800 → 0.400" in text
    assert f"| exact attention | {ALL} | {math.exp(3):.1f} | {math.exp(2):.1f} |" in text
    finetuning_report.draw(rows, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["decoder.png", "encoder.png"]


def test_a_small_run_of_the_encoder(tmp_path):
    sizes = {"layers": 6, "length": 24, "pool": 4, "held_out": 2, "batch": 2, "steps": 2}
    fields = cell("dark", part="encoder", trained=ALL, **sizes)
    found = finetuning.run(fields, tmp_path)
    assert [row["step"] for row in found] == [0, 1, 2]
    assert len({row["error"] for row in found}) == 3
    assert all(0 < row["cosine"] <= 1 for row in found)


def test_linearize_is_what_convert_calls(bert):
    with pytest.raises(ValueError, match="converted already"):
        linearize(linearize(bert, "positive", 8), "positive", 8)
