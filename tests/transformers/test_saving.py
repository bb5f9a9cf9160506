"""A converted model comes back from disk bit for bit, or not at all."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bochner.transformers import (
    converted_layers,
    from_pretrained,
    linearize,
    save_pretrained,
)
from bochner.transformers.cache import LinearCacheLayer
from bochner.transformers.saving import SETTINGS, TENSORS
from tests.maps import fitted
from tests.transformers.tiny import FAMILIES, LLAMA, hidden

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")


def converted(name="llama-grouped", **options):
    model = FAMILIES[name].model()
    g = torch.Generator().manual_seed(4)
    return linearize(model, "positive", 16, generator=g, **options)


@pytest.fixture
def saved(tmp_path):
    model = converted(window=3, sinks=1)
    save_pretrained(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back(name, tmp_path):
    family = FAMILIES[name]
    model = converted(name, window=3, sinks=1)
    expected = hidden(model, family.inputs())
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert torch.equal(hidden(again, family.inputs()), expected)
    assert type(again) is type(model)
    assert list(again.state_dict()) == list(model.state_dict())
    assert not any(p.suffix == ".tmp" for p in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["dark", "data-aware", "calibrated", "trigonometric", "angular"])
def test_fitted_maps_come_back(name, tmp_path):
    model, inputs = FAMILIES["llama"].model(), FAMILIES["llama"].inputs()
    linearize(model, [fitted(name, dim=8, num_features=16, batch_shape=(2,))] * 2)
    expected = hidden(model, inputs)
    save_pretrained(model, tmp_path)
    assert torch.equal(hidden(from_pretrained(tmp_path), inputs), expected)


def test_what_stays_exact_comes_back(tmp_path):
    model = FAMILIES["llama-grouped"].model()
    model.set_attn_implementation("eager")
    linearize(model, layers=[1], window=4)  # its map has seen no data, and no head asks it
    layer = converted_layers(model)[1]
    layer.keep_exact(range(4))
    layer.without_dropout = True
    expected = hidden(model, FAMILIES["llama"].inputs())
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert torch.equal(hidden(again, FAMILIES["llama"].inputs()), expected)
    assert list(converted_layers(again)) == [1]
    (found,) = converted_layers(again).values()
    assert found.exact == layer.exact
    assert found.without_dropout
    assert found.kept_heads() == (0, 1, 2, 3)
    assert again.config._attn_implementation == model.config._attn_implementation


def test_half_precision_comes_back(tmp_path):
    model = converted().bfloat16()
    expected = hidden(model, FAMILIES["llama"].inputs())
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(hidden(again, FAMILIES["llama"].inputs()), expected)
    assert from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_what_comes_back_generates(saved):
    model = from_pretrained(saved, AutoModelForCausalLM)
    out = model.generate(
        **FAMILIES["llama"].inputs(),
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert isinstance(out.past_key_values.layers[0], LinearCacheLayer)


def test_transformers_alone_loads_the_exact_model(saved):
    exact = FAMILIES["llama-grouped"].model()
    alone = AutoModelForCausalLM.from_pretrained(saved)
    inputs = FAMILIES["llama"].inputs()
    assert torch.equal(hidden(alone, inputs), hidden(exact, inputs))
    assert alone.config._attn_implementation == "sdpa"


def test_saving_over_an_older_model(saved):
    model = converted("gpt2")
    save_pretrained(model, saved)
    inputs = FAMILIES["gpt2"].inputs()
    assert torch.equal(hidden(from_pretrained(saved), inputs), hidden(model, inputs))


def test_a_saving_that_was_cut_off_is_not_loaded(saved, monkeypatch):
    model = converted("gpt2")

    def cut_off(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save_pretrained", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model, saved)
    with pytest.raises(FileNotFoundError, match=r"has no bochner\.json.*wrote to its end"):
        from_pretrained(saved)


@pytest.mark.parametrize("name", [SETTINGS, TENSORS])
def test_missing_files_are_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        from_pretrained(saved)


def edited(saved, **changes):
    path = saved / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_format_is_refused(saved):
    edited(saved, format=2, bochner="9.0")
    with pytest.raises(ValueError, match=r"has format 2, written by bochner 9\.0.*reads format 1"):
        from_pretrained(saved)


def test_tensors_of_another_saving_are_refused(saved, tmp_path):
    save_pretrained(converted("gpt2"), tmp_path / "other")
    shutil.copy(tmp_path / "other" / TENSORS, saved / TENSORS)
    with pytest.raises(ValueError, match="is not the file that was written with"):
        from_pretrained(saved)


def test_another_class_is_refused(saved):
    with pytest.raises(ValueError, match="gave a LlamaModel, saved was a LlamaForCausalLM"):
        from_pretrained(saved, AutoModel)
    edited(saved, **{"class": "system"})
    with pytest.raises(ValueError, match="was a system, which is no class of transformers"):
        from_pretrained(saved)


def test_another_model_is_refused(saved):
    torch.manual_seed(1)
    sizes = LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 2}
    other = LlamaForCausalLM(LlamaConfig(**sizes))
    other.save_pretrained(saved)
    with pytest.raises(ValueError, match="weights of the model are not those"):
        from_pretrained(saved)
    LlamaForCausalLM(LlamaConfig(**sizes | {"num_hidden_layers": 1})).save_pretrained(saved)
    with pytest.raises(ValueError, match="saved were those of"):
        from_pretrained(saved)


def test_a_map_that_computes_otherwise_is_refused(saved, monkeypatch):
    """A later bochner whose features differ under the same settings."""
    from bochner.nonlinearities import Positive

    features = Positive.features if hasattr(Positive, "features") else None
    settings = json.loads((saved / SETTINGS).read_text())
    attributes = settings["layers"]["0"]["map"]["attributes"]
    attributes["nonlinearity"]["object"] = "bochner.nonlinearities:Hyperbolic"
    (saved / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(
        (ValueError, RuntimeError), match="gives other values than when it was saved"
    ):
        from_pretrained(saved)
    assert features is None or features is Positive.features


def test_a_model_that_is_not_converted_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without converted layers.*model\.save_pretrained"):
        save_pretrained(FAMILIES["llama"].model(), tmp_path)
    assert not list(tmp_path.iterdir())
