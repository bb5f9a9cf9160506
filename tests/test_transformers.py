"""Collecting from and swapping Hugging Face models, with the real MiniLM and tiny random models.

Swapping is tested twice: with an exact stand-in for `linear_attention`, under which a model must
give what it gave before (so nothing about masks, scaling or layouts can be wrong), and with random
features, which must see exactly the tokens that attention saw.
"""

import copy
import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralModel,
    T5Config,
    T5Model,
)

import bochner.transformers
from bochner.data.minilm import load_minilm
from bochner.nonlinearities import Positive
from bochner.projections import Orthogonal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.transformers import collect_qkv, linear_attention_swapped, sentence_embeddings

TEXTS = [
    "The jury further said that the City Executive Committee deserves the praise of the city.",
    "A cat sat.",
]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = SIZES | {"intermediate_size": 16, "max_position_embeddings": 32}


@pytest.fixture(scope="module")
def minilm():
    return load_minilm()


@pytest.fixture(scope="module")
def batch(minilm):
    """Two sentences, the second padded."""
    tokens = minilm[1](TEXTS, padding=True, return_tensors="pt")
    assert tokens["attention_mask"].sum(dim=1).tolist() == [18, 6]
    return dict(tokens)


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA, num_key_value_heads=2)).eval()


@pytest.fixture
def tokens():
    """A left-padded batch for the tiny models."""
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    return {"input_ids": torch.randint(50, (2, 9), generator=g), "attention_mask": mask}


def make_maps(layers, heads, dim, num_features=64):
    g = torch.Generator().manual_seed(2)
    request = Request(
        dim=dim,
        num_features=num_features,
        projection=Orthogonal(),
        generator=g,
        batch_shape=(heads,),
    )
    return [RandomFeatures(request, Positive()) for _ in range(layers)]


def exact_attention(feature_map, q, k, v, *, causal=False, key_mask=None):
    """The signature of linear_attention, with softmax attention inside."""
    visible = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    visible = visible.tril() if causal else visible
    if key_mask is not None:
        visible = visible & key_mask.unsqueeze(-2)
    weights = torch.softmax((q @ k.mT).masked_fill(~visible, -torch.inf), dim=-1)
    return weights.nan_to_num() @ v


def blind_attention(feature_map, q, k, v, *, causal=False, key_mask=None):
    """A mutant of exact_attention that loses the padding."""
    return exact_attention(feature_map, q, k, v, causal=causal)


def acausal_attention(feature_map, q, k, v, *, causal=False, key_mask=None):
    """A mutant of exact_attention that loses causality."""
    return exact_attention(feature_map, q, k, v, key_mask=key_mask)


@pytest.fixture
def use_attention(monkeypatch):
    return lambda function: monkeypatch.setattr(bochner.transformers, "linear_attention", function)


@torch.no_grad()
def hidden(model, inputs):
    """The last hidden state, or the logits."""
    return model(**inputs)[0]


@torch.no_grad()
def swapped_hidden(model, maps, inputs):
    with linear_attention_swapped(model, maps):
        return hidden(model, inputs)


def valid(x, inputs):
    """The rows of tokens that are not padding."""
    return x[inputs["attention_mask"].bool()]


# -- collecting ------------------------------------------------------------------------------------


def test_collected_logits_are_those_of_the_eager_model(minilm, batch):
    model, _ = minilm
    layers = collect_qkv(model, **batch)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(**batch, output_attentions=True).attentions
    assert len(layers) == len(attentions) == 6
    hide = ~batch["attention_mask"].bool()[:, None, None, :]
    for (q, k, v), weights in zip(layers, attentions, strict=True):
        assert q.shape == k.shape == v.shape == (2, 12, 18, 32)
        ours = torch.softmax((q @ k.mT).masked_fill(hide, -torch.inf), dim=-1)
        torch.testing.assert_close(ours, weights, rtol=0, atol=2e-5)


def test_collecting_changes_no_bit_of_the_model(minilm, batch):
    model, _ = minilm
    before = hidden(model, batch)
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    collect_qkv(model, **batch)
    handle.remove()
    assert torch.equal(seen[0], before)
    assert torch.equal(hidden(model, batch), before)
    assert model.config._attn_implementation == "sdpa"


