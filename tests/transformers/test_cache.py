"""Generation on states of constant size gives what the model gives without a cache."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bochner.transformers import (
    LINEAR,
    LinearCache,
    LinearLayer,
    converted_layers,
    linearize,
    restore,
)
from bochner.transformers import layer as layer_module
from bochner.transformers.cache import LinearCacheLayer
from tests.transformers.tiny import FAMILIES, LLAMA, exact_attention, make_maps

DECODERS = ["gpt2", "neox", "llama", "llama-grouped", "bert-decoder"]
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def converted(name, num_features=32, **options):
    model = FAMILIES[name].model()
    g = torch.Generator().manual_seed(4)
    return linearize(model, "positive", num_features, generator=g, **options)


def prompt():
    """A left-padded batch."""
    inputs = FAMILIES["llama"].inputs()
    inputs["attention_mask"][1, :4] = 0
    return inputs


def generate(model, inputs=None, **options):
    torch.manual_seed(0)  # what `generate` samples with
    out = model.generate(
        **(prompt() if inputs is None else inputs),
        **GREEDY | options,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def assert_same(cached, plain):
    assert torch.equal(cached[0], plain[0])
    torch.testing.assert_close(cached[1], plain[1], rtol=0, atol=2e-4)


WINDOWS = [(0, 0), (4, 0), (0, 2), (3, 2)]


@pytest.mark.parametrize(("window", "sinks"), WINDOWS)
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_equals_no_cache(name, window, sinks):
    model = converted(name, window=window, sinks=sinks)
    plain = generate(model, use_cache=False)
    assert len(set(plain[0][:, -12:].flatten().tolist())) > 3, "not one token for ever"
    cache = LinearCache(model)
    assert_same(generate(model, past_key_values=cache), plain)
    assert [type(layer) for layer in cache.layers] == [LinearCacheLayer] * 2
    assert cache.get_seq_length() == 9 + 11
    assert_same(generate(model), plain)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_beams_equal_no_cache(name, options):
    model = converted(name, window=3, sinks=1)
    options["output_logits"] = False
    out = [
        model.generate(**prompt(), **GREEDY | options | use)
        for use in ({"use_cache": False}, {}, {"past_key_values": LinearCache(model)})
    ]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])


def test_the_beams_would_show_a_cache_that_is_not_reordered(monkeypatch):
    model = converted("llama-grouped")
    plain = model.generate(**prompt(), **GREEDY, num_beams=3, use_cache=False)
    monkeypatch.setattr(LinearCacheLayer, "reorder_cache", lambda self, beams: None)
    assert not torch.equal(model.generate(**prompt(), **GREEDY, num_beams=3), plain)


def test_sampling_equals_no_cache():
    model = converted("llama")
    options = {"do_sample": True, "temperature": 1.3, "top_k": 20, "num_return_sequences": 2}
    assert_same(generate(model, **options), generate(model, use_cache=False, **options))


@pytest.mark.parametrize("exact", [[1], [0, 3], [0, 1, 2, 3]])
def test_heads_that_stay_exact_keep_their_keys(exact):
    model = converted("llama-grouped", window=3)
    for layer in converted_layers(model).values():
        layer.keep_exact(exact)
    plain = generate(model, use_cache=False)
    cache = LinearCache(model)
    assert_same(generate(model, past_key_values=cache), plain)
    groups = len({head // 2 for head in exact})
    assert cache.layers[0].keys.shape == (2, groups, 20, 4)
    beams = [
        model.generate(**prompt(), **GREEDY, num_beams=3, use_cache=use) for use in (True, False)
    ]
    assert torch.equal(*beams)


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_that_stay_exact_have_their_ordinary_cache(layer):
    model = converted("llama-grouped", layers=[layer])
    plain = generate(model, use_cache=False)
    cache = LinearCache(model)
    assert_same(generate(model, past_key_values=cache), plain)
    assert isinstance(cache.layers[layer], LinearCacheLayer)
    assert cache.layers[1 - layer].keys.shape[-2] == 20
    assert_same(generate(model), plain)


def test_exact_layers_may_have_sliding_windows():
    """Gemma 2: of two layers one slides, the other is converted; the prompt is past the window."""
    sizes = {"sliding_window": 4, "attn_logit_softcapping": None, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**LLAMA | sizes, head_dim=8)).eval()
    linearize(model, "positive", 32, layers=[1], generator=torch.Generator().manual_seed(4))
    assert_same(generate(model), generate(model, use_cache=False))


def test_memory_does_not_grow_with_the_length():
    model = converted("llama-grouped", window=4, sinks=2)

    def size(n):
        cache = LinearCache(model)
        with torch.no_grad():
            model(torch.arange(n)[None] % 50, past_key_values=cache)
        return [sum(x.numel() for x in layer.state.tensors().values()) for layer in cache.layers]

    assert size(16) == size(48)


@pytest.mark.parametrize("pieces", [(20,), (1,) * 20, (7, 1, 12)])
def test_prefill_in_pieces(pieces):
    model = converted("llama-grouped", window=4, sinks=2)
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(5))
    cache, parts = LinearCache(model), []
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for part in ids.split(pieces, dim=1):
            parts.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-4)
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        again = model(ids, past_key_values=cache).logits
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-4)


def test_selecting_and_repeating_sequences():
    model = converted("llama-grouped")
    converted_layers(model)[0].keep_exact([0])
    ids = prompt()["input_ids"]
    cache = LinearCache(model)
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        out = model(ids[[1, 0], 5:], past_key_values=cache).logits
        whole = model(ids[[1, 0]], use_cache=False).logits[:, 5:]
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-4)


def test_a_cache_of_the_callers_own_becomes_linear_in_place():
    """The caller's object, and not another one, holds what was seen: it may be passed again."""
    model = converted("llama")
    ids = prompt()["input_ids"]
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        with torch.no_grad():
            model(ids[:, :5], past_key_values=cache)
            out = model(ids[:, 5:], past_key_values=cache).logits
            whole = model(ids, use_cache=False).logits[:, 5:]
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-4)
        assert isinstance(cache.layers[0], LinearCacheLayer)


