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


@pytest.mark.parametrize("hidden", [10, 300])
def test_hidden_blocks_leave_no_reference_behind(hidden: int) -> None:
    """Another sequence of the batch has begun by then."""
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    q, k, v = (normal(2, 400, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    k[0] = 40 * torch.nn.functional.normalize(k[0, :1], dim=-1) + 0.01 * k[0]
    key_mask = torch.ones(2, 400, dtype=torch.bool)
    key_mask[0, :hidden] = False
    out = linear_attention(phi, q, k, v, causal=True, key_mask=key_mask)[0, hidden:]
    alone = linear_attention(phi, *(x[0, hidden:] for x in (q, k, v)), causal=True)
    torch.testing.assert_close(out, alone, rtol=2e-3, atol=2e-3)


# -- additive bias and lengths -------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
@pytest.mark.parametrize("shape", [(70,), (3, 70), (2, 1, 70), (2, 3, 70)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "dark"])
def test_a_bias_is_added_to_the_logits(name: str, causal: bool, shape: tuple[int, ...]) -> None:
    """Of any size: here up to e^±300; -inf hides a key, alone or beside a mask."""
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(2, 3, 70, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    for scale in (1.0, 100.0):
        bias = normal(*shape, seed=4, scale=scale)
        bias[..., 3] = -torch.inf
        key_mask = _mask(70)
        out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask, key_bias=bias)
        logs = phi.log_estimate(q, k)
        visible = torch.ones(70, 70, dtype=torch.bool).tril() if causal else torch.ones(70, 70) > 0
        visible = visible & (key_mask & (bias > -torch.inf)).unsqueeze(-2)
        total = (logs.log_abs + bias.unsqueeze(-2)).masked_fill(~visible, -torch.inf)
        weights = logs.sign * torch.exp(total - total.amax(-1, keepdim=True))
        truth = weights @ v / weights.sum(-1, keepdim=True)
        if phi.positive:
            torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)
        else:
            condition = weights.abs().sum(-1) / weights.sum(-1).abs()
            assert ((out - truth).abs().amax(-1) < 1e-10 * condition.square() + 1e-9).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_bias_of_zero_changes_nothing_and_an_infinite_one_is_a_mask(causal: bool) -> None:
    phi = fitted("data-aware", dim=4, num_features=8)
    q, k, v = (normal(2, 300, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    plain = linear_attention(phi, q, k, v, causal=causal)
    zero = torch.zeros(300, dtype=torch.float64)
    assert torch.equal(linear_attention(phi, q, k, v, causal=causal, key_bias=zero), plain)
    key_mask = _mask(2, 300)
    bias = torch.where(key_mask, 0.0, -torch.inf)
    masked = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask)
    k[~key_mask], v[~key_mask] = torch.nan, torch.inf
    assert torch.equal(linear_attention(phi, q, k, v, causal=causal, key_bias=bias), masked)


@pytest.mark.parametrize("causal", [False, True])
def test_lengths(causal: bool) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = (normal(3, 2, 80, 4, seed=s) for s in (1, 2, 3))
    lengths = torch.tensor([80, 17, 1])
    out = linear_attention(phi, q, k, v, causal=causal, lengths=lengths.unsqueeze(-1))
    for index, length in enumerate(lengths.tolist()):
        rows = [x[index, :, :length] for x in (k, v)]
        if causal:
            found, truth = (
                out[index, :, :length],
                linear_attention(phi, q[index, :, :length], *rows, causal=True),
            )
        else:
            found, truth = out[index], linear_attention(phi, q[index], *rows)
        torch.testing.assert_close(found, truth, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_gradients_in_the_bias(name: str, causal: bool) -> None:
    """Against finite differences, over several blocks; 0 where it is -inf."""
    phi = fitted(name, dim=2, num_features=4)
    q, k, v = (normal(7, 2, seed=s, scale=0.2) for s in (1, 2, 3))
    bias = normal(7, seed=4).requires_grad_()

    def attend(bias: torch.Tensor) -> torch.Tensor:
        return linear_attention(phi, q, k, v, causal=causal, key_bias=bias)

    assert torch.autograd.gradcheck(attend, bias)
    hidden = bias.detach().clone()
    hidden[2] = -torch.inf
    (grad,) = torch.autograd.grad(attend(hidden.requires_grad_()).square().sum(), hidden)
    assert grad[2] == 0
    assert torch.isfinite(grad).all()


def test_errors_of_bias_and_lengths() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    x = normal(2, 6, 4)

    def attend(**mask: object) -> None:
        linear_attention(phi, x, x, x, **mask)

    for mask, error, message in (
        ({"key_bias": torch.ones(6, dtype=torch.bool)}, TypeError, r"key_bias has dtype torch.bool"),
        ({"key_bias": torch.zeros(5)}, ValueError, r"key_bias has shape \[5\]; expected .* \[2, 6\]"),
        ({"key_bias": torch.full((6,), torch.nan)}, ValueError, r"key_bias.* holds 6 NaN"),
        ({"key_bias": torch.full((6,), torch.inf)}, ValueError, r"key_bias.* holds 6 NaN or infinite"),
        ({"key_bias": [0.0] * 6}, TypeError, r"key_bias must be a torch.Tensor, got list"),
        ({"key_bias": torch.full((6,), -torch.inf)}, ValueError, r"key_bias hides every key of 2 sequence"),
        ({"lengths": torch.tensor([3.0, 2.0])}, TypeError, r"lengths has dtype torch.float32; expected"),
        ({"lengths": torch.tensor([3, 7])}, ValueError, r"lengths lie between 3 and 7; expected 0 to 6"),
        ({"lengths": torch.tensor([3, 4, 5])}, ValueError, r"lengths has shape \[3\]; expected .* \[2\]"),
        ({"lengths": torch.tensor([3, 0])}, ValueError, r"lengths hides every key of 1 sequence"),
        ({"lengths": [3, 4]}, TypeError, r"lengths must be a torch.Tensor, got list"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            attend(**mask)
