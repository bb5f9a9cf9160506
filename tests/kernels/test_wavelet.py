"""The wavelet kernel: against integrals by brute force, its limits, its numerics."""

import math

import numpy as np
import pytest
import torch

from bochner.kernels import KERNELS, Wavelet, kernel_from_name
from bochner.kernels import wavelet as module


def hat(u):
    """(d - |u|^2) exp(-|u|^2/2) for u [..., d]."""
    squares = np.square(u).sum(-1)
    return (u.shape[-1] - squares) * np.exp(-squares / 2)


def by_brute_force(kernel, x, y, steps):
    """E over scales (200 Gauss-Legendre nodes) and places (a grid), each scale normalised at the origin."""
    dim, spread = x.shape[-1], kernel.spread
    axis = np.linspace(-9 * spread, 9 * spread, steps)
    places = np.stack(np.meshgrid(*[axis] * dim), -1).reshape(-1, dim)
    law = np.exp(-np.square(places).sum(-1) / (2 * spread**2))
    law = law / law.sum()
    nodes, weights = np.polynomial.legendre.leggauss(200 if dim == 1 else 40)
    scales = kernel.smallest * (kernel.largest / kernel.smallest) ** (0.5 * (nodes + 1))
    total = np.zeros((len(x), len(y)))
    for s, weight in zip(scales, 0.5 * weights, strict=True):
        at_x, at_y = (hat((p[:, None] - places) / s) for p in (x, y))
        at_origin = (law * hat(-places / s) ** 2).sum()
        total += weight * (at_x * law) @ at_y.T / at_origin
    return total


@pytest.mark.parametrize(
    ("kernel", "dim", "steps"),
    [(Wavelet(), 1, 4001), (Wavelet(0.1, 1.0, 0.7), 1, 8001), (Wavelet(0.5, 2.0, 0.8), 2, 161)],
)
def test_against_the_integral(kernel, dim, steps):
    x, y = 1.5 * np.random.default_rng(0).normal(size=(2, 6, dim))
    found = kernel(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert np.abs(found - by_brute_force(kernel, x, y, steps)).max() < 1e-10
    assert (found < 0).any(), "both signs, or this test says little"


@pytest.mark.parametrize("kernel", [Wavelet(), Wavelet(0.01, 2.0, 1.5), Wavelet(1.0, 1.1, 0.1)])
@pytest.mark.parametrize("dim", [1, 3])
def test_the_quadrature_is_exact_to_1e_13(kernel, dim, monkeypatch, generator):
    x = 2 * torch.randn(30, dim, generator=generator, dtype=torch.float64)
    found = kernel(x, x)
    monkeypatch.setattr(module, "_NODES", 60)
    finer = Wavelet(kernel.smallest, kernel.largest, kernel.spread)(x, x)
    assert not torch.equal(found, finer)
    assert float((found - finer).abs().max()) < 1e-13


def test_one_at_the_origin_and_less_elsewhere(generator):
    kernel = Wavelet()
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    origin = torch.zeros(1, 2, dtype=torch.float64)
    assert kernel(origin, origin).item() == pytest.approx(1.0, abs=1e-14)
    found = kernel(x, x)
    assert torch.equal(found.diagonal().sort(descending=True).indices, x.norm(dim=1).argsort())
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-12


def test_wide_places_make_it_stationary():
    kernel = Wavelet(0.5, 2.0, 1e4)
    x = torch.tensor([[0.0], [0.7]], dtype=torch.float64)
    near, moved = kernel(x, x), kernel(x + 5.0, x + 5.0)
    assert torch.allclose(near, moved, atol=1e-6)
    assert not torch.allclose(
        Wavelet(0.5, 2.0)(x, x), Wavelet(0.5, 2.0)(x + 5.0, x + 5.0), atol=0.1
    )
    # int psi(u) psi(u + t) du / int psi^2 = (1 - t^2 + t^4/12) exp(-t^2/4) for the Mexican hat
    scales = np.exp(np.linspace(math.log(0.5), math.log(2.0), 20_001))
    t = 0.7 / scales
    expected = np.mean((1 - t**2 + t**4 / 12) * np.exp(-(t**2) / 4))
    assert near[0, 1].item() == pytest.approx(expected, abs=1e-4)


def test_logarithms_far_away():
    """K(x, -x) underflows at norm 80; its logarithm does not, and has a sign."""
    x = torch.tensor([[80.0, 0.0]], dtype=torch.float64)
    log_abs, sign = Wavelet().signed_log(x, -x)
    assert Wavelet()(10 * x, -10 * x).item() == 0.0
    assert torch.isfinite(log_abs).all()
    assert log_abs.item() == pytest.approx(-(80**2) / 16, rel=0.05)
    assert sign.abs().item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_come_back_in_float32(dtype, generator):
    x = torch.randn(5, 2, generator=generator).to(dtype)
    found = Wavelet()(x, x)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), Wavelet()(x.double(), x.double()), atol=1e-6)


def test_parameters_and_names():
    assert kernel_from_name("wavelet") == Wavelet() == KERNELS["wavelet"]
    assert Wavelet(0.1) != Wavelet()
    assert repr(Wavelet(0.1)) == "Wavelet(smallest=0.1, largest=4.0, spread=1.0)"
    assert not Wavelet().stationary
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="has no logarithm; use signed_log"):
        Wavelet().log(x, x)


@pytest.mark.parametrize("scales", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_scales_out_of_order_are_refused(scales):
    with pytest.raises(ValueError, match="0 < smallest < largest"):
        Wavelet(*scales)


@pytest.mark.parametrize("spread", [0.0, -1.0, math.inf, math.nan])
def test_a_spread_that_is_none_is_refused(spread):
    with pytest.raises(ValueError, match="spread"):
        Wavelet(spread=spread)
