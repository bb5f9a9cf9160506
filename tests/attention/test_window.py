"""An exact window = the kernel matrix with exact entries, in every shape that it takes."""

import pytest
import torch

from bochner import linear_attention
from bochner.algebra import Constant
from bochner.attention import ExactWindow
from tests.attention.dense import visible_pairs
from tests.attention.dense_window import dense_window
from tests.maps import NAMES, fitted, normal

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")

EXACT = {"rtol": 1e-10, "atol": 1e-10}
WINDOWS = [
    ExactWindow(0, 0),
    ExactWindow(0, 3),
    ExactWindow(1, 0),
    ExactWindow(8, 0),
    ExactWindow(7, 4),
    ExactWindow(150, 2),
    ExactWindow(600, 0),
    ExactWindow(4, 400),
]


def _hidden(*shape: int, seed: int = 9) -> torch.Tensor:
    """About half the keys, the last one always visible."""
    mask = normal(*shape, seed=seed) > 0
    mask[..., -1] = True
    return mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exact", WINDOWS, ids=str)
def test_equals_the_matrix_with_exact_entries(exact: ExactWindow, causal: bool) -> None:
    """300 is no multiple of a block; windows within a block, across blocks, over everything."""
    phi = fitted("positive", dim=5, num_features=12)
    q, k, v = (normal(2, 300, 5, seed=s, scale=0.6) for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    torch.testing.assert_close(out, dense_window(phi, exact, q, k, v, causal=causal), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_map(name: str, causal: bool) -> None:
    """Also dark's trained kernel: the exact entries are those of the kernel that it estimates."""
    phi = fitted(name, dim=5, num_features=12)
    exact = ExactWindow(6, sinks=3)
    q, k = (normal(2, 140, 5, seed=s, scale=0.3) for s in (1, 2))
    v = normal(2, 140, 3, seed=3)
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    torch.testing.assert_close(
        out, dense_window(phi, exact, q, k, v, causal=causal), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exact", [ExactWindow(2000, 0), ExactWindow(0, 2000), ExactWindow(999, 3)])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "data-aware"])
def test_a_window_over_everything_is_exact_attention(
    name: str, exact: ExactWindow, causal: bool
) -> None:
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(2, 300, 4, seed=s) for s in (1, 2, 3))
    logits = (q @ k.mT).masked_fill(~visible_pairs(300, 300, causal=causal), -torch.inf)
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    torch.testing.assert_close(out, torch.softmax(logits, dim=-1) @ v, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 127, 128, 129, 257])
@pytest.mark.parametrize("exact", [ExactWindow(4, 2), ExactWindow(200, 1), ExactWindow(0, 5)])
def test_any_length(length: int, exact: ExactWindow, causal: bool) -> None:
    phi = fitted("positive", dim=4, num_features=7)
    q, k, v = (normal(length, 4, seed=s) for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    torch.testing.assert_close(out, dense_window(phi, exact, q, k, v, causal=causal), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exact", [ExactWindow(9, 0), ExactWindow(0, 4), ExactWindow(30, 6)])
@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_hidden_keys(name: str, exact: ExactWindow, causal: bool) -> None:
    """The band counts positions, hidden ones too; sinks are visible keys, other ones per sequence."""
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(3, 200, 4, seed=s, scale=0.5) for s in (1, 2, 3))
    key_mask = _hidden(3, 200)
    key_mask[1, :150] = False
    key_mask[2, 20:] = False
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask, exact=exact)
    truth = dense_window(phi, exact, q, k, v, causal=causal, key_mask=key_mask)
    rows = key_mask.cumsum(-1) > 0 if causal else torch.ones(3, 200, dtype=torch.bool)
    torch.testing.assert_close(out[rows], truth[rows], **EXACT)
    assert torch.equal(out[~rows], torch.zeros_like(out[~rows]))


@pytest.mark.parametrize("causal", [False, True])
def test_hidden_keys_leave_no_trace(causal: bool) -> None:
    """Whatever pads: the output is the same to the bit."""
    phi = fitted("positive", dim=4, num_features=8)
    exact = ExactWindow(9, 4)
    q, k, v = (normal(2, 200, 4, seed=s) for s in (1, 2, 3))
    key_mask = _hidden(2, 200)
    out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask, exact=exact)
    for fill in (50.0, float("nan")):
        dirty = [x.masked_fill(~key_mask.unsqueeze(-1), fill) for x in (k, v)]
        again = linear_attention(phi, q, *dirty, causal=causal, key_mask=key_mask, exact=exact)
        assert torch.equal(out, again)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exact", [ExactWindow(9, 4), ExactWindow(0, 4), ExactWindow(9, 0)])