def test_collected_tensors_are_independent_of_the_model(minilm, batch):
    for x in collect_qkv(minilm[0], **batch)[0]:
        assert not x.requires_grad
        assert x.is_leaf


def test_collecting_from_a_grouped_query_decoder(tokens):
    config = LlamaConfig(**LLAMA | {"num_attention_heads": 4}, num_key_value_heads=2)
    layers = collect_qkv(LlamaForCausalLM(config).eval(), **tokens)
    assert [x.shape for x in layers[1]] == [(2, 4, 9, 4), (2, 2, 9, 4), (2, 2, 9, 4)]


def test_collecting_needs_evaluation_mode(minilm, batch):
    model = copy.deepcopy(minilm[0]).train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        collect_qkv(model, **batch)


# -- swapping, with an exact stand-in --------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_swapped_encoder_keeps_its_output(minilm, batch, use_attention, padding_side):
    model, _ = minilm
    if padding_side == "left":
        batch = {name: x.flip(1) for name, x in batch.items()}
    maps = make_maps(6, 12, 32, num_features=4)
    before = hidden(model, batch)
    use_attention(exact_attention)
    after = swapped_hidden(model, maps, batch)
    torch.testing.assert_close(valid(after, batch), valid(before, batch), rtol=0, atol=2e-5)
    use_attention(blind_attention)
    lost = swapped_hidden(model, maps, batch)
    assert (valid(lost, batch) - valid(before, batch)).abs().max() > 0.01


def test_a_swapped_decoder_stays_causal_and_keeps_its_padding(llama, tokens, use_attention):
    maps = make_maps(2, 2, 8, num_features=4)
    before = valid(hidden(llama, tokens), tokens)
    use_attention(exact_attention)
    after = valid(swapped_hidden(llama, maps, tokens), tokens)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    for mutant in (blind_attention, acausal_attention):
        use_attention(mutant)
        lost = valid(swapped_hidden(llama, maps, tokens), tokens)
        assert (lost - before).abs().max() > 1e-4, mutant.__name__


def test_each_layer_gets_its_own_map(minilm, batch, use_attention):
    used = []

    def remember(feature_map, *args, **kwargs):
        used.append(feature_map)
        return exact_attention(feature_map, *args, **kwargs)

    maps = make_maps(6, 12, 32, num_features=4)
    use_attention(remember)
    swapped_hidden(minilm[0], maps, batch)
    assert [maps.index(feature_map) for feature_map in used] == list(range(6))


# -- swapping, with random features ----------------------------------------------------------------


def test_padding_does_not_reach_the_valid_tokens(minilm, batch):
    model, tokenizer = minilm
    maps = make_maps(6, 12, 32)
    with linear_attention_swapped(model, maps):
        padded = hidden(model, batch)
        for row, text in enumerate(TEXTS):
            alone = hidden(model, tokenizer(text, return_tensors="pt"))[0]
            torch.testing.assert_close(padded[row, : len(alone)], alone, rtol=0, atol=2e-4)
        ignored = hidden(model, batch | {"attention_mask": torch.ones_like(batch["input_ids"])})
    short = int(batch["attention_mask"][1].sum())
    assert (ignored[1, :short] - padded[1, :short]).abs().max() > 0.01, "the test would see it"


def test_a_swapped_model_differs_and_comes_back(minilm, batch):
    model, _ = minilm
    before = hidden(model, batch)
    with torch.no_grad(), linear_attention_swapped(model, make_maps(6, 12, 32)):
        inside = sentence_embeddings(model, **batch)
        assert model.config._attn_implementation == bochner.transformers.LINEAR
    with torch.no_grad():
        outside = sentence_embeddings(model, **batch)
    assert 0.01 < (inside - outside).norm(dim=1).max() < 2
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(hidden(model, batch), before)
    assert not model._forward_hooks
    assert len(bochner.transformers._attention_of) == 0


