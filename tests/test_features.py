"""Features with a log-scale, and inner products that no range of numbers can spoil."""

import math
import pickle

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.catalog import make
from bochner.features import Features, SignedLog, log_inner
from bochner.kernels import Softmax

DTYPES = st.sampled_from([torch.float32, torch.float64])


def exact_log_inner(a: Tensor, b: Tensor) -> float:
    """log sum exp(a_i + b_i) with 40 digits."""
    with mpmath.workdps(40):
        total = mpmath.fsum(
            mpmath.exp(mpmath.mpf(float(u)) + mpmath.mpf(float(v)))
            for u, v in zip(a, b, strict=True)
        )
        return float(mpmath.log(total))


# -- SignedLog ---------------------------------------------------------------------------------------
def test_signed_log_values() -> None:
    log = SignedLog(
        torch.tensor([0.0, -math.inf, 2.0, 1000.0]), torch.tensor([-1.0, 0.0, 1.0, 1.0])
    )
    values = log.value().tolist()
    assert values[:2] == [-1.0, 0.0]
    assert values[2] == pytest.approx(math.exp(2))
    assert values[3] == math.inf


# -- Features ----------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 5),
    size=st.floats(0.0, 1e4),
    seed=st.integers(0, 2**31),
    dtype=DTYPES,
)
def test_from_logs_keeps_any_size(
    rows: int, columns: int, size: float, seed: int, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(seed)
    logs = size * torch.randn(rows, columns, generator=g, dtype=dtype)
    f = Features.from_logs(logs)
    assert f.positive
    assert f.num_features == columns
    assert f.values.shape == (rows, columns)
    assert f.log_scale.shape == (rows, 1)
    assert float(f.values.max()) == 1.0
    assert f.log_values is not None
    assert bool((f.log_values <= 0).all())
    unit = torch.finfo(dtype).eps * max(1.0, 5 * size)
    assert torch.allclose(f.log_values + f.log_scale, logs, rtol=0, atol=unit)


def test_scaled_and_materialise() -> None:
    signed = Features(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5]]))
    positive = Features.from_scaled_logs(torch.tensor([[0.0, 3.0]]), torch.tensor([[-1.0]]))
    assert not signed.positive
    assert torch.allclose(signed.materialise(), torch.tensor([[1.0, -2.0]]) * math.exp(0.5))
    assert torch.allclose(positive.materialise(), torch.tensor([[-1.0, 2.0]]).exp())
    for f in (signed, positive):
        twice = f.scaled(math.log(2.0))
        assert torch.allclose(twice.materialise(), 2 * f.materialise())
        assert twice.positive == f.positive
    far = positive.scaled(1e5)
    assert bool(torch.isfinite(far.values).all())
    assert bool(torch.isinf(far.materialise()).any())


def test_features_pickle() -> None:
    f = Features.from_logs(torch.tensor([[1.0, 2.0]]))
    again = pickle.loads(pickle.dumps(f))
    assert torch.equal(again.log_values, f.log_values)
    assert torch.equal(again.log_scale, f.log_scale)


def test_the_row_maximum_does_not_stop_gradients(generator) -> None:
    logs = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def whole(x: Tensor) -> Tensor:
        f = Features.from_logs(x)
        return f.values * torch.exp(f.log_scale)

    assert torch.autograd.gradcheck(whole, (logs,))


