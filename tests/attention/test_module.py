"""The module: torch.nn.MultiheadAttention's shapes, masks and weights around linear attention."""

import copy
import io
import re

import pytest
import torch
from torch import Tensor, nn

import bochner
from bochner.attention import ExactWindow, RandomFeatureAttention
from tests.maps import normal, seeded

EVERYTHING = ExactWindow(window=200, sinks=0)
"""Every pair of up to 100 tokens is exact: what is left to differ from torch is the module."""


def inputs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(*shape, seed=seed, dtype=dtype)


def randomised(module: nn.MultiheadAttention, seed: int = 0) -> nn.MultiheadAttention:
    """Its parameters drawn again, biases included (torch starts them at 0)."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed + number, scale=0.2))
    return module


def copied(module: nn.MultiheadAttention, **options: object) -> RandomFeatureAttention:
    options = {"generator": seeded(0), "num_features": 16, **options}
    return RandomFeatureAttention.from_multihead_attention(module, **options)


# -- equal to torch where every pair is exact ------------------------------------------------------
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_multihead_attention(batch_first: bool, bias: bool, causal: bool) -> None:
    torch_module = randomised(nn.MultiheadAttention(24, 3, bias=bias, batch_first=batch_first))
    ours = copied(torch_module, exact=EVERYTHING)
    x, y = inputs(2, 50, 24), inputs(50, 24, seed=1)
    if not batch_first:
        x = x.transpose(0, 1)
    mask = nn.Transformer.generate_square_subsequent_mask(50) if causal else None
    for points in (x, y):
        expected, _ = torch_module(
            points, points, points, need_weights=False, attn_mask=mask, is_causal=causal
        )
        out, weights = ours(points, points, points, is_causal=causal)
        assert weights is None
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("additive", [False, True])
def test_key_padding_mask_is_torchs(additive: bool) -> None:
    """True = ignored; what the padding holds does not matter; a floating mask is added to the logits."""
    torch_module = randomised(nn.MultiheadAttention(24, 3, batch_first=True))
    ours = copied(torch_module, exact=EVERYTHING)
    x = inputs(2, 40, 24)
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, 30:] = True
    mask[1, :7] = True
    if additive:
        mask = inputs(2, 40, seed=3).masked_fill(mask, -torch.inf)
    expected, _ = torch_module(x, x, x, need_weights=False, key_padding_mask=mask)
    out, _ = ours(x, x, x, key_padding_mask=mask)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    changed = x.clone()
    changed[0, 30:] = 100.0
    moved, _ = ours(x, changed, changed, key_padding_mask=mask)
    torch.testing.assert_close(moved, out)


def test_padding_with_features_alone() -> None:
    """Without a window too: cutting the padding off gives the same rows."""
    ours = RandomFeatureAttention(24, 3, num_features=16, batch_first=True, generator=seeded(0))
    x = inputs(1, 40, 24)
    mask = torch.arange(40).unsqueeze(0) >= 30
    out, _ = ours(x, x, x, key_padding_mask=mask)
    short, _ = ours(x[:, :30], x[:, :30], x[:, :30])
    torch.testing.assert_close(out[:, :30], short)
    one, _ = ours(x[0], x[0], x[0], key_padding_mask=mask[0])
    torch.testing.assert_close(one, out[0])


def test_approaches_multihead_attention() -> None:
    """Sixteen times the features, about a quarter of the error (3.1 to 4.2 in six runs)."""
    torch_module = randomised(nn.MultiheadAttention(32, 4, batch_first=True))
    x = 0.3 * inputs(2, 100, 32)
    truth, _ = torch_module(x, x, x, need_weights=False)

    @torch.no_grad()
    def error(num_features: int) -> float:
        squares = [
            (
                copied(torch_module, num_features=num_features, generator=seeded(s))(x, x, x)[0]
                - truth
            )
            .square()
            .mean()
            for s in range(8)
        ]
        return float(torch.stack(squares).mean().sqrt() / truth.square().mean().sqrt())

    few, many = error(256), error(4096)
    assert many < 0.012
    assert 2 < few / many < 6


def test_cross_attention_with_other_widths() -> None:
    torch_module = randomised(nn.MultiheadAttention(24, 3, kdim=10, vdim=14, batch_first=True))
    ours = copied(torch_module, num_features=4096)
    q, k, v = (0.3 * inputs(2, n, w, seed=w) for n, w in ((20, 24), (33, 10), (33, 14)))
    expected, _ = torch_module(q, k, v, need_weights=False)
    out, _ = ours(q, k, v)
    assert (out - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("batch_shape", [(), (2,), (6,)])
def test_grouped_queries(batch_shape: tuple[int, ...]) -> None:
    """Equal to a module whose key and value projections are repeated for the query heads."""
    phi = bochner.make(
        "positive", dim=4, num_features=16, batch_shape=batch_shape, generator=seeded(3)
    )
    grouped = RandomFeatureAttention(24, 6, num_kv_heads=2, feature_map=phi, batch_first=True)
    assert grouped.k_proj.out_features == 2 * 4
    wide_map = bochner.make("positive", dim=4, num_features=16, batch_shape=(6,))
    omega = phi.omega if batch_shape else phi.omega.expand(1, -1, -1)
    wide_map.omega.copy_(omega.repeat_interleave(6 // omega.shape[0], dim=0))
    wide = RandomFeatureAttention(24, 6, feature_map=wide_map, batch_first=True)
    state = grouped.state_dict()
    with torch.no_grad():
        for name in ("q_proj", "out_proj"):
            getattr(wide, name).load_state_dict(getattr(grouped, name).state_dict())
        for name in ("k_proj", "v_proj"):
            for part in ("weight", "bias"):
                heads = state[f"{name}.{part}"].unflatten(0, (2, 4)).repeat_interleave(3, dim=0)
                getattr(getattr(wide, name), part).copy_(heads.flatten(0, 1))
    x = inputs(2, 30, 24)
    for causal in (False, True):
        found, expected = (m(x, x, x, is_causal=causal)[0] for m in (grouped, wide))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# -- causal ------------------------------------------------------------------------------------------
def test_causal_at_construction_call_or_by_mask() -> None:
    made = RandomFeatureAttention(24, 3, num_features=16, causal=True, generator=seeded(0))
    called = RandomFeatureAttention(24, 3, num_features=16, generator=seeded(0))
    x = inputs(30, 2, 24)
    truth, _ = made(x, x, x)
    ahead = torch.ones(30, 30, dtype=torch.bool).triu(1)
    additive = torch.zeros(30, 30).masked_fill(ahead, -torch.inf)
    for options in ({"is_causal": True}, {"attn_mask": ahead}, {"attn_mask": additive}):
        assert torch.equal(called(x, x, x, **options)[0], truth)
    assert not torch.equal(called(x, x, x)[0], truth)
    late = x.clone()
    late[20:] *= 6
    assert torch.equal(made(late, late, late)[0][:20], truth[:20])


@pytest.mark.parametrize("batch_first", [False, True])
def test_inside_torchs_transformer_layers(batch_first: bool) -> None:
    """In place of self_attn, training and inference, padded and causal."""
    layer = nn.TransformerEncoderLayer(
        24, 3, dim_feedforward=32, dropout=0.0, batch_first=batch_first
    )
    ours = copy.deepcopy(layer)
    ours.self_attn = copied(ours.self_attn, exact=EVERYTHING)
    stacks = [nn.TransformerEncoder(x, 2, enable_nested_tensor=False) for x in (layer, ours)]
    x = inputs(2, 20, 24) if batch_first else inputs(20, 2, 24)
    padding = torch.arange(20).expand(2, 20) >= torch.tensor([[15], [20]])
    causal = nn.Transformer.generate_square_subsequent_mask(20)
    for training in (True, False):
        for options in (
            {},
            {"src_key_padding_mask": padding},
            {"mask": causal, "is_causal": True},
        ):
            with torch.set_grad_enabled(training):
                expected, found = (s.train(training)(x, **options) for s in stacks)
            if "src_key_padding_mask" in options and not training:
                keep = ~padding if batch_first else ~padding.T
                expected, found = expected[keep], found[keep]  # torch's fast path may zero padding
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# -- training, dtypes, life --------------------------------------------------------------------------------
def test_gradients_reach_all_weights() -> None:
    """Against torch's, all pairs exact: also those of the projections."""
    torch_module = randomised(nn.MultiheadAttention(24, 3, batch_first=True)).double()
    ours = copied(torch_module, exact=EVERYTHING)
    x = inputs(2, 20, 24, dtype=torch.float64)
    torch_module(x, x, x, need_weights=False)[0].square().sum().backward()
    ours(x, x, x)[0].square().sum().backward()
    expected = (*torch_module.in_proj_weight.grad.chunk(3), torch_module.out_proj.weight.grad)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj)
    for projection, truth in zip(projections, expected, strict=True):
        torch.testing.assert_close(projection.weight.grad, truth, rtol=1e-8, atol=1e-8)
    biases = (*torch_module.in_proj_bias.grad.chunk(3), torch_module.out_proj.bias.grad)
    for projection, truth in zip(projections, biases, strict=True):
        torch.testing.assert_close(projection.bias.grad, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    ours = RandomFeatureAttention(24, 3, num_features=64, batch_first=True, generator=seeded(0))
    x = inputs(2, 30, 24)
    truth, _ = ours(x, x, x)
    half = copy.deepcopy(ours).to(dtype)
    out, _ = half(*[x.to(dtype)] * 3)
    assert out.dtype == dtype
    assert (out.float() - truth).norm() < 5 * torch.finfo(dtype).eps * truth.norm()
    assert half.feature_map.omega.dtype == torch.float32  # directions are not rounded


def test_dtype_and_generator_at_construction() -> None:
    first, second = (
        RandomFeatureAttention(24, 3, num_features=16, generator=seeded(7), dtype=torch.float64)
        for _ in range(2)
    )
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)
    before = torch.get_rng_state()
    RandomFeatureAttention(24, 3, num_features=16)
    assert torch.equal(torch.get_rng_state(), before)  # torch's global generator is left alone


