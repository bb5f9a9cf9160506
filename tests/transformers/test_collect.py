"""Collecting queries, keys and values from Hugging Face models."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bochner.transformers import collect_qkv
from tests.transformers.tiny import LLAMA, hidden


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
