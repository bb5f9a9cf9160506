"""Observing converted layers: exact answers must give the model that it was, masks and groups included."""

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from bochner.transformers import linearize
from bochner.transformers.observe import Call, observed
from tests.transformers.tiny import LLAMA, SIZES, hidden, valid

MODELS = {
    "bert": lambda: BertModel(
        BertConfig(
            **SIZES
            | {"intermediate_size": 16, "initializer_range": 0.5, "max_position_embeddings": 64}
        )
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5}
        )
    ),
}


def model_named(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


@pytest.fixture(params=MODELS)
def model(request):
    return model_named(request.param)


@torch.no_grad()
def observed_hidden(model, observer, inputs):
    with observed(model, observer):
        return hidden(model, inputs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_exact_answers_give_the_model_that_it_was(model, tokens, side):
    if side == "right":
        tokens = {name: x.flip(1) for name, x in tokens.items()}
    before = valid(hidden(model, tokens), tokens)
    linearize(model, "positive", 8, window=2, sinks=1)
    converted = valid(hidden(model, tokens), tokens)
    after = valid(observed_hidden(model, Call.exact, tokens), tokens)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert (converted - before).abs().max() > 1e-3, "the test would see it"


def test_the_converted_answer_is_the_layers_own(model, tokens):
    linearize(model, "positive", 8, window=2, sinks=1)
    before = hidden(model, tokens)
    with observed(model, Call.exact) as layers:
        pass
    after = observed_hidden(model, lambda call: call.converted(layers[call.layer]), tokens)
    torch.testing.assert_close(valid(after, tokens), valid(before, tokens))


@pytest.mark.parametrize("loses", ["padding", "causality"])
def test_a_lost_mask_would_be_seen(tokens, loses):
    model = model_named("llama")
    before = valid(hidden(model, tokens), tokens)
    linearize(model, "positive", 8)

    def mutant(call):
        mask = None if loses == "padding" else call.key_mask
        causal = call.causal and loses != "causality"
        return Call(call.layer, call.q, call.k, call.v, causal, mask).exact()

    lost = valid(observed_hidden(model, mutant, tokens), tokens)
    assert (lost - before).abs().max() > 1e-3


def test_without_padding_tokens_are_all_that_is_left(model, tokens):
    linearize(model, "positive", 8)
    calls = []

    def keep(call):
        calls.append(call.without_padding())
        return call.exact()

    short = {name: x[1:] for name, x in tokens.items()}
    observed_hidden(model, keep, short)
    assert [call.q.shape[2] for call in calls] == [call.k.shape[2] for call in calls] == [5, 5]
    outs = []

    def exact(call):
        outs.append(call.exact())
        return outs[-1]

    observed_hidden(model, exact, short)
    for call, out in zip(calls, outs, strict=True):
        torch.testing.assert_close(call.exact(), out[:, :, 4:])


def test_a_model_that_is_not_converted(model):
    with (
        pytest.raises(ValueError, match=r"without converted layers.*linearize\(model\)"),
        observed(model, Call.exact),
    ):
        pass
