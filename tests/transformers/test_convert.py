"""Conversion: what it puts into a model, what stays exact, and what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertModel,
    BloomConfig,
    BloomModel,
    Gemma2Config,
    Gemma2Model,
    GptOssConfig,
    GptOssModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5Model,
)

import bochner
from bochner import NotFittedError
from bochner.transformers import (
    LinearLayer,
    attention_places,
    collect_qkv,
    converted_layers,
    interface,
    linear_attention_swapped,
    linearize,
    restore,
)
from tests.transformers.tiny import (
    BERT,
    FAMILIES,
    LLAMA,
    exact_attention,
    hidden,
    make_maps,
    maps_for,
    valid,
)

POSITIVE = {"feature_map": "positive", "num_features": 16}


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def text_model(name="llama"):
    family = FAMILIES[name]
    return family.model(), family.inputs()


# -- what conversion puts in -------------------------------------------------------------------------


def test_places_of_every_family():
    found = {
        name: [(p.name, p.heads, p.kv_heads, p.head_dim, p.cross, p.causal) for p in places]
        for name, places in ((n, attention_places(f.model())) for n, f in FAMILIES.items())
    }
    assert found["llama-grouped"] == [
        (f"model.layers.{i}.self_attn", 4, 2, 4, False, True) for i in range(2)
    ]
    assert found["gpt2"][1] == ("transformer.h.1.attn", 2, 2, 8, False, True)
    assert found["whisper"] == [
        ("model.encoder.layers.0.self_attn", 2, 2, 8, False, False),
        ("model.decoder.layers.0.self_attn", 2, 2, 8, False, True),
        ("model.decoder.layers.0.encoder_attn", 2, 2, 8, True, False),
        ("model.decoder.layers.1.self_attn", 2, 2, 8, False, True),
        ("model.decoder.layers.1.encoder_attn", 2, 2, 8, True, False),
    ]
    assert len(found["albert"]) == 1
    assert all(place[1:4] == (2, 2, 8) for place in found["vit"] + found["dinov2"] + found["bert"])


def test_maps_are_parts_of_the_model():
    model, inputs = text_model("llama")
    linearize(model, "dark", 8, generator=seeded())
    layers = converted_layers(model)
    assert list(layers) == [0, 1]
    g = seeded()
    for layer in layers.values():  # as `calibrate` does
        layer.feature_map = layer.feature_map.fit(*(torch.randn(2, 40, 8, generator=g),) * 2)
    names = [n for n, _ in model.named_parameters() if "bochner_attention" in n]
    assert len(names) == 2, "dark has one trainable matrix a layer"
    assert any("layers.1.self_attn.bochner_attention.exact_heads" in n for n in model.state_dict())
    model.train()
    assert all(layer.training for layer in layers.values())
    model.eval()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert all(model.get_parameter(n).grad.abs().sum() > 0 for n in names)
    model.to("meta")
    assert all(x.device.type == "meta" for x in layers[0].state_dict().values())


def test_maps_by_name_come_from_the_generator():
    model, inputs = text_model()
    first, second = (
        hidden(linearize(copy.deepcopy(model), **POSITIVE, generator=seeded(s)), inputs)
        for s in (3, 3)
    )
    other = hidden(linearize(copy.deepcopy(model), **POSITIVE, generator=seeded(4)), inputs)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_converted_models_of_their_own(copied):
    model, inputs = text_model()
    exact = hidden(model, inputs)
    linear = hidden(linearize(model, **POSITIVE), inputs)
    other = copied(model)
    assert torch.equal(hidden(other, inputs), linear)
    restore(model)
    assert torch.equal(hidden(other, inputs), linear)
    assert torch.equal(hidden(restore(other), inputs), exact)
    assert torch.equal(hidden(model, inputs), exact)


def test_a_model_that_shares_the_configuration_stays_exact():
    model, inputs = text_model()
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    exact = hidden(other, inputs)
    linearize(model, **POSITIVE)
    assert torch.equal(hidden(other, inputs), exact)


def test_collecting_from_a_converted_model_is_exact():
    model, inputs = text_model()
    expected = collect_qkv(model, **inputs)
    linearize(model, **POSITIVE)
    linear = hidden(model, inputs)
    for a, b in zip(expected, collect_qkv(model, **inputs), strict=True):
        assert torch.equal(a.q, b.q)
    assert torch.equal(hidden(model, inputs), linear)


def test_minilm_converted(minilm, batch):
    model = copy.deepcopy(minilm[0])
    exact = hidden(model, batch)
    linearize(model, "positive", 64, generator=seeded())
    assert len(converted_layers(model)) == 6
    linear = hidden(model, batch)
    alone = {name: x[1:, :6] for name, x in batch.items()}
    torch.testing.assert_close(hidden(model, alone)[0], linear[1, :6], rtol=0, atol=2e-4)
    left = {name: torch.nn.functional.pad(x, (5, 0)) for name, x in alone.items()}
    left["position_ids"] = torch.nn.functional.pad(torch.arange(6)[None], (5, 0))
    torch.testing.assert_close(hidden(model, left)[0, 5:], linear[1, :6], rtol=0, atol=2e-4)
    assert torch.equal(hidden(restore(model), batch), exact)


def test_cross_attention_has_no_window():
    """Positions of two sequences have no distance, and sinks chosen by all queries would leak."""
    family = FAMILIES["whisper"]
    model = linearize(family.model(), **POSITIVE, window=3, sinks=2)
    assert [layer.exact is None for layer in converted_layers(model).values()] == [
        place.cross for place in attention_places(model)
    ]
    later = family.inputs()
    later["decoder_input_ids"][:, 5:] = 7
    first, second = hidden(model, family.inputs()), hidden(model, later)
    assert torch.equal(first[:, :5], second[:, :5])


# -- heads that stay exact ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama-grouped", "gpt2", "whisper"])
def test_all_heads_exact_is_the_model(name):
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    if family.mask:
        inputs[family.mask][1, :3] = 0
    exact = hidden(model, inputs)
    linearize(model)  # calibrated maps without data: not asked
    for layer in converted_layers(model).values():
        layer.exact_heads.fill_(True)
    rows = inputs[family.mask].bool() if family.mask else ...
    torch.testing.assert_close(hidden(model, inputs)[rows], exact[rows], rtol=0, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_some_heads_exact(causal):
    g = seeded()
    phi = bochner.make("positive", dim=4, num_features=16, batch_shape=(3,), generator=g)
    layer = LinearLayer(phi, 3)
    q, k, v = (torch.randn(2, 3, 10, 4, generator=g) for _ in range(3))
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, :4] = False
    linear = layer(q, k, v, causal=causal, key_mask=mask)
    layer.keep_exact([2])
    mixed = layer(q, k, v, causal=causal, key_mask=mask)
    expected = exact_attention(phi, q, k, v, causal=causal, key_mask=mask[:, None])
    torch.testing.assert_close(mixed[:, :2], linear[:, :2], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed[:, 2], expected[:, 2], rtol=0, atol=1e-5)
    layer.keep_exact([])
    assert torch.equal(layer(q, k, v, causal=causal, key_mask=mask), linear)


def test_keep_exact_refuses_other_heads():
    with pytest.raises(ValueError, match=r"heads=\[2\] must be numbers from 0 to 1"):
        LinearLayer(make_maps(1, 2, 4)[0], 2).keep_exact([2])


# -- training, dtypes, compilation -------------------------------------------------------------------


def test_attention_dropout_is_refused_or_left_out(minilm, batch):
    model = linearize(copy.deepcopy(minilm[0]).train(), **POSITIVE)
    with pytest.raises(ValueError, match=r"attention dropout is 0\.1.*without_dropout = True"):
        hidden(model, batch)
    for layer in converted_layers(model).values():
        layer.without_dropout = True
    assert hidden(model, batch).isfinite().all()


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model, inputs = text_model(name)
    model.train()
    linearize(model, **POSITIVE, generator=seeded())

    def gradients():
        model.zero_grad()
        model(**inputs)[0].square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert len(plain) == len(checkpointed) > 10
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit", "whisper"])
def test_half_precision(name, dtype):
    """No further from float32 than the exact model is, up to a factor."""
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    half = copy.deepcopy(model).to(dtype)
    cast = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
    exact = hidden(half, cast).float() - hidden(model, inputs)
    maps = maps_for(model)
    linear = hidden(linearize(model, maps), inputs)
    out = hidden(linearize(half, maps), cast)
    assert out.dtype == dtype
    assert (out.float() - linear).norm() < 3 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scaled_without_rounding(dtype):
    q = torch.randn(1, 2, 5, 8, generator=seeded()).to(dtype)
    scaled_q, scaled_k = interface.scaled(q, q, {"scaling": 0.1})
    assert torch.equal(scaled_q, q.float() * 0.1**0.5)
    assert torch.equal(scaled_k, scaled_q)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_compiled(name, use_attention):
    """One graph where the engine is one; the causal engine takes long to compile, so not here."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    config = family.model().config
    config.num_hidden_layers = 1
    model, inputs = type(family.model())(config).eval(), family.inputs()
    inputs["attention_mask"][1, :3] = 0
    linearize(model, **POSITIVE, generator=seeded())
    if name == "llama":
        use_attention(exact_attention)
    expected = hidden(model, inputs)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        out = compiled(**inputs, use_cache=False)[0]
    torch.testing.assert_close(valid(out, inputs), valid(expected, inputs), rtol=0, atol=1e-5)