def test_state_dict_and_copies() -> None:
    ours = RandomFeatureAttention(24, 3, num_features=16, generator=seeded(0))
    other = RandomFeatureAttention(24, 3, num_features=16, generator=seeded(1))
    x = inputs(30, 2, 24)
    truth, _ = ours(x, x, x)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(x, x, x)[0], truth)
    assert torch.equal(copy.deepcopy(ours)(x, x, x)[0], truth)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x, x, x)[0], truth)
    ours.resample_(seeded(5))
    assert not torch.equal(ours(x, x, x)[0], truth)
    assert torch.equal(ours.q_proj.weight, other.q_proj.weight)


@pytest.mark.parametrize("num_kv_heads", [1, 3])
@pytest.mark.parametrize("name", ["data-aware", "calibrated"])
def test_fit(name: str, num_kv_heads: int) -> None:
    """In place, on inputs; the same as fitting to the projected queries and keys by hand."""
    options = {"feature_map": name, "num_features": 16, "num_kv_heads": num_kv_heads}
    ours = RandomFeatureAttention(24, 3, batch_first=True, generator=seeded(0), **options)
    x = inputs(4, 60, 24)
    with pytest.raises(bochner.NotFittedError, match=r"fit\(queries, keys\)"):
        ours(x, x, x)
    assert ours.fit(x) is ours
    out, _ = ours(x, x, x)
    assert torch.isfinite(out).all()
    assert ours.feature_map.batch_shape == (num_kv_heads,)
    q, _, _ = ours._heads(x, x, x)
    torch.testing.assert_close(q[1, 2, 5], ours.q_proj(x)[1, 5, 16:] * 8**-0.25)
    again = copy.deepcopy(ours).fit(x)  # once more: from the unfitted map, not from the fitted one
    assert torch.isfinite(again(x, x, x)[0]).all()
    fresh = RandomFeatureAttention(24, 3, batch_first=True, generator=seeded(9), **options)
    with pytest.raises(ValueError, match="call fit on any inputs first"):
        fresh.load_state_dict(ours.state_dict())
    fresh.fit(inputs(4, 60, 24, seed=8)).load_state_dict(ours.state_dict())
    torch.testing.assert_close(fresh(x, x, x)[0], out)