@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_key_bias(name: str, exact: ExactWindow, causal: bool) -> None:
    """It is added to exact logits and to the logarithms of features, and decides what is heavy."""
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(2, 150, 4, seed=s, scale=0.5) for s in (1, 2, 3))
    bias = normal(2, 150, seed=5, scale=2.0)
    bias[:, 10:30] = -torch.inf
    out = linear_attention(phi, q, k, v, causal=causal, key_bias=bias, exact=exact)
    truth = dense_window(phi, exact, q, k, v, causal=causal, key_bias=bias)
    torch.testing.assert_close(out, truth, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exact", [ExactWindow(9, 4), ExactWindow(0, 4), ExactWindow(9, 0)])
@pytest.mark.parametrize(("kv_heads", "maps"), [(2, ()), (2, (2,)), (2, (6,)), (1, (6,)), (1, ())])
def test_grouped_queries(
    kv_heads: int, maps: tuple[int, ...], exact: ExactWindow, causal: bool
) -> None:
    phi = fitted("data-aware", dim=4, num_features=8, batch_shape=maps)
    q = normal(3, 6, 140, 4, seed=1, scale=0.5)
    k, v = (normal(3, kv_heads, 140, 4, seed=s, scale=0.5) for s in (2, 3))
    for key_mask in (None, _hidden(3, 1, 140), _hidden(3, kv_heads, 140)):
        out = linear_attention(phi, q, k, v, causal=causal, key_mask=key_mask, exact=exact)
        truth = dense_window(phi, exact, q, k, v, causal=causal, key_mask=key_mask)
        assert out.shape == (3, 6, 140, 4)
        rows = ~truth.isnan()
        torch.testing.assert_close(out[rows], truth[rows], **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_one_map_per_head(causal: bool) -> None:
    phi = fitted("positive", dim=4, num_features=8, batch_shape=(3,))
    exact = ExactWindow(10, 3)
    q, k, v = (normal(2, 3, 150, 4, seed=s) for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    torch.testing.assert_close(out, dense_window(phi, exact, q, k, v, causal=causal), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_leading_dimensions_broadcast(causal: bool) -> None:
    """Keys without the queries' dimensions have one set of sinks."""
    phi = fitted("positive", dim=4, num_features=8)
    exact = ExactWindow(0 if not causal else 5, 2)
    q, k, v = normal(2, 3, 20, 4, seed=1), normal(3, 20, 4, seed=2), normal(1, 20, 5, seed=3)
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    assert out.shape == (2, 3, 20, 5)
    for head in range(3):
        rows = q[:, head].flatten(0, 1) if not causal else q[:, head]
        if causal:
            truth = dense_window(phi, exact, rows, k[head], v[0], causal=True)
            torch.testing.assert_close(out[:, head], truth, **EXACT)
    if not causal:
        alone = linear_attention(phi, q[:1].expand(2, -1, -1, -1), k, v, exact=exact)
        torch.testing.assert_close(alone[0], alone[1], **EXACT)


@pytest.mark.parametrize(("queries", "keys"), [(1, 300), (300, 1), (150, 129)])
def test_cross_attention_has_heavy_keys(queries: int, keys: int) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    exact = ExactWindow(0, 5)
    q, k, v = normal(queries, 4, seed=1), normal(keys, 4, seed=2), normal(keys, 6, seed=3)
    out = linear_attention(phi, q, k, v, exact=exact)
    torch.testing.assert_close(out, dense_window(phi, exact, q, k, v), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_every_pair_is_counted_once(causal: bool) -> None:
    """Averaging, with a kernel that is 1 everywhere: each row is the mean of what it sees, whichever
    pairs are exact. A pair left out or counted twice would show."""
    phi, eye = Constant(dim=4), torch.eye(290, dtype=torch.float64)
    q, k = torch.zeros(290, 4, dtype=torch.float64), normal(290, 4, seed=1)
    seen = visible_pairs(290, 290, causal=causal).double()
    for exact in WINDOWS:
        weights = linear_attention(phi, q, k, eye, causal=causal, exact=exact)
        torch.testing.assert_close(weights, seen / seen.sum(-1, keepdim=True), **EXACT)


def test_averaging_with_a_window() -> None:
    """Outside its window `Constant` weighs every key exp(0)."""
    exact = ExactWindow(8, 0)
    q, k, v = (normal(40, 4, seed=s) for s in (1, 2, 3))
    i = torch.arange(40)
    weights = torch.where(((i[:, None] - i).abs() <= 4), torch.exp(q @ k.mT), 1.0)
    out = linear_attention(Constant(dim=4), q, k, v, exact=exact)
    torch.testing.assert_close(out, weights @ v / weights.sum(-1, keepdim=True), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, causal: bool) -> None:
    """At four times the usual scale; only inputs and output are rounded."""
    phi = fitted("positive", dim=16, num_features=32, dtype=torch.float32)
    exact = ExactWindow(16, 4)
    q, k, v = (normal(2, 200, 16, seed=s, scale=2.0, dtype=dtype) for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    truth = linear_attention(phi, q.float(), k.float(), v.float(), causal=causal, exact=exact)
    assert out.dtype == dtype
    torch.testing.assert_close(out, truth.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_changes_nothing(causal: bool) -> None:
    phi = fitted("dark", dim=4, num_features=8, dtype=torch.float32)
    exact = ExactWindow(16, 4)
    q, k, v = (normal(200, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    plain = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, linear_attention(phi, q, k, v, causal=causal, exact=exact))
