"""Key masks: every shape that broadcasts, alone and with causality."""

import pytest
import torch

from bochner import linear_attention
from tests.attention.dense import dense
from tests.maps import NAMES, fitted, normal

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def _mask(*shape: int, seed: int = 9) -> torch.Tensor:
    """About half the keys, the first one always."""
    mask = normal(*shape, seed=seed) > 0
    mask[..., 0] = True
    return mask


@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_dense_without_the_hidden_keys(name: str, causal: bool) -> None:
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(2, 70, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    key_mask = _mask(2, 70)
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask)
    truth = dense(phi, q, k, v, causal=causal, key_mask=key_mask)
    torch.testing.assert_close(out, truth, **EXACT)


@pytest.mark.parametrize("shape", [(30,), (1, 30), (3, 30), (2, 1, 30), (2, 3, 30)])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_broadcast(shape: tuple[int, ...], causal: bool) -> None:
    phi = fitted("positive", dim=4, num_features=8, batch_shape=(3,))
    q, k, v = (normal(2, 3, 30, 4, seed=s) for s in (1, 2, 3))
    key_mask = _mask(*shape)
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask)
    whole = key_mask.expand(2, 3, 30)
    torch.testing.assert_close(out, dense(phi, q, k, v, causal=causal, key_mask=whole), **EXACT)


def test_one_sequence_with_many_masks() -> None:
    """The mask has no leading dimension that q, k or v lacks; values may bring it in."""
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = normal(9, 4, seed=1), normal(30, 4, seed=2), normal(2, 30, 3, seed=3)
    key_mask = _mask(2, 30)
    out = linear_attention(phi, q, k, v, key_mask=key_mask)
    torch.testing.assert_close(out, dense(phi, q, k, v, key_mask=key_mask), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_that_hides_nothing_changes_nothing(causal: bool) -> None:
    phi = fitted("data-aware", dim=4, num_features=8)
    q, k, v = (normal(2, 70, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    visible = torch.ones(70, dtype=torch.bool)
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=visible)
    assert torch.equal(out, linear_attention(phi, q, k, v, causal=causal))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["positive", "data-aware", "trigonometric"])
@pytest.mark.parametrize("first", [1, 63, 64, 65, 99])
def test_rows_before_the_first_visible_key_are_zero(name: str, first: int) -> None:
    """As in torch's exact attention; no warning about denominators, no NaN, also for signed maps."""
    phi = fitted(name, dim=4, num_features=64)
    q, k, v = (normal(100, 4, seed=s, scale=0.1) for s in (1, 2, 3))
    key_mask = torch.arange(100) >= first
    out = linear_attention(phi, q, k, v, causal=True, key_mask=key_mask)
    assert torch.equal(out[:first], torch.zeros(first, 4, dtype=torch.float64))
    alone = linear_attention(phi, q[first:], k[first:], v[first:], causal=True)
    torch.testing.assert_close(out[first:], alone, **EXACT)


def test_a_signed_map_warns_about_its_denominators() -> None:
    phi = fitted("trigonometric", dim=4, num_features=4)
    q, k, v = (normal(30, 4, seed=s, scale=2.0) for s in (1, 2, 3))
    with pytest.warns(
        UserWarning, match=r"\d+\.\d\d% of the attention denominators are not positive"
    ):
        linear_attention(phi, q, k, v)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_stop_at_hidden_keys(causal: bool) -> None:
    """Zero there, also where the padding is NaN; elsewhere those of the unpadded sequence."""
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = (normal(70, 4, seed=s).requires_grad_() for s in (1, 2, 3))
    truth = torch.autograd.grad(
        linear_attention(phi, q, k, v, causal=causal).square().sum(), (q, k, v)
    )
    for garbage in (0.0, float("nan"), float("inf")):
        padded = [
            torch.cat((x.detach(), torch.full((9, 4), fill, dtype=torch.float64))).requires_grad_()
            for x, fill in ((q, 0.0), (k, garbage), (v, garbage))
        ]
        key_mask = torch.arange(79) < 70
        out = linear_attention(phi, *padded, causal=causal, key_mask=key_mask)
        grads = torch.autograd.grad(out[:70].square().sum(), padded)
        for grad, expected in zip(grads, truth, strict=True):
            torch.testing.assert_close(grad[:70], expected, rtol=1e-9, atol=1e-9)
            assert torch.equal(grad[70:], torch.zeros_like(grad[70:]))


def test_a_hidden_key_does_not_raise_the_stabiliser_of_far_smaller_ones() -> None:
    """Hidden keys are computed as zeros, with features of order 1; those of norm 80 have e^-3000."""
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    q, k, v = (normal(20, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    k = 80 * torch.nn.functional.normalize(k, dim=-1)
    key_mask = torch.ones(20, dtype=torch.bool)
    key_mask[0] = False
    padded = linear_attention(phi, q, k, v, causal=True, key_mask=key_mask)
    plain = linear_attention(phi, q[1:], k[1:], v[1:], causal=True)
    torch.testing.assert_close(padded[1:], plain, rtol=1e-3, atol=1e-3)