def test_fit_is_what_the_map_does_with_the_projections() -> None:
    phi = bochner.make("data-aware", dim=8, num_features=16, batch_shape=(3,), generator=seeded(4))
    by_hand = bochner.make(
        "data-aware", dim=8, num_features=16, batch_shape=(3,), generator=seeded(4)
    )
    ours = RandomFeatureAttention(24, 3, feature_map=phi, batch_first=True, generator=seeded(0))
    x, y = inputs(4, 60, 24), inputs(4, 50, 24, seed=1)
    ours.fit(x, y)
    q = ours.q_proj(x).unflatten(-1, (3, 8)).transpose(1, 2) * 8**-0.25
    k = ours.k_proj(y).unflatten(-1, (3, 8)).transpose(1, 2) * 8**-0.25
    fitted = by_hand.fit(q, k)
    torch.testing.assert_close(ours.feature_map.estimate(q, k), fitted.estimate(q, k))


# -- errors --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((24, 5), {}, "embed_dim=24 must be a multiple of num_heads=5."),
        ((24, 0), {}, "num_heads=0 must be an integer of at least 1."),
        ((24, 6), {"num_kv_heads": 4}, "num_heads=6 must be a multiple of num_kv_heads=4."),
        ((24, 3), {"kdim": -1}, "kdim=-1 must be an integer of at least 1."),
        ((24, 3), {"feature_map": "positiv"}, "did you mean 'positive'?"),
        ((24, 3), {"exact": 32}, "exact must be an ExactWindow or None, got int;"),
    ],
)
def test_wrong_construction(arguments: tuple[int, int], options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        RandomFeatureAttention(*arguments, **options)


def test_a_feature_map_that_does_not_fit() -> None:
    for options, message in (
        ({"dim": 4}, "feature_map has dim=4; expected embed_dim / num_heads = 8."),
        ({"dim": 8, "batch_shape": (2,)}, "feature_map has batch_shape=(2,); expected () or (3,)"),
    ):
        phi = bochner.make("positive", num_features=16, **options)
        with pytest.raises(ValueError, match=re.escape(message)):
            RandomFeatureAttention(24, 3, feature_map=phi)
    phi = bochner.make("positive", dim=8, num_features=16)
    with pytest.raises(ValueError, match="num_features=32, but feature_map has 16"):
        RandomFeatureAttention(24, 3, feature_map=phi, num_features=32)
    with pytest.raises(TypeError, match="takes no data; nothing to fit"):
        RandomFeatureAttention(24, 3, feature_map=phi).fit(inputs(30, 24))


def test_wrong_calls() -> None:
    ours = RandomFeatureAttention(24, 3, num_features=16, batch_first=True)
    x, y = inputs(2, 30, 24), inputs(2, 20, 24)
    some_pairs = torch.zeros(30, 30, dtype=torch.bool)
    some_pairs[3, 4] = True
    slope = (
        torch.arange(30.0).expand(30, 30).masked_fill(torch.ones(30, 30).triu(1) > 0, -torch.inf)
    )
    for arguments, options, message in (
        ((x, x, x), {"need_weights": True}, "linear attention never forms weights"),
        ((x, x, x), {"attn_mask": some_pairs}, "attn_mask of shape [30, 30] is not the causal one"),
        ((x, x, x), {"attn_mask": slope}, "attn_mask of shape [30, 30] is not the causal one"),
        ((x, y, y), {"attn_mask": some_pairs}, "for 30 queries and 20 keys"),
        ((x, y, y), {"is_causal": True}, "causal=True needs one query per key"),
        ((x, x, x), {"key_padding_mask": torch.ones(30, 2)}, "expected a tensor of shape [2, 30]"),
        (
            (x, x, x),
            {"key_padding_mask": torch.ones(2, 30).int()},
            "expected torch.bool, True where",
        ),
        ((x, x, x), {"key_padding_mask": torch.ones(2, 30) > 0}, "hides every key of"),
        ((x, x[0], x), {}, "key has shape [30, 24], query [2, 30, 24]"),
        ((x[..., :5], x, x), {}, "query has last dimension 5; expected dim=24."),
        ((x, x, y), {}, "v has length 20, k has length 30"),
    ):
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            ours(*arguments, **options)


def test_modules_that_cannot_be_copied() -> None:
    copy_of = RandomFeatureAttention.from_multihead_attention
    with pytest.raises(TypeError, match="must be a torch.nn.MultiheadAttention, got Linear"):
        copy_of(nn.Linear(2, 2))
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(ValueError, match="have no counterpart here"):
            copy_of(nn.MultiheadAttention(24, 3, **options))
    dropping = nn.MultiheadAttention(24, 3, dropout=0.1)
    with pytest.raises(ValueError, match="drops attention weights"):
        copy_of(dropping)
    assert not copy_of(dropping.eval()).training
