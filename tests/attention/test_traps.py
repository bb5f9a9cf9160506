"""The traps that published linear attentions fall into, as tests."""

import pytest
import torch
from torch import Tensor

from bochner import Constant, Features, TransformedFeatures, linear_attention
from bochner.attention.state import CAUSAL_BLOCK
from bochner.transforms import Transform, Transformed
from tests.attention.dense import dense, log_dense, log_weights
from tests.maps import NAMES, POSITIVE, fitted, normal, on_sphere

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")

BOUNDARIES = [1, CAUSAL_BLOCK - 1, CAUSAL_BLOCK, CAUSAL_BLOCK + 1, 2 * CAUSAL_BLOCK, 280]


# -- the future leaks through a stabiliser -----------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_the_future_does_not_leak(name: str, dtype: torch.dtype) -> None:
    """One key times 6 moves no earlier output, not by one bit (performer-pytorch: by 29 %)."""
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(300, 4, seed=s, dtype=dtype) for s in (1, 2, 3))
    before = linear_attention(phi, q, k, v, causal=True)
    for position in BOUNDARIES:
        late_k, late_v = k.clone(), v.clone()
        late_k[position] *= 6
        late_v[position] += 100
        after = linear_attention(phi, q, late_k, late_v, causal=True)
        assert torch.equal(after[:position], before[:position])
        assert not torch.equal(after[position:], before[position:])


