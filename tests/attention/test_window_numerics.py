"""Exact windows at the edges: no leak, no overflow, right gradients, linear cost, honest warnings."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bochner import linear_attention
from bochner.attention import DenominatorWarning, ExactWindow
from bochner.attention.recompute import recomputes
from bochner.feature_map import FeatureMap
from bochner.landmarks import LandmarkFeatures, LandmarkSide
from bochner.request import Request
from tests.attention.dense import visible_pairs
from tests.attention.dense_window import dense_window, exact_pairs, sink_columns
from tests.maps import fitted, normal, on_sphere


# -- causality -----------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
@pytest.mark.parametrize("exact", [ExactWindow(0, 400), ExactWindow(32, 8), ExactWindow(150, 0)])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "data-aware"])
@pytest.mark.parametrize("factor", [6.0, 60.0])
def test_no_row_depends_on_a_later_token(name: str, exact: ExactWindow, factor: float) -> None:
    """One key larger, another value: earlier rows move by exactly 0, later ones do."""
    phi = fitted(name, dim=4, num_features=16, dtype=torch.float32)
    q, k, v = (normal(300, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    before = linear_attention(phi, q, k, v, causal=True, exact=exact)
    for late in (3, 127, 128, 250):
        moved, other = k.clone(), v.clone()
        moved[late] *= factor
        other[late] += 1
        after = linear_attention(phi, q, moved, other, causal=True, exact=exact)
        assert torch.equal(before[:late], after[:late])
        assert not torch.equal(before[late:], after[late:])


# -- size ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm", [30.0, 60.0])
@pytest.mark.parametrize(
    ("exact", "causal"),
    [
        (ExactWindow(16, 0), False),
        (ExactWindow(16, 0), True),
        (ExactWindow(16, 4), True),
        (ExactWindow(0, 4), True),
    ],
)
def test_huge_norms_are_right(exact: ExactWindow, causal: bool, norm: float) -> None:
    """Logits up to 3600 in float32: finite, and the float64 answer to what their rounding allows."""
    phi = fitted("positive", dim=8, num_features=32, dtype=torch.float32)
    q, k = (on_sphere(300, 8, norm=norm, seed=s).float() for s in (1, 2))
    v = normal(300, 8, seed=3, dtype=torch.float32)
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    truth = linear_attention(phi, q.double(), k.double(), v.double(), causal=causal, exact=exact)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=2e-2)


def test_huge_norms_with_heavy_keys_are_finite() -> None:
    """Each probe then has one key, so that which four of these are heavy is a matter of rounding."""
    phi = fitted("positive", dim=8, num_features=32, dtype=torch.float32)
    q, k = (on_sphere(300, 8, norm=60.0, seed=s).float() for s in (1, 2))
    v = normal(300, 8, seed=3, dtype=torch.float32)
    for exact in (ExactWindow(16, 4), ExactWindow(0, 4)):
        out = linear_attention(phi, q, k, v, exact=exact)
        assert torch.isfinite(out).all()
        assert out.abs().max() <= v.abs().max() * 1.001


def _through_logarithms(
    phi: FeatureMap, exact: ExactWindow, points: list[Tensor], *, causal: bool
) -> Tensor:
    """The output from a log-sum-exp over features; sinks are the first keys."""
    q, k, v = (x.double() for x in points)
    n = q.shape[-2]
    queries, keys = (f.log_features() for f in (phi.query(q), phi.key(k)))
    logs = torch.logsumexp(queries.unsqueeze(-2) + keys.unsqueeze(-3), dim=-1)
    pairs = exact_pairs(exact, n, n, causal=causal, sinks=torch.arange(n) < exact.sinks)
    logs = torch.where(pairs, q @ k.mT, logs)
    logs = logs.masked_fill(~visible_pairs(n, n, causal=causal), -torch.inf)
    return torch.softmax(logs, dim=-1) @ v


@pytest.mark.parametrize("causal", [False, True])
def test_huge_norms_against_logarithms(causal: bool) -> None:
    """The float64 answer itself: nothing that is small is lost."""
    phi, exact = fitted("positive", dim=8, num_features=32), ExactWindow(16, 4 if causal else 0)
    points = [on_sphere(300, 8, norm=60.0, seed=s) for s in (1, 2)] + [normal(300, 8, seed=3)]
    out = linear_attention(phi, *points, causal=causal, exact=exact)
    truth = _through_logarithms(phi, exact, points, causal=causal)
    torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-2)])
@pytest.mark.parametrize("causal", [False, True])
def test_features_far_larger_than_all_before(
    causal: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """Keys of norm 60 have features of e^-1800; ten in the middle of a block have features of order 1.

    Weights relative to the state then overflow; rows before that token stay the same to the bit.
    """
    phi, exact = fitted("positive", dim=8, num_features=32), ExactWindow(16, 0)
    points = [normal(500, 8, seed=1), on_sphere(500, 8, norm=60.0, seed=2), normal(500, 8, seed=3)]
    points = [x.to(dtype) for x in points]
    points[1][300:310] /= 60
    out = linear_attention(phi, *points, causal=causal, exact=exact)
    truth = _through_logarithms(phi, exact, points, causal=causal)
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=tolerance)
    if causal:
        points[1][300:310] *= 60
        assert torch.equal(
            linear_attention(phi, *points, causal=True, exact=exact)[:300], out[:300]
        )


# -- gradients -------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [90, 700])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "dark", "data-aware"])
def test_gradients_equal_those_of_the_matrix(name: str, length: int, causal: bool) -> None:
    """Also with blocks computed again in the backward pass (700), in the bias, and in dark's M."""
    phi, exact = fitted(name, dim=4, num_features=8), ExactWindow(12, 3)
    q, k, v = (normal(2, length, 4, seed=s, scale=0.3).requires_grad_() for s in (1, 2, 3))
    bias = normal(2, length, seed=5, scale=0.3).requires_grad_()
    leaves = [q, k, v, bias, *phi.parameters()]
    assert recomputes(phi, leaves, -(-length // 128)) == (length == 700)
    weight = normal(2, length, 4, seed=4)
    grads, truth = (
        torch.autograd.grad(
            (form(q, k, v) * weight).sum(),
            leaves,
        )
        for form in (
            lambda q, k, v: linear_attention(
                phi, q, k, v, causal=causal, key_bias=bias, exact=exact
            ),
            lambda q, k, v: dense_window(phi, exact, q, k, v, causal=causal, key_bias=bias),
        )
    )
    for grad, expected in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_second_derivatives(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bochner.attention.window_causal.CAUSAL_BLOCK", 2)
    monkeypatch.setattr("bochner.attention.window_bidirectional.BLOCK", 2)
    phi, exact = fitted("dark", dim=2, num_features=4), ExactWindow(2, 1)
    inputs = [normal(6, 2, seed=s, scale=0.3).requires_grad_() for s in (1, 2, 3)]

    def attend(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        return linear_attention(phi, q, k, v, causal=causal, exact=exact)

    assert torch.autograd.gradcheck(attend, (*inputs, *phi.parameters()))
    assert torch.autograd.gradgradcheck(attend, (*inputs, *phi.parameters()))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("norm", [0.0, 30.0, 60.0])
def test_gradients_are_finite_at_the_extremes(norm: float, causal: bool) -> None:
    phi = fitted("positive", dim=8, num_features=16, dtype=torch.float32)
    inputs = [on_sphere(150, 8, norm=norm, seed=s).float().requires_grad_() for s in (1, 2)]
    inputs.append(normal(150, 8, seed=3, dtype=torch.float32).requires_grad_())
    out = linear_attention(phi, *inputs, causal=causal, exact=ExactWindow(8, 3))
    for grad in torch.autograd.grad(out.square().sum(), inputs):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_stop_at_hidden_keys(causal: bool) -> None:
    phi, exact = fitted("positive", dim=4, num_features=8), ExactWindow(12, 3)
    q, k, v = (normal(90, 4, seed=s).requires_grad_() for s in (1, 2, 3))
    key_mask = normal(90, seed=4) > 0
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask, exact=exact)
    for grad in torch.autograd.grad(out.square().sum(), (k, v)):
        assert torch.isfinite(grad).all()
        assert torch.equal(grad[~key_mask], torch.zeros_like(grad[~key_mask]))
        assert not (grad[key_mask] == 0).all(dim=-1).any()


# -- bias ------------------------------------------------------------------------------------------------
def test_the_kernel_estimate_is_unbiased() -> None:
    """The kernel row is read off attention weights: relative to that of a sink, which is exact.

    4,000 draws, as many heads; z = 6 two-sided is 2e-9 an entry: with 6 estimated entries the test
    raises a false alarm with probability 2e-8 (the means are close to normal).
    """
    phi = fitted("positive", dim=3, num_features=32, batch_shape=(4000,))
    exact = ExactWindow(2, 1)
    q, k = (normal(6, 3, seed=s, scale=0.4) for s in (1, 2))
    weights = linear_attention(phi, q, k, torch.eye(6).double(), causal=True, exact=exact)
    truth = torch.exp(q @ k.mT).tril()
    kernel = weights / weights[..., :1] * truth[:, :1]
    seen = visible_pairs(6, 6, causal=True)
    pairs = exact_pairs(exact, 6, 6, causal=True, sinks=torch.arange(6) < 1) & seen
    torch.testing.assert_close(kernel[:, pairs], truth[pairs].expand(4000, -1))
    off = ~pairs & seen
    assert int(off.sum()) == 6
    spread = kernel[:, off].std(0)
    assert (spread > 0.02 * truth[off]).all()
    assert ((kernel[:, off].mean(0) - truth[off]).abs() < 6 * spread / math.sqrt(4000)).all()


# -- cost --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("causal", [False, True])
def test_cost_is_linear(causal: bool) -> None:
    """Operations of matrix products at twice the length: twice as many."""
    phi, exact = fitted("positive", dim=8, num_features=16), ExactWindow(32, 4)

    def operations(length: int) -> int:
        q, k, v = (normal(length, 8, seed=s) for s in (1, 2, 3))
        with FlopCounterMode(display=False) as counter:
            linear_attention(phi, q, k, v, causal=causal, exact=exact)
        return counter.get_total_flops()

    small, large = operations(2048), operations(4096)
    assert 1.8 < large / small < 2.1


@pytest.mark.parametrize("causal", [False, True])
def test_training_keeps_no_features(causal: bool) -> None:
    length, m, d = 4096, 256, 8
    phi = fitted("positive", dim=d, num_features=m, dtype=torch.float32)
    inputs = [
        normal(length, d, seed=s, scale=0.5, dtype=torch.float32).requires_grad_()
        for s in (1, 2, 3)
    ]
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        linear_attention(phi, *inputs, causal=causal, exact=ExactWindow(32, 4))
    assert sum(sizes) < length * m


# -- signed maps -------------------------------------------------------------------------------------------
def _signed() -> tuple[FeatureMap, list[Tensor]]:
    phi = fitted("trigonometric", dim=4, num_features=4)
    return phi, [normal(200, 4, seed=s, scale=1.5) for s in (1, 2, 3)]


@pytest.mark.parametrize("causal", [False, True])
def test_without_a_floor_bad_denominators_are_only_reported(causal: bool) -> None:
    phi, inputs = _signed()
    exact = ExactWindow(4, 1)
    with pytest.warns(DenominatorWarning, match="denominators are not positive"):
        out = linear_attention(phi, *inputs, causal=causal, exact=exact)
    torch.testing.assert_close(
        out, dense_window(phi, exact, *inputs, causal=causal), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("floor", [-0.5, 0.0, 2.0])
def test_a_floor_leaves_the_exact_part_alone_and_says_so(floor: float, causal: bool) -> None:
    phi, (q, k, v) = _signed()
    exact = ExactWindow(4, 1, denominator_floor=floor)
    with pytest.warns(DenominatorWarning) as caught:
        out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    logits = q @ k.mT
    shown = torch.ones(200, dtype=torch.bool)
    columns = sink_columns(exact, logits.unsqueeze(0), shown, causal=causal)
    seen = visible_pairs(200, 200, causal=causal)
    pairs = exact_pairs(exact, 200, 200, causal=causal, sinks=columns) & seen
    known = torch.where(pairs, torch.exp(logits), 0.0)
    rest = torch.where(seen & ~pairs, phi.estimate(q, k), 0.0)
    low = rest.sum(-1, keepdim=True) < floor * known.sum(-1, keepdim=True)
    kernel = torch.where(low, known, known + rest)
    truth = kernel @ v / kernel.sum(-1, keepdim=True)
    assert 0.05 < low.double().mean() < 0.95
    torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)
    messages = [str(w.message) for w in caught]
    assert messages == [m for m in messages if f"{float(low.double().mean()):.2%} of" in m]
    assert len(messages) == 1
    assert "exact window alone" in messages[0]


def test_a_floor_that_is_never_met_changes_nothing() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    inputs = [normal(200, 4, seed=s) for s in (1, 2, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, guarded = (
            linear_attention(phi, *inputs, exact=ExactWindow(4, 1, denominator_floor=floor))
            for floor in (None, 0.0)
        )
    assert torch.equal(plain, guarded)


def test_rows_without_an_exact_pair_cannot_fall_back() -> None:
    """A floor is about rows that see something exactly; the others stay estimates."""
    phi, (q, k, v) = _signed()
    key_mask = torch.arange(200) < 50
    exact = ExactWindow(4, 0, denominator_floor=5.0)
    with pytest.warns(DenominatorWarning):
        out = linear_attention(phi, q, k, v, key_mask=key_mask, exact=exact)
    plain = dense_window(phi, exact, q, k, v, key_mask=key_mask)
    torch.testing.assert_close(out[60:], plain[60:], rtol=1e-9, atol=1e-9)


# -- errors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [-1, 1.5, True, "8", None])
@pytest.mark.parametrize("name", ["window", "sinks"])
def test_sizes_are_counts(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* must be an integer of at least 0"):
        ExactWindow(**{name: value})


@pytest.mark.parametrize("floor", [-1.0, math.inf, math.nan, -5])
def test_a_floor_keeps_denominators_positive(floor: float) -> None:
    with pytest.raises(ValueError, match="denominator_floor=.* above -1"):
        ExactWindow(denominator_floor=floor)


def test_a_band_needs_one_query_per_key() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = normal(9, 4, seed=1), normal(12, 4, seed=2), normal(12, 4, seed=3)
    with pytest.raises(ValueError, match=r"window=4, but q has length 9 and k 12"):
        linear_attention(phi, q, k, v, exact=ExactWindow(4, 2))
    with pytest.raises(TypeError, match="exact must be a bochner.attention.ExactWindow, got int"):
        linear_attention(phi, q, k, v, exact=32)


def test_what_underflows_beside_a_key_of_the_band_counts_where_that_is_smaller_still() -> None:
    # phi(x).phi(y) = exp(y): key 5 is e^200 to all others' 1, but exp(x.y) = e^-400 to its own row
    zero, one = torch.zeros(1), torch.ones(1, 1)
    sides = LandmarkSide(zero.unsqueeze(0), zero, one), LandmarkSide(one, zero, one)
    phi = LandmarkFeatures(Request(dim=1, num_features=1), *sides)
    q, k, v = torch.full((80, 1), -2.0), torch.zeros(80, 1), torch.arange(80.0).unsqueeze(-1)
    k[5] = 200.0
    out = linear_attention(phi, q, k, v, exact=ExactWindow(1, sinks=0))
    truth = torch.full((80, 1), 5.0)
    truth[5] = (v.sum() - 5.0) / 79
    torch.testing.assert_close(out, truth, rtol=1e-6, atol=0)