def test_caches_that_keep_keys_are_refused_and_never_wrong():
    model = FAMILIES["llama"].model()
    ids = prompt()["input_ids"]
    cache = DynamicCache()
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache)
    linearize(model, "positive", 32)
    with pytest.raises(ValueError, match=r"4 queries and 9 keys.*LinearCache\(model\)"):
        model(ids[:, 5:], past_key_values=cache)
    inner = model(ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"4 queries and 9 keys.*LinearCache\(model\)"):
        model(ids[:, 5:], past_key_values=inner)
    with pytest.raises(ValueError, match="static caches"):
        model.generate(**prompt(), **GREEDY, cache_implementation="static")


def test_assisted_generation_is_refused():
    model = converted("llama")
    with pytest.raises(NotImplementedError, match="cannot forget tokens"):
        LinearCache(model).crop(-1)
    first = {name: x[:1] for name, x in prompt().items()}
    with pytest.raises((NotImplementedError, ValueError), match=r"cannot forget tokens|crop"):
        model.generate(**first, **GREEDY, prompt_lookup_num_tokens=2)


class OneAttention(nn.Module):
    """What an attention module of transformers does with a cache, and nothing else."""

    def __init__(self, layer):
        super().__init__()
        self.bochner_attention = layer
        self.is_causal = True

    def forward(self, q, k, v, cache=None):
        if cache is not None:
            k, v = cache.update(k, v, 0)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(LINEAR, None)
        return attend(self, q + 0.0, k, v, None, scaling=1.0)[0]