def test_the_future_does_not_reach_the_past(llama, tokens):
    maps = make_maps(2, 2, 8)
    later = tokens | {"input_ids": tokens["input_ids"].clone()}
    later["input_ids"][:, 6:] = 7
    with linear_attention_swapped(llama, maps):
        first, second = hidden(llama, tokens), hidden(llama, later)
    assert torch.equal(first[:, :6], second[:, :6])
    assert not torch.equal(first[:, 6:], second[:, 6:])


def test_collecting_inside_a_swap_is_exact(minilm, batch):
    model, _ = minilm
    expected = collect_qkv(model, **batch)
    with linear_attention_swapped(model, make_maps(6, 12, 32)):
        inside = collect_qkv(model, **batch)
        linear = hidden(model, batch)
        collect_qkv(model, **batch)
        assert torch.equal(hidden(model, batch), linear)
        assert model.config._attn_implementation == bochner.transformers.LINEAR
    assert (hidden(model, batch) - linear).abs().max() > 0.01
    for a, b in zip(expected, inside, strict=True):
        assert torch.equal(a.q, b.q)


def test_gradients_flow_through_a_swapped_model(llama, tokens):
    with linear_attention_swapped(llama, make_maps(2, 2, 8)):
        llama(**tokens).logits.sum().backward()
    weight = llama.model.layers[0].self_attn.q_proj.weight
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().max() > 0


def test_two_models_swapped_at_once(minilm, batch, llama, tokens):
    maps, others = make_maps(6, 12, 32), make_maps(2, 2, 8)
    alone = swapped_hidden(minilm[0], maps, batch), swapped_hidden(llama, others, tokens)
    with linear_attention_swapped(minilm[0], maps), linear_attention_swapped(llama, others):
        both = hidden(minilm[0], batch), hidden(llama, tokens)
    assert torch.equal(alone[0], both[0])
    assert torch.equal(alone[1], both[1])


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_everything_is_restored_after_an_error(minilm, batch, before):
    model = copy.deepcopy(minilm[0])
    model.set_attn_implementation(before)

    def fail(*args):
        raise KeyboardInterrupt

    handle = model.encoder.layer[3].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        collect_qkv(model, **batch)
    with pytest.raises(KeyboardInterrupt), linear_attention_swapped(model, make_maps(6, 12, 32)):
        hidden(model, batch)
    handle.remove()
    assert model.config._attn_implementation == before
    assert not model._forward_hooks
    assert len(bochner.transformers._attention_of) == 0
    hidden(model, batch)


@pytest.mark.parametrize(
    ("maps", "said"), [(5, "has 5 maps, model has more"), (7, "7 maps.*has 6")]
)
def test_number_of_maps(minilm, batch, maps, said):
    with pytest.raises(ValueError, match=said):
        swapped_hidden(minilm[0], make_maps(maps, 12, 32), batch)


@pytest.mark.parametrize(("heads", "dim"), [(12, 16), (3, 32)])
def test_maps_that_do_not_fit_name_the_layer(minilm, batch, heads, dim):
    with pytest.raises(ValueError, match="dim=16|batch_shape") as caught:
        swapped_hidden(minilm[0], make_maps(6, heads, dim), batch)
    assert caught.value.__notes__ == ["in attention layer 0 (BertSelfAttention)"]


def test_grouped_queries_are_refused(tokens):
    config = LlamaConfig(**LLAMA | {"num_attention_heads": 4}, num_key_value_heads=2)
    model = LlamaForCausalLM(config).eval()
    with pytest.raises(ValueError, match="4 query heads and 2 key/value heads.*Grouped-query"):
        swapped_hidden(model, make_maps(2, 4, 4), tokens)


def test_sliding_windows_are_refused(tokens):
    config = MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=4)
    with pytest.raises(ValueError, match=r"asks for the mask.*Sliding windows"):
        swapped_hidden(MistralModel(config).eval(), make_maps(2, 2, 8), tokens)


def test_four_dimensional_masks_are_refused(llama, tokens):
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"shape \[2, 1, 9, 9\]; expected padding.*2-D mask"):
        swapped_hidden(llama, make_maps(2, 2, 8), tokens | {"attention_mask": mask})


def test_cached_decoding_is_refused(llama, tokens):
    with (
        pytest.raises(ValueError, match="1 queries and 10 keys.*use_cache=False"),
        linear_attention_swapped(llama, make_maps(2, 2, 8)),
    ):
        llama.generate(**tokens, max_new_tokens=3, do_sample=False)


