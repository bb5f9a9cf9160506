"""The exact kernels, against a loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bochner.kernels import KERNELS, Gaussian, Softmax, kernel_from_name
from bochner.validation import UnknownNameError
from tests.naive import dot


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 4), m=st.integers(1, 4), dim=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_against_a_loop(n: int, m: int, dim: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, dim, generator=g, dtype=torch.float64)
    y = torch.randn(m, dim, generator=g, dtype=torch.float64)
    softmax, gaussian = Softmax()(x, y), Gaussian()(x, y)
    assert softmax.shape == gaussian.shape == (2, n, m)
    for b in range(2):
        for i, p in enumerate(x[b].tolist()):
            for j, q in enumerate(y.tolist()):
                gap = [s - t for s, t in zip(p, q, strict=True)]
                assert float(softmax[b, i, j]) == pytest.approx(math.exp(dot(p, q)), rel=1e-12)
                truth = math.exp(-0.5 * dot(gap, gap))
                assert float(gaussian[b, i, j]) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_factor_per_point_apart(dtype: torch.dtype, generator) -> None:
    x, y = torch.randn(2, 6, 4, generator=generator, dtype=dtype)
    factor = Gaussian().log_point_factor
    whole = Softmax().log(x, y) + factor(x) + factor(y).mT
    assert torch.allclose(Gaussian().log(x, y), whole, atol=50 * torch.finfo(dtype).eps)
    assert Softmax().log_point_factor(x) is None


@pytest.mark.parametrize("norm", [1.0, 1e3, 1e6])
def test_the_gaussian_does_not_cancel(norm: float, generator) -> None:
    # |x - y|^2 from |x|^2 + |y|^2 - 2 x.y would be off by norm^2 * 1e-7
    x = norm * torch.randn(5, 3, generator=generator)
    log = Gaussian().log(x, x)
    assert bool((log.diagonal() == 0).all())
    assert bool((log <= 0).all())
    near = x + torch.finfo(torch.float32).eps * norm
    assert float(Gaussian().log(x, near).diagonal().min()) > -1.0


def test_half_precision_is_computed_in_single(generator) -> None:
    x = torch.randn(4, 8, generator=generator).to(torch.float16)
    assert torch.allclose(Gaussian().log(x, x), Gaussian().log(x.float(), x.float()))


def test_names_equality_and_errors() -> None:
    assert Softmax() == Softmax()
    assert Softmax() != Gaussian()
    assert len({Softmax(), Softmax(), Gaussian()}) == 2
    for name, kernel in KERNELS.items():
        assert kernel_from_name(name) == kernel
        assert kernel_from_name(kernel) is kernel
        assert kernel.name == name
    with pytest.raises(UnknownNameError, match="did you mean 'gaussian'.*Known: gaussian, lapl"):
        kernel_from_name("gausian")