# -- errors ------------------------------------------------------------------------------------------


def test_unfitted_maps_name_the_remedy():
    model, inputs = text_model()
    linearize(model)
    with pytest.raises(
        NotFittedError, match=r"'calibrated' of layer.*calibrate\(model, batches\)"
    ) as e:
        hidden(model, inputs)
    assert e.value.__notes__ == ["in attention layer model.layers.0.self_attn (LlamaAttention)"]


def test_converting_twice_is_refused():
    model, _ = text_model()
    linearize(model, **POSITIVE)
    with pytest.raises(ValueError, match=r"converted already \(2 layers, first 'model\.layers\.0"):
        linearize(model, **POSITIVE)


@pytest.mark.parametrize("layers", [[], [2], [0, 0], [-1]])
def test_layers_that_do_not_exist(layers):
    model, _ = text_model()
    with pytest.raises(ValueError, match=r"layers=\[.*must be different numbers from 0 to 1"):
        linearize(model, **POSITIVE, layers=layers)
    assert converted_layers(model) == {}


@pytest.mark.parametrize(("maps", "said"), [(1, "has 1 maps, but 2"), (3, "has 3 maps, but 2")])
def test_number_of_maps(maps, said):
    model, _ = text_model()
    with pytest.raises(ValueError, match=said):
        linearize(model, make_maps(maps, 2, 8))