# -- log_inner ---------------------------------------------------------------------------------------
@settings(max_examples=80, deadline=None)
@given(
    columns=st.integers(1, 6),
    size=st.floats(0.0, 2000.0),
    offset=st.floats(-3000.0, 3000.0),
    seed=st.integers(0, 2**31),
    dtype=DTYPES,
)
def test_log_inner_of_positive_features_is_never_lost(
    columns: int, size: float, offset: float, seed: int, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(seed)
    a = (size * torch.randn(2, columns, generator=g) + offset).to(dtype)
    b = size * torch.randn(3, columns, generator=g, dtype=dtype)
    log_abs, sign = log_inner(Features.from_logs(a), Features.from_logs(b))
    assert bool((sign == 1).all())
    slack = 8 * torch.finfo(dtype).eps * (10 + abs(offset) + 8 * size)
    for i in range(2):
        for j in range(3):
            truth = exact_log_inner(a[i], b[j])
            assert abs(float(log_abs[i, j]) - truth) <= slack, (float(log_abs[i, j]), truth)


def test_disjoint_features_are_rescued() -> None:
    # each row's own large feature is the other's vanishing one: the plain product is 0
    a = torch.tensor([[0.0, -500.0, -600.0]])
    b = torch.tensor([[-500.0, 0.0, -600.0]])
    product = Features.from_logs(a).values @ Features.from_logs(b).values.T
    assert float(product) == 0.0
    log_abs, _ = log_inner(Features.from_logs(a), Features.from_logs(b))
    assert float(log_abs) == pytest.approx(-500.0 + math.log(2.0), abs=1e-4)


def test_where_leaves_pairs_out() -> None:
    a = Features.from_logs(torch.tensor([[0.0, -500.0], [0.0, 0.0]]))
    b = Features.from_logs(torch.tensor([[-500.0, 0.0], [0.0, 0.0]]))
    where = torch.tensor([[False, True], [True, True]])
    log_abs, _ = log_inner(a, b, where=where)
    whole, _ = log_inner(a, b)
    assert float(log_abs[0, 0]) == -math.inf
    assert torch.equal(log_abs[where], whole[where])


def test_signed_features_carry_their_sign(generator) -> None:
    x, y = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    log_abs, sign = log_inner(
        Features(x, torch.full((5, 1), 800.0)), Features(y, torch.full((5, 1), -800.0))
    )
    assert torch.allclose(sign * log_abs.exp(), x @ y.T, rtol=1e-10)
    zero = log_inner(Features(x, x[:, :1] * 0), Features(0 * y, x[:, :1] * 0))
    assert bool((zero.log_abs == -math.inf).all())
    assert bool((zero.sign == 0).all())
    assert bool((zero.value() == 0).all())


def test_batches_of_rescued_pairs_go_to_their_places(generator) -> None:
    a = 300 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    b = 300 * torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    log_abs, _ = log_inner(Features.from_logs(a), Features.from_logs(b))
    assert log_abs.shape == (2, 3, 4, 6)
    truth = torch.logsumexp(a.unsqueeze(-2) + b.unsqueeze(-3), dim=-1)
    assert torch.allclose(log_abs, truth, rtol=1e-12)


def test_gradients_of_rescued_pairs() -> None:
    a = torch.tensor([[0.0, -400.0, 1.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor(
        [[-800.0, 0.0, -800.0], [0.1, 0.2, 0.3]], dtype=torch.float64, requires_grad=True
    )

    def f(x: Tensor, y: Tensor) -> Tensor:
        return log_inner(Features.from_logs(x), Features.from_logs(y)).log_abs

    assert torch.autograd.gradcheck(f, (a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [1.0, 8.0, 80.0])
def test_log_estimate_of_a_map_at_any_norm(norm: float, dtype: torch.dtype, generator) -> None:
    # against 40 digits, from the same directions: log sum_r exp(w.x + w.y - (|x|^2+|y|^2)/2) / r
    phi = make("positive", dim=3, num_features=16, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    x = norm * x / x.norm(dim=-1, keepdim=True)
    for y in (x, -x, x.flip(0)):
        found = phi.log_estimate(x.to(dtype), y.to(dtype)).log_abs
        for i in range(2):
            for j in range(2):
                size = 0.5 * float(x[i].square().sum() + y[j].square().sum()) + math.log(16)
                truth = exact_log_inner(phi.omega @ x[i], phi.omega @ y[j]) - size
                slack = 16 * torch.finfo(dtype).eps * (1 + norm**2)
                assert abs(float(found[i, j]) - truth) <= slack
    assert isinstance(phi.kernel, Softmax)