def test_generation_without_a_cache(llama, tokens, use_attention):
    options = {"max_new_tokens": 3, "do_sample": False, "use_cache": False}
    before = llama.generate(**tokens, **options)
    use_attention(exact_attention)
    with linear_attention_swapped(llama, make_maps(2, 2, 8)):
        assert torch.equal(llama.generate(**tokens, **options), before)


def test_attention_dropout_is_refused(minilm, batch):
    model = copy.deepcopy(minilm[0]).train()
    with pytest.raises(ValueError, match=r"attention dropout is 0\.1.*model\.eval\(\)"):
        swapped_hidden(model, make_maps(6, 12, 32), batch)


def test_logits_with_a_bias_are_refused(tokens):
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = T5Model(config).eval()
    inputs = tokens | {"decoder_input_ids": tokens["input_ids"]}
    with pytest.raises(ValueError, match="has position_bias"):
        collect_qkv(model, **inputs)
    with pytest.raises(ValueError, match="has position_bias"):
        swapped_hidden(model, make_maps(1, 2, 8), inputs)


def test_cross_attention_is_refused(tokens):
    config = BertConfig(**SIZES, intermediate_size=16, is_decoder=True, add_cross_attention=True)
    inputs = tokens | {"encoder_hidden_states": torch.zeros(2, 3, 16), "use_cache": False}
    with pytest.raises(ValueError, match="two attention modules in layer 0.*cross-attention"):
        swapped_hidden(BertModel(config).eval(), make_maps(2, 2, 8), inputs)


def test_shared_layers_share_one_map(tokens, use_attention):
    config = AlbertConfig(**SIZES, intermediate_size=16, embedding_size=8)
    model = AlbertModel(config).eval()
    assert len(collect_qkv(model, **tokens)) == 2
    with pytest.raises(ValueError, match="2 maps, model has 1.*share one"):
        swapped_hidden(model, make_maps(2, 2, 8), tokens)
    before = hidden(model, tokens)
    use_attention(exact_attention)
    after = swapped_hidden(model, make_maps(1, 2, 8), tokens)
    torch.testing.assert_close(valid(after, tokens), valid(before, tokens), rtol=0, atol=2e-5)


def test_models_off_the_interface_are_named(tokens):
    bloom = BloomModel(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)).eval()
    before = bloom.config._attn_implementation
    for model, error, said in (
        (bloom, ValueError, "model is a BloomModel.*does not go through the attention interface"),
        (nn.Linear(2, 2), TypeError, r"(?s)model.*Linear.*PreTrainedModel"),
    ):
        with pytest.raises(error, match=said):
            collect_qkv(model, **tokens)
        with pytest.raises(error, match=said):
            swapped_hidden(model, [], tokens)
    assert bloom.config._attn_implementation == before


# -- embeddings and imports ------------------------------------------------------------------------


def test_sentence_embeddings_ignore_padding(minilm, batch):
    model, tokenizer = minilm
    with torch.no_grad():
        together = sentence_embeddings(model, **batch)
        alone = [sentence_embeddings(model, **tokenizer(t, return_tensors="pt")) for t in TEXTS]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    # the first numbers of sentence-transformers 6.2 for the same weights and texts
    reference = torch.tensor(
        [[0.0185823, 0.0097767, 0.0506417], [0.1257651, -0.0077912, -0.0087065]]
    )
    torch.testing.assert_close(together[:, :3], reference, rtol=0, atol=1e-5)


def test_sentence_embeddings_of_nothing(minilm, batch):
    mask = batch["attention_mask"] * torch.tensor([[1], [0]])
    with pytest.raises(ValueError, match=r"attends to nothing in rows \[1\]"):
        sentence_embeddings(minilm[0], batch["input_ids"], mask)


def test_without_transformers_the_import_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "bochner.transformers")
    with pytest.raises(ImportError, match=r'pip install "bochner\[transformers\]"'):
        importlib.import_module("bochner.transformers")


def test_importing_bochner_imports_neither_transformers_nor_data():
    code = "import bochner, sys; print({'transformers', 'bochner.data'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