@pytest.mark.parametrize(("heads", "dim"), [(2, 16), (3, 8)])
def test_maps_that_do_not_fit_name_the_layer(heads, dim):
    model, _ = text_model()
    with pytest.raises(ValueError, match=r"map of attention module 0 \(model.layers.0.self_attn\)"):
        linearize(model, make_maps(2, heads, dim))
    assert converted_layers(model) == {}


def test_shared_layers_share_one_map(use_attention):
    model = AlbertModel(AlbertConfig(**BERT, embedding_size=8)).eval()
    inputs = FAMILIES["albert"].inputs()
    assert len(collect_qkv(model, **inputs)) == 2
    with pytest.raises(ValueError, match="2 maps, but 1.*share one"):
        linearize(model, make_maps(2, 2, 8))


def test_sliding_windows_are_refused_and_may_stay_exact():
    sizes = LLAMA | {"num_key_value_heads": 2, "sliding_window": 4}
    model = MistralForCausalLM(MistralConfig(**sizes)).eval()
    inputs = FAMILIES["llama"].inputs()
    linearize(model, **POSITIVE)
    with pytest.raises(ValueError, match=r"shape \[2, 1, 9, 9\].*Sliding windows.*layers="):
        hidden(model, inputs)
    gemma = {"sliding_window": 4, "attn_logit_softcapping": None, "num_key_value_heads": 2}
    mixed = Gemma2Model(Gemma2Config(**LLAMA | gemma, head_dim=8)).eval()
    assert mixed.config.layer_types == ["sliding_attention", "full_attention"]
    exact = hidden(mixed, inputs)
    with pytest.raises(ValueError, match="module 0 .* has a sliding window.*layers="):
        linearize(mixed, **POSITIVE)
    linearize(mixed, **POSITIVE, layers=[1])
    for layer in converted_layers(mixed).values():
        layer.keep_exact(range(2))
    torch.testing.assert_close(hidden(mixed, inputs), exact, rtol=0, atol=2e-5)


def test_packed_sequences_are_refused():
    model, inputs = text_model()
    linearize(model, **POSITIVE)
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)
    with pytest.raises(ValueError, match=r"\[2, 1, 9, 9\].*packed sequences"):
        hidden(
            model, {"input_ids": inputs["input_ids"], "position_ids": packed, "use_cache": False}
        )


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_four_dimensional_masks_are_refused(dtype):
    model, inputs = text_model()
    linearize(model, **POSITIVE)
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"shape \[2, 1, 9, 9\].*expected padding.*2-D mask"):
        hidden(model, inputs | {"attention_mask": mask.to(dtype)})


