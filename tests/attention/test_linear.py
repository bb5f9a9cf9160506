"""Linear attention = dense attention with the same estimate, in every shape it takes."""

import pytest
import torch

from bochner import linear_attention, predict
from bochner.attention.bidirectional import BLOCK
from bochner.attention.state import CAUSAL_BLOCK
from tests.attention.dense import dense
from tests.maps import NAMES, fitted, normal

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_dense(name: str, causal: bool, kernel: str) -> None:
    """m = 12 is no multiple of d = 5; L = 75 is no multiple of a block."""
    phi = fitted(name, dim=5, num_features=12, kernel=kernel)
    q, k = (normal(2, 75, 5, seed=s, scale=0.4) for s in (1, 2))
    v = normal(2, 75, 3, seed=3)
    out = linear_attention(phi, q, k, v, causal=causal)
    torch.testing.assert_close(out, dense(phi, q, k, v, causal=causal), **EXACT)


@pytest.mark.parametrize("length", [1, 2, CAUSAL_BLOCK - 1, CAUSAL_BLOCK, CAUSAL_BLOCK + 1, 259])
@pytest.mark.parametrize("causal", [False, True])
def test_any_length(length: int, causal: bool) -> None:
    phi = fitted("positive", dim=4, num_features=7)
    q, k, v = (normal(length, 4, seed=s) for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, causal=causal)
    torch.testing.assert_close(out, dense(phi, q, k, v, causal=causal), **EXACT)


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 300), (300, 1), (BLOCK + 1, BLOCK - 1), (BLOCK, 2 * BLOCK + 3)]
)
def test_cross_attention(queries: int, keys: int) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = normal(queries, 4, seed=1), normal(keys, 4, seed=2), normal(keys, 6, seed=3)
    torch.testing.assert_close(linear_attention(phi, q, k, v), dense(phi, q, k, v), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_one_dimension_two_features(name: str) -> None:
    phi = fitted(name, dim=1, num_features=2)
    q, k, v = (normal(9, 1, seed=s, scale=0.3) for s in (1, 2, 3))
    for causal in (False, True):
        out = linear_attention(phi, q, k, v, causal=causal)
        torch.testing.assert_close(out, dense(phi, q, k, v, causal=causal), **EXACT)


@pytest.mark.parametrize("name", ["positive", "trigonometric", "hyperbolic"])
def test_one_key_gives_its_value(name: str) -> None:
    phi = fitted(name, dim=3, num_features=4)
    q, k, v = normal(5, 3, seed=1), normal(1, 3, seed=2), normal(1, 2, seed=3)
    torch.testing.assert_close(linear_attention(phi, q, k, v), v.expand(5, 2), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_one_map_per_head(name: str) -> None:
    phi = fitted(name, dim=4, num_features=8, batch_shape=(3,))
    q, k, v = (normal(2, 3, 70, 4, seed=s, scale=0.4) for s in (1, 2, 3))
    for causal in (False, True):
        out = linear_attention(phi, q, k, v, causal=causal)
        torch.testing.assert_close(out, dense(phi, q, k, v, causal=causal), **EXACT)
    for draw in phi.draws()[:1]:  # a map of landmarks draws nothing
        assert draw.shape[0] == 3
        assert not torch.equal(draw[0], draw[1])


def test_heads_do_not_see_each_other() -> None:
    phi = fitted("positive", dim=4, num_features=8, batch_shape=(3,))
    q, k, v = (normal(3, 20, 4, seed=s) for s in (1, 2, 3))
    before = linear_attention(phi, q, k, v)
    k[1], v[1] = 2 * k[1], -v[1]
    after = linear_attention(phi, q, k, v)
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "data-aware", "trigonometric"])
def test_leading_dimensions_broadcast(name: str, causal: bool) -> None:
    phi = fitted(name, dim=4, num_features=8)
    q, k = normal(2, 3, 20, 4, seed=1, scale=0.3), normal(3, 20, 4, seed=2, scale=0.3)
    v = normal(2, 1, 20, 5, seed=3)
    whole = [x.expand(2, 3, *x.shape[-2:]) for x in (q, k, v)]
    out = linear_attention(phi, q, k, v, causal=causal)
    assert out.shape == (2, 3, 20, 5)
    torch.testing.assert_close(out, linear_attention(phi, *whole, causal=causal), **EXACT)
    torch.testing.assert_close(out, dense(phi, *whole, causal=causal), **EXACT)


def test_one_sequence_under_many_maps() -> None:
    phi = fitted("positive", dim=4, num_features=8, batch_shape=(3,))
    q, k, v = (normal(20, 4, seed=s) for s in (1, 2, 3))
    for causal in (False, True):
        out = linear_attention(phi, q, k, v, causal=causal)
        assert out.shape == (3, 20, 4)
        torch.testing.assert_close(out, dense(phi, q, k, v, causal=causal), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_expressions_of_maps(causal: bool) -> None:
    """Sums, products and negative weights go through the same code."""
    a = fitted("positive", dim=4, num_features=6, seed=1)
    b = fitted("trigonometric", dim=4, num_features=4, seed=2)
    c = fitted("hyperbolic", dim=4, num_features=4, seed=5)
    q, k, v = (normal(70, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    for phi in (a + c, a * c, 0.5 * a + 0.5 * b, a * b, a - 0.1 * c):
        out = linear_attention(phi, q, k, v, causal=causal)
        torch.testing.assert_close(out, dense(phi, q, k, v, causal=causal), **EXACT)


def test_non_contiguous_and_expanded_inputs() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = (normal(4, 70, 2, seed=s).mT.movedim(0, -1) for s in (1, 2, 3))  # strided [2, 70, 4]
    shared = normal(1, 1, 4, seed=4).expand(2, 70, 4)
    assert not q.is_contiguous()
    for causal in (False, True):
        for inputs in ((q, k, v), (shared, k, v), (q, shared, v), (q, k, shared)):
            out = linear_attention(phi, *inputs, causal=causal)
            packed = linear_attention(phi, *(x.contiguous() for x in inputs), causal=causal)
            torch.testing.assert_close(out, packed, **EXACT)


def test_equal_keys_average_the_values() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, v = normal(30, 4, seed=1), normal(40, 3, seed=2)
    out = linear_attention(phi, q, normal(1, 4, seed=3).expand(40, 4), v)
    torch.testing.assert_close(out, v.mean(-2).expand(30, 3), **EXACT)


def test_many_features_give_exact_attention() -> None:
    """One end-to-end look at the truth: 16,384 features, error as predicted, and small."""
    phi = fitted("positive", dim=4, num_features=16_384)
    q, k, v = (normal(50, 4, seed=s, scale=0.5) for s in (1, 2, 3))
    exact = torch.softmax(q @ k.mT, dim=-1) @ v
    error = (linear_attention(phi, q, k, v) - exact).norm() / exact.norm()
    assert error < 2 * predict(phi, q, k, v).output_error < 0.2
