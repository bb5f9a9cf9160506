"""Every family, converted: same output under an exact stand-in, padding and causality never lost.

Twice: with exact attention in place of `linear_attention`, under which a model must give what it gave
before (so nothing about masks, scaling, layouts, heads or cross-attention can be wrong; mutants of the
stand-in that lose the padding or causality must show), and with random features, whose output at a
token must not depend on what attention did not see.
"""

import pytest
import torch

from bochner.transformers import attention_places, converted_layers, linearize, restore
from tests.transformers.tiny import (
    FAMILIES,
    acausal_attention,
    blind_attention,
    exact_attention,
    hidden,
    maps_for,
    valid,
)

PADDED = [name for name, family in FAMILIES.items() if family.mask]
CAUSAL = [name for name, family in FAMILIES.items() if family.causal]
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def padded(family, side):
    """The inputs with the second sequence padded at one side."""
    inputs = family.inputs()
    if family.mask is None:
        return inputs
    mask = torch.ones_like(inputs[family.ids])
    mask[1, slice(0, 4) if side == "left" else slice(5, None)] = 0
    return inputs | {family.mask: mask}


def real(family, model, inputs):
    """The output at the tokens; of an encoder-decoder whose source is padded, all of the decoder's."""
    out = hidden(model, inputs)
    own = family.mask is not None and out.shape[1] == inputs[family.ids].shape[1]
    return valid(out, inputs, family.mask) if own else out


# -- exact attention in place of the linear one ------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_under_exact_attention_the_output_stays(family, use_attention, side, before):
    model, inputs = family.model(), padded(family, side)
    model.set_attn_implementation(before)
    expected = real(family, model, inputs)
    use_attention(exact_attention)
    linearize(model, maps_for(model))
    torch.testing.assert_close(real(family, model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", PADDED)
def test_lost_padding_would_show(name, use_attention, side):
    family = FAMILIES[name]
    if family.causal and side == "right":
        pytest.skip("causal rows do not see padding at their right")
    model, inputs = family.model(), padded(family, side)
    expected = real(family, model, inputs)
    use_attention(blind_attention)
    linearize(model, maps_for(model))
    assert (real(family, model, inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_lost_causality_would_show(name, use_attention):
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    expected = hidden(model, inputs)
    use_attention(acausal_attention)
    linearize(model, maps_for(model))
    assert (hidden(model, inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [[0], [1], "last"])
def test_layers_that_are_not_chosen_stay_exact(family, use_attention, layers):
    """The stand-in attends to nothing but the mean: only chosen layers may feel it."""
    model, inputs = family.model(), padded(family, "left")
    count = len(attention_places(model))
    chosen = [count - 1] if layers == "last" or layers[0] >= count else layers
    expected = real(family, model, inputs)
    linearize(model, [maps_for(model)[i] for i in chosen], layers=chosen)
    assert list(converted_layers(model)) == chosen
    use_attention(exact_attention)
    torch.testing.assert_close(real(family, model, inputs), expected, **CLOSE)
    calls = []

    def count_calls(*args, **kwargs):
        calls.append(1)
        return exact_attention(*args, **kwargs)

    use_attention(count_calls)
    hidden(model, inputs)
    assert len(calls) == (2 if count == 1 else 1)  # ALBERT runs its one module twice


# -- random features -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", PADDED)
def test_hidden_tokens_do_not_matter(name, side):
    family = FAMILIES[name]
    model, inputs = family.model(), padded(family, side)
    linearize(model, maps_for(model))
    expected = real(family, model, inputs)
    ids, mask = inputs[family.ids], inputs[family.mask].bool()
    others = inputs | {family.ids: torch.where(mask, ids, (ids + 7) % 50)}
    torch.testing.assert_close(real(family, model, others), expected, rtol=0, atol=1e-6)
    seen = inputs | {family.mask: torch.ones_like(ids)}
    if not (family.causal and side == "right"):
        rows = hidden(model, seen)
        rows = valid(rows, inputs, family.mask) if rows.shape[:2] == ids.shape else rows
        assert (rows - expected).abs().max() > 1e-3, "the test would see it"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [n for n in PADDED if n not in ("bart-encoder", "whisper")])
def test_more_padding_changes_nothing(name, side):
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    linearize(model, maps_for(model))
    positions = torch.arange(9).expand(2, 9)
    expected = hidden(model, inputs | {"position_ids": positions})
    widths = (3, 0) if side == "left" else (0, 3)
    more = {x: torch.nn.functional.pad(inputs[x], widths) for x in inputs}
    more["position_ids"] = torch.nn.functional.pad(positions, widths)
    torch.testing.assert_close(valid(hidden(model, more), more), expected.flatten(0, 1), **CLOSE)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_does_not_reach_the_past(name):
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    linearize(model, maps_for(model))
    later = inputs | {family.ids: inputs[family.ids].clone()}
    later[family.ids][:, 5:] = 7
    first, second = hidden(model, inputs), hidden(model, later)
    assert torch.equal(first[:, :5], second[:, :5])
    assert (first[:, 5:] - second[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in CAUSAL])
def test_encoders_see_both_ways(name):
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    linearize(model, maps_for(model))
    last = dict(inputs)
    key = family.ids or "pixel_values"
    last[key] = last[key].clone()
    last[key][..., -1] = 7 if family.ids else 3.0
    assert (hidden(model, inputs) - hidden(model, last))[:, 0].abs().max() > 1e-4


# -- and back --------------------------------------------------------------------------------------


def traces(model):
    """All that `restore` has to put back."""
    modules = dict(model.named_modules())
    return {
        "modules": list(modules),
        "attributes": {name: sorted(vars(m)) for name, m in modules.items()},
        "hooks": {
            name: [len(value) for key, value in vars(m).items() if "hooks" in key]
            for name, m in modules.items()
        },
        "config": model.config.to_dict(),
        "implementation": model.config._attn_implementation,
        "configs": {
            n: m.config._attn_implementation for n, m in modules.items() if "config" in vars(m)
        },
    }


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_restore_leaves_nothing(family, before):
    model, inputs = family.model(), padded(family, "left")
    model.set_attn_implementation(before)
    expected, trace = hidden(model, inputs), traces(model)
    linearize(model, maps_for(model))
    linear = hidden(model, inputs)
    assert (linear - expected).abs().max() > 1e-3
    assert traces(model) != trace
    restore(model)
    assert traces(model) == trace
    assert torch.equal(hidden(model, inputs), expected)