def test_logits_with_a_bias_are_refused():
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = T5Model(config).eval()
    inputs = FAMILIES["bert"].inputs()
    inputs["decoder_input_ids"] = inputs["input_ids"]
    with pytest.raises(ValueError, match="has position_bias"):
        collect_qkv(model, **inputs)
    with pytest.raises(ValueError, match="has a relative position bias in its logits"):
        linearize(model, **POSITIVE)


def test_soft_caps_and_sinks_in_the_logits_are_refused():
    capped = Gemma2Model(Gemma2Config(**LLAMA | {"num_key_value_heads": 2}, head_dim=8)).eval()
    with pytest.raises(ValueError, match="a soft cap on its logits"):
        linearize(capped, **POSITIVE, layers=[1])
    sizes = LLAMA | {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    types = {"layer_types": ["full_attention"] * 2}
    sunk = GptOssModel(GptOssConfig(**sizes, **types, head_dim=8)).eval()
    sunk.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="a learned sink in its normaliser"):
        linearize(sunk, **POSITIVE)


def test_models_off_the_interface_are_named():
    bloom = BloomModel(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)).eval()
    before = bloom.config._attn_implementation
    inputs = FAMILIES["bert"].inputs()
    for model, error, said in (
        (bloom, ValueError, "model is a BloomModel.*does not go through the attention interface"),
        (nn.Linear(2, 2), TypeError, r"(?s)model.*Linear.*PreTrainedModel"),
    ):
        with pytest.raises(error, match=said):
            collect_qkv(model, **inputs)
        with pytest.raises(error, match=said):
            linearize(model, **POSITIVE)
        with pytest.raises(error, match=said), linear_attention_swapped(model, []):
            pass
    assert bloom.config._attn_implementation == before


def test_a_module_that_does_not_say_its_size_wants_maps(monkeypatch):
    model = BertModel(FAMILIES["bert"].model().config).eval()
    for layer in model.encoder.layer:
        del layer.attention.self.attention_head_size
        del layer.attention.self.num_attention_heads
        layer.attention.self.config = type("Config", (), {"_attn_implementation": "sdpa"})()
    with pytest.raises(ValueError, match=r"does not say how many heads.*feature_map=\[one"):
        linearize(model, **POSITIVE)
    linearize(model, make_maps(2, 2, 8))
    assert [layer.num_heads for layer in converted_layers(model).values()] == [2, 2]


def test_an_implementation_of_another_kind_is_refused():
    model, _ = text_model()
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(
        ValueError, match=r'by \'flex_attention\'.*set_attn_implementation\("sdpa"\)'
    ):
        linearize(model, **POSITIVE)
    assert converted_layers(model) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feature_map": make_maps(1, 2, 8)[0]}, r"feature_map=RandomFeatures.*one FeatureMap per"),
        ({"feature_map": None}, r"feature_map=None must be a name"),
        ({"feature_map": "positive", "layers": 0}, r"layers=0 must be.*\[0\]"),
        ({"feature_map": [3], "layers": [1]}, r"feature_map\[0\] is a int"),
    ],
)
def test_arguments_of_another_kind_are_named(options, said):
    with pytest.raises(TypeError, match=said):
        linearize(FAMILIES["llama"].model(), **options)


def test_another_implementation_on_a_converted_model_is_refused_and_never_silent():
    model, inputs = FAMILIES["gpt2"].model(), FAMILIES["gpt2"].inputs()
    linearize(model, "positive", 16, layers=[1])
    expected = hidden(model, inputs)
    model.set_attn_implementation("sdpa")  # its caches would forget all but the newest token
    with pytest.raises(ValueError, match=r"'sdpa'.*restore\(model\)"):
        model(**inputs)
    model.set_attn_implementation(interface.LINEAR)
    assert torch.equal(hidden(model, inputs), expected)
    model.set_attn_implementation("sdpa")
    assert not any(m._forward_pre_hooks for m in restore(model).modules())
    hidden(model, inputs)


def test_compiled_code_knows_heads_that_came_with_a_state():
    model, other = (linearize(FAMILIES["llama"].model(), "positive", 16) for _ in range(2))
    converted_layers(model)[1].keep_exact([1])
    other.load_state_dict(model.state_dict())
    assert [x._kept for x in converted_layers(other).values()] == [(), (1,)]
