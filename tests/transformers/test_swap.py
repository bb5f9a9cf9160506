"""Linear attention inside a with-block: the model comes back, also after an error.

What conversion does inside is tested in test_families.py and test_convert.py.
"""

import copy

import pytest
import torch

from bochner.transformers import (
    LINEAR,
    collect_qkv,
    interface,
    linear_attention_swapped,
    sentence_embeddings,
)
from tests.transformers.tiny import (
    TEXTS,
    acausal_attention,
    blind_attention,
    exact_attention,
    hidden,
    make_maps,
    swapped_hidden,
    valid,
)

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
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)
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
        assert model.config._attn_implementation == LINEAR
    with torch.no_grad():
        outside = sentence_embeddings(model, **batch)
    assert 0.01 < (inside - outside).norm(dim=1).max() < 2
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(hidden(model, batch), before)
    assert not model._forward_hooks
    assert len(interface.attention_of) == 0


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
        assert model.config._attn_implementation == LINEAR
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
    assert len(interface.attention_of) == 0
    hidden(model, batch)


def test_generation_without_a_cache(llama, tokens, use_attention):
    options = {"max_new_tokens": 3, "do_sample": False, "use_cache": False}
    before = llama.generate(**tokens, **options)
    use_attention(exact_attention)
    with linear_attention_swapped(llama, make_maps(2, 2, 8)):
        assert torch.equal(llama.generate(**tokens, **options), before)