def test_the_future_does_not_leak_through_the_largest_feature() -> None:
    """A late key that shrinks has larger positive features than all others: e^|k|^2/2 times."""
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    q, k, v = (normal(300, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    k = 3 * torch.nn.functional.normalize(k, dim=-1)
    before = linear_attention(phi, q, k, v, causal=True)
    for position in BOUNDARIES:
        late = k.clone()
        late[position] *= 0.01
        after = linear_attention(phi, q, late, v, causal=True)
        assert torch.equal(after[:position], before[:position])
        assert not torch.equal(after[position:], before[position:])


@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_no_gradient_reaches_the_future(name: str) -> None:
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(160, 4, seed=s, scale=0.4).requires_grad_() for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, causal=True)
    for row in (1, CAUSAL_BLOCK - 1, CAUSAL_BLOCK, 140):
        for grad in torch.autograd.grad(out[row].sum(), (k, v), retain_graph=True):
            assert torch.equal(grad[row + 1 :], torch.zeros_like(grad[row + 1 :]))
            assert grad[: row + 1].abs().sum() > 0


def test_hidden_late_keys_do_not_leak_either() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = (normal(200, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    key_mask = torch.ones(200, dtype=torch.bool)
    key_mask[190:] = False
    before = linear_attention(phi, q, k, v, causal=True)
    after = linear_attention(phi, q, k, v, causal=True, key_mask=key_mask)
    assert torch.equal(after[:190], before[:190])


# -- an eps is a hidden shrinkage to the uniform average -----------------------------------------------
class Rescaled(Transform):
    """Every key feature times exp(shift): cancels in attention, shows any eps."""

    exact = True
    symmetric = False  # type: ignore[assignment]

    def __init__(self, shift: float, dim: int) -> None:
        super().__init__()
        self.shift = shift
        self.input_dim = self.output_dim = dim

    def queries(self, x: Tensor) -> Transformed:
        return Transformed(x, None)

    def keys(self, y: Tensor) -> Transformed:
        return Transformed(y, torch.full_like(y[..., :1], self.shift))


@pytest.mark.parametrize("shift", [-15.0, -60.0, -2000.0, 2000.0])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_no_eps(name: str, causal: bool, shift: float) -> None:
    """eps = 1e-6 would move the output by 0.61 at e^-15; here it is rounding."""
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(100, 4, seed=s, scale=0.4) for s in (1, 2, 3))
    before = linear_attention(phi, q, k, v, causal=causal)
    rescaled = TransformedFeatures(phi, Rescaled(shift, 4))
    # a signed denominator may be close to 0, which divides the rounding of the logarithm
    tolerance = (1e-12 if phi.positive else 1e-10) * max(1.0, abs(shift) / 60)
    after = linear_attention(rescaled, q, k, v, causal=causal)
    assert (after - before).abs().max() < tolerance


@pytest.mark.parametrize("causal", [False, True])
def test_no_shrinkage_to_uniform(causal: bool) -> None:
    """Weights of e^-200 beside weights of 1 come out as e^-200: values = one-hot reads them off."""
    phi = fitted("positive", dim=4, num_features=64)
    q, k = on_sphere(160, 4, norm=20.0, seed=1), on_sphere(160, 4, norm=20.0, seed=2)
    weights = linear_attention(phi, q, k, torch.eye(160, dtype=torch.float64), causal=causal)
    truth = log_weights(phi, q, k, causal=causal)
    assert truth[truth > -torch.inf].min() < -100
    torch.testing.assert_close(weights.log(), truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(weights.sum(-1), torch.ones(160, dtype=torch.float64))


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_maps_stay_among_the_values(name: str) -> None:
    phi = fitted(name, dim=4, num_features=8)
    q, k = (normal(90, 4, seed=s, scale=3.0) for s in (1, 2))
    ones = torch.ones(90, 2, dtype=torch.float64)
    for causal in (False, True):
        out = linear_attention(phi, q, k, ones, causal=causal)
        torch.testing.assert_close(out, ones, rtol=0, atol=1e-13)


# -- padded keys stay in the denominator ---------------------------------------------------------------
@pytest.mark.parametrize("garbage", [0.0, 1e30, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "data-aware", "trigonometric"])
def test_padded_equals_unpadded(name: str, causal: bool, garbage: float) -> None:
    """Whatever stands in the padding, in keys and in values, on the right or on the left."""
    phi = fitted(name, dim=4, num_features=8)
    q, k, v = (normal(70, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    truth = linear_attention(phi, q, k, v, causal=causal)
    pad, queries = torch.full((9, 4), garbage, dtype=torch.float64), normal(9, 4, seed=4, scale=0.3)
    for left in (False, True):

        def padded(rest: Tensor, x: Tensor, left: bool = left) -> Tensor:
            return torch.cat((rest, x) if left else (x, rest))

        key_mask = padded(torch.zeros(9, dtype=torch.bool), torch.ones(70, dtype=torch.bool))
        out = linear_attention(
            phi,
            padded(queries, q),
            padded(pad, k),
            padded(pad, v),
            causal=causal,
            key_mask=key_mask,
        )
        torch.testing.assert_close(out[9:] if left else out[:70], truth, rtol=1e-11, atol=1e-11)
        assert torch.isfinite(out).all()


# -- exclusive sums by subtraction -----------------------------------------------------------------------
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.01)])
def test_no_sum_by_subtraction(dtype: torch.dtype, tolerance: float) -> None:
    """q, k of scale 3: S.cumsum() - S errs by 6e-4 in float32 and by 1.5 in bfloat16."""
    phi = fitted("positive", dim=16, num_features=64, dtype=torch.float32)
    q, k, v = (normal(4, 200, 16, seed=s, scale=c).to(dtype) for s, c in ((1, 3), (2, 3), (3, 1)))
    truth = log_dense(phi, q, k, v, causal=True)
    out = linear_attention(phi, q, k, v, causal=True)
    assert (out.double() - truth).abs().max() < tolerance


# -- rows die in half precision --------------------------------------------------------------------------
def _check_rows(phi_name: str, q: Tensor, k: Tensor, tolerance: float, *, d: int) -> None:
    phi = fitted(phi_name, dim=d, num_features=64, dtype=torch.float32)
    v = normal(q.shape[-2], 8, seed=3).to(q.dtype)
    for causal in (False, True):
        out = linear_attention(phi, q, k, v, causal=causal)
        assert torch.isfinite(out).all()
        assert (out != 0).any(-1).all(), "dead rows"
        error = (out.double() - log_dense(phi, q, k, v, causal=causal)).abs().max()
        assert error < tolerance, f"{float(error):.2e}"


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "data-aware"])
def test_no_dead_rows_in_float16_at_scale_4(name: str) -> None:
    """|q| = 32: fp16 logits give 13.6 % zero rows; here only the output is rounded."""
    q, k = (normal(300, 64, seed=s, scale=4.0).to(torch.float16) for s in (1, 2))
    _check_rows(name, q, k, 4e-3, d=64)


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "data-aware"])
def test_no_dead_rows_in_float32_at_scale_20(name: str) -> None:
    """|q| = 160: log features reach 12,800, whose rounding alone is 1e-3 in float32."""
    q, k = (normal(300, 64, seed=s, scale=20.0).float() for s in (1, 2))
    _check_rows(name, q, k, 2e-2, d=64)


