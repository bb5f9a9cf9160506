"""Grouped queries: equal to keys repeated for every query head, and computed once per key head."""

import pytest
import torch
from torch import Tensor

from bochner import AttentionState, linear_attention, step
from bochner.attention.heads import Heads
from tests.maps import fitted, normal

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")

EXACT = {"rtol": 1e-10, "atol": 1e-10}
BATCH, HEADS, KV_HEADS = 2, 6, 2
GROUP = HEADS // KV_HEADS


def _inputs(length: int) -> tuple[Tensor, Tensor, Tensor]:
    q = normal(BATCH, HEADS, length, 4, seed=1, scale=0.4)
    k = normal(BATCH, KV_HEADS, length, 4, seed=2, scale=0.4)
    return q, k, normal(BATCH, KV_HEADS, length, 5, seed=3)


def _head_by_head(phi, q, k, v, *, causal: bool, key_mask: Tensor | None = None) -> Tensor:
    """Query head h beside key head h // GROUP, one call for the heads that share a map each."""
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
    per_key_head = phi.batch_shape == (KV_HEADS,)
    for member in range(GROUP):  # one query head of every group at a time: as many as key heads
        heads = slice(member, None, GROUP)
        mask = None if key_mask is None else key_mask.expand(BATCH, KV_HEADS, -1)
        assert per_key_head or not phi.batch_shape
        out[:, heads] = linear_attention(phi, q[:, heads], k, v, causal=causal, key_mask=mask)
    return out


@pytest.mark.parametrize("length", [1, 70, 300])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch_shape", [(), (KV_HEADS,)])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "data-aware"])
def test_equals_one_head_at_a_time(
    name: str, batch_shape: tuple[int, ...], causal: bool, length: int
) -> None:
    phi = fitted(name, dim=4, num_features=8, batch_shape=batch_shape)
    q, k, v = _inputs(length)
    key_mask = normal(BATCH, 1, length, seed=4) > -0.5
    key_mask[..., 0] = True
    for mask in (None, key_mask):
        out = linear_attention(phi, q, k, v, causal=causal, key_mask=mask)
        truth = _head_by_head(phi, q, k, v, causal=causal, key_mask=mask)
        torch.testing.assert_close(out, truth, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["", "per key head", "per query head"])
def test_one_map_per_query_head(masked: str, causal: bool) -> None:
    phi = fitted("data-aware", dim=4, num_features=8, batch_shape=(HEADS,))
    q, k, v = _inputs(150)
    heads = {"": 1, "per key head": KV_HEADS, "per query head": HEADS}[masked]
    key_mask = normal(BATCH, heads, 150, seed=4) > -0.5 if masked else None
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask)
    repeated = [x.repeat_interleave(GROUP, dim=-3) for x in (k, v)]
    if masked == "per key head":
        key_mask = key_mask.repeat_interleave(GROUP, dim=-2)
    truth = linear_attention(phi, q, *repeated, causal=causal, key_mask=key_mask)
    torch.testing.assert_close(out, truth, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_per_query_head_with_a_shared_map(causal: bool) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = _inputs(80)
    key_mask = normal(BATCH, HEADS, 80, seed=4) > -0.5
    key_mask[..., 0] = True
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask)
    repeated = [x.repeat_interleave(GROUP, dim=-3) for x in (k, v)]
    truth = linear_attention(phi, q, *repeated, causal=causal, key_mask=key_mask)
    torch.testing.assert_close(out, truth, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_multi_query(causal: bool) -> None:
    """One key head: the same as broadcasting it."""
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = normal(2, 5, 90, 4, seed=1), normal(2, 1, 90, 4, seed=2), normal(2, 1, 90, 3, seed=3)
    out = linear_attention(phi, q, k, v, causal=causal)
    whole = [x.expand(2, 5, *x.shape[-2:]) for x in (k, v)]
    torch.testing.assert_close(out, linear_attention(phi, q, *whole, causal=causal), **EXACT)


def test_streaming() -> None:
    """Token by token and in blocks; the state has the heads of the keys."""
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = _inputs(100)
    state, outputs = AttentionState(phi), []
    for size in (70, *[1] * 30):
        start = sum(x.shape[-2] for x in outputs)
        rows = slice(start, start + size)
        out, state = step(state, q[..., rows, :], k[..., rows, :], v[..., rows, :])
        outputs.append(out)
    truth = linear_attention(phi, q, k, v, causal=True)
    torch.testing.assert_close(torch.cat(outputs, dim=-2), truth, **EXACT)
    assert state.numerator.shape[:2] == (BATCH, KV_HEADS)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch_shape", [(), (KV_HEADS,), (HEADS,)])
def test_gradients(batch_shape: tuple[int, ...], causal: bool) -> None:
    phi = fitted("dark", dim=4, num_features=8, batch_shape=batch_shape)
    inputs = [x.requires_grad_() for x in _inputs(270)]
    wanted = [*inputs, *phi.parameters()]

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(GROUP, dim=-3) for x in (k, v))
        if batch_shape == (KV_HEADS,):
            return torch.cat(
                [
                    linear_attention(
                        phi, q[:, i::GROUP], k[:, i::GROUP], v[:, i::GROUP], causal=causal
                    )
                    for i in range(GROUP)
                ],
                dim=1,
            )[:, [g + KV_HEADS * i for g in range(KV_HEADS) for i in range(GROUP)]]
        return linear_attention(phi, q, k, v, causal=causal)

    grads, truth = (
        torch.autograd.grad(out.square().sum(), wanted)
        for out in (linear_attention(phi, *inputs, causal=causal), repeated(*inputs))
    )
    for grad, expected in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)


def test_features_of_a_key_are_computed_once_per_key_head(monkeypatch) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    shapes: list[tuple[int, ...]] = []
    key = type(phi)._key
    monkeypatch.setattr(type(phi), "_key", lambda self, y: shapes.append(y.shape) or key(self, y))
    q, k, v = _inputs(60)
    linear_attention(phi, q, k, v, causal=True)
    linear_attention(phi, q, k, v)
    assert {shape[:2] for shape in shapes} == {(BATCH, KV_HEADS)}


def test_folding_is_undone() -> None:
    heads = Heads(group=3, folded=True, kv_heads=2)
    q = normal(2, 6, 5, 4)
    assert heads.queries(q).shape == (2, 2, 15, 4)
    assert torch.equal(heads.outputs(heads.queries(q)), q)
    assert heads.keys(q[:, :2]).shape == (2, 2, 5, 4)
    repeated = Heads(group=3, folded=False, kv_heads=2).keys(q[:, :2])
    assert torch.equal(repeated, q[:, [0, 0, 0, 1, 1, 1]])


def test_heads_that_do_not_divide() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = normal(2, 6, 9, 4), normal(2, 4, 9, 4), normal(2, 4, 9, 4)
    with pytest.raises(ValueError, match=r"\[2, 6\], \[2, 4\], \[2, 4\].*divide those of q"):
        linear_attention(phi, q, k, v)
    with pytest.raises(ValueError, match=r"the heads of k and v.*must be as many"):
        linear_attention(phi, q, normal(2, 3, 9, 4), normal(2, 2, 9, 4))
    per_head = fitted("positive", dim=4, num_features=8, batch_shape=(4,))
    with pytest.raises(ValueError, match=r"q has leading dimensions \[2, 6\].*batch_shape=\[4\]"):
        linear_attention(per_head, q, normal(2, 3, 9, 4), normal(2, 3, 9, 4))