def test_compiled_attention_finds_its_cache(use_attention, monkeypatch):
    """First without a cache, so that the compiled code has not looked for one; exact attention in
    place of the engine, which takes long to compile and has tests of its own."""

    def step(state, q, k, v, *, key_mask):
        past = zip(state or (k[:, :, :0], v[:, :, :0]), (k, v), strict=True)
        state = [torch.cat(pair, dim=-2) for pair in past]
        return exact_attention(None, q, *state, causal=True), state

    use_attention(exact_attention)
    monkeypatch.setattr(layer_module, "step", step)
    monkeypatch.setattr(layer_module, "AttentionState", lambda feature_map, exact: None)
    layer = LinearLayer(make_maps(1, 2, 4)[0], 2)
    q, k, v = torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()
    compiled = torch.compile(OneAttention(layer), backend="eager")
    whole = compiled(q, k, v)
    cache = Cache(layers=[LinearCacheLayer()])
    layer.may_be_cached = True  # as LinearCache(model) says it
    parts = [
        compiled(*(x[:, :, rows] for x in (q, k, v)), cache) for rows in (slice(5), slice(5, 9))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    assert cache.get_seq_length() == 9


def test_an_encoder_has_no_cache():
    with pytest.raises(ValueError, match="BertModel without a converted causal layer"):
        LinearCache(linearize(FAMILIES["bert"].model(), "positive", 16))
    with pytest.raises(ValueError, match="without a converted causal layer"):
        LinearCache(FAMILIES["llama"].model())


def test_an_interrupted_pass_leaves_no_state_behind():
    """An error between the cache and the attention: the next pass is one of its own."""
    model = converted("llama")
    ids = prompt()["input_ids"]
    expected = model(ids, use_cache=False).logits
    attention = model.model.layers[0].self_attn
    cache = LinearCache(model)
    key = torch.zeros(2, 2, 1, 8)
    cache.update(key, key, attention.layer_idx)
    with pytest.raises(ValueError, match="changed the keys between its cache and its attention"):
        model(ids, use_cache=False)
    cache.update(key, key, attention.layer_idx)
    del key
    assert torch.equal(model(ids, use_cache=False).logits, expected)


@pytest.mark.parametrize("name", ["bart-decoder", "whisper"])
def test_encoder_decoders_equal_no_cache(name):
    model = converted(name)
    inputs = FAMILIES[name].inputs()
    ids = inputs.pop("decoder_input_ids")
    inputs.pop("decoder_attention_mask", None)
    if "attention_mask" in inputs:
        inputs["attention_mask"][1, 5:] = 0
    cache = EncoderDecoderCache(LinearCache(model), DynamicCache(config=model.config))
    parts = []
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=ids, use_cache=False)
        encoded = (whole.encoder_last_hidden_state,)
        for part in ids.split((4, *([1] * (ids.shape[1] - 4))), dim=1):
            out = model(
                **inputs,
                encoder_outputs=encoded,
                decoder_input_ids=part,
                past_key_values=cache,
                use_cache=True,
            )
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.logits, rtol=0, atol=1e-4)
    assert isinstance(cache.self_attention_cache.layers[0], LinearCacheLayer)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["bart-decoder", "whisper"])
def test_encoder_decoders_generate(name, beams):
    model = converted(name)
    inputs = FAMILIES[name].inputs()
    if name == "whisper":
        inputs = {"input_features": inputs["input_features"]}
    else:
        del inputs["decoder_input_ids"]
        inputs["attention_mask"][1, 5:] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams}
    out = [model.generate(**inputs, **options, use_cache=use) for use in (True, False)]
    assert torch.equal(*out)


def test_generation_after_restore_is_the_models_own():
    model = FAMILIES["llama"].model()
    expected = generate(copy.deepcopy(model))
    linearize(model, "positive", 32)
    linear = generate(model)
    assert not torch.equal(linear[1], expected[1])
    assert torch.equal(generate(restore(model))[1], expected[1])


def test_heads_that_change_under_a_cache_are_refused_and_never_wrong():
    ids = FAMILIES["llama"].inputs()["input_ids"]

    def after(first, second):
        """The prompt with heads `first` exact, a token with heads `second`."""
        model = converted("llama")
        layer, cache = converted_layers(model)[0], LinearCache(model)
        with torch.no_grad():
            layer.keep_exact(first)
            model(ids, past_key_values=cache)
            layer.keep_exact(second)
            model(ids[:, :1], past_key_values=cache)

    for first, second in (([], [0]), ([0], [1]), ([0], [0, 1]), ([0, 1], [0])):
        with pytest.raises(ValueError, match=r"stay exact.*another LinearCache"):
            after(first, second)
    after([0], [])  # fewer exact heads need nothing of the past


def test_other_sequences_under_a_cache_with_exact_heads_are_refused():
    ids = FAMILIES["llama"].inputs()["input_ids"]
    model = converted("llama")
    converted_layers(model)[0].keep_exact([0])
    cache = LinearCache(model)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        with pytest.raises(ValueError, match=r"3 sequences.*holds 2"):
            model(ids[[0, 0, 1], :1], past_key_values=cache)