@pytest.mark.parametrize(
    ("norm", "tolerance"), [(0.0, 1e-6), (1e-4, 1e-6), (30.0, 1e-3), (80.0, 5e-3)]
)
@pytest.mark.parametrize("name", POSITIVE)
def test_extreme_norms_in_float32(name: str, norm: float, tolerance: float) -> None:
    q, k = (on_sphere(300, 16, norm=norm, seed=s).float() for s in (1, 2))
    _check_rows(name, q, k, tolerance, d=16)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 30.0, 80.0])
@pytest.mark.parametrize("name", POSITIVE)
def test_extreme_norms_in_float64(name: str, norm: float) -> None:
    q, k = (on_sphere(300, 16, norm=norm, seed=s) for s in (1, 2))
    _check_rows(name, q, k, 1e-10, d=16)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 30.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_extreme_norms_of_a_signed_map(dtype: torch.dtype, norm: float) -> None:
    """Trigonometric features of the Gaussian kernel are of order 1 at any norm; q = k is exact."""
    phi = fitted("trigonometric", dim=4, num_features=16, kernel="gaussian", dtype=torch.float32)
    q = on_sphere(1, 4, norm=norm, seed=1).to(dtype).expand(70, 4)
    v = normal(70, 3, seed=3).to(dtype)
    for causal in (False, True):
        out = linear_attention(phi, q, q, v, causal=causal)
        truth = dense(phi, q, q, v, causal=causal)
        limit = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(out.double(), truth, rtol=limit, atol=limit)


# -- one maximum for all features ------------------------------------------------------------------------
@pytest.mark.parametrize("causal", [False, True])
def test_a_large_feature_does_not_drown_the_others(causal: bool) -> None:
    """The second query looks at features that are e^-100 times smaller than the largest one.

    One maximum for all features would round them away in float32, and give it the wrong key.
    """
    phi = fitted("positive", dim=2, num_features=64, dtype=torch.float32)
    along, across = torch.eye(2)
    q = torch.stack((along, -200 * along)).repeat(80, 1)
    k = torch.stack((60 * along, 60 * across)).repeat(80, 1)
    v = torch.eye(2).repeat(80, 1)
    logs = phi.key(k.double()).log_values + phi.key(k.double()).log_scale
    looked_at = phi.query(q.double()).log_values[1].argmax()
    assert logs[:2, looked_at].max() < logs.max() - 100
    out = linear_attention(phi, q, k, v, causal=causal)
    truth = log_dense(phi, q, k, v, causal=causal)
    torch.testing.assert_close(out.double(), truth, rtol=1e-3, atol=1e-3)


# -- blocks write over their own memory, and over nobody else's -------------------------------------------
class ItsInputs(Constant):
    """exp of the coordinates: the logarithms are the inputs themselves, or a buffer of the map."""

    def __init__(self, dim: int, rows: Tensor | None = None) -> None:
        super().__init__(dim)
        self.num_features, self.rows = dim, rows

    def _query(self, x: Tensor) -> Features:
        return Features.from_logs(x if self.rows is None else self.rows[: x.shape[-2]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_no_input_and_no_buffer_is_written_to(causal: bool, own: bool) -> None:
    q, k, v, rows = (normal(300, 4, seed=s) for s in (1, 2, 3, 4))
    kept = [x.clone() for x in (q, k, v, rows)]
    phi = ItsInputs(4, rows if own else None)
    with torch.no_grad():
        first = linear_attention(phi, q, k, v, causal=causal)
        assert torch.equal(first, linear_attention(phi, q, k, v, causal=causal))
    for x, before in zip((q, k, v, rows), kept, strict=True):
        assert torch.equal(x, before)
