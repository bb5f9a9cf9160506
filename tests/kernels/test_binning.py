"""The kernel of random binning with spline windows, against its definition."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from bochner.binning import Window
from bochner.kernels import KERNELS, Laplacian, SplineBinning


def convolution(order: int, s: float) -> float:
    """(f * f)(s) by Gauss's rule between the knots of f and of its shifted copy."""
    window = Window(order, 1, 1.0)
    knots = np.arange(order + 1) / order - 0.5
    edges = np.unique(np.clip(np.concatenate([knots, knots - s]), -0.5, 0.5 - s))
    nodes, weights = np.polynomial.legendre.leggauss(order + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        u = torch.from_numpy(low + 0.5 * (high - low) * (nodes + 1.0))
        f = window.weight(u) * window.weight(u + s)
        total += 0.5 * (high - low) * float((f * torch.from_numpy(weights)).sum())
    return total


@pytest.mark.parametrize(("order", "shape"), [(2, 4), (2, 7), (3, 7), (4, 9)])
def test_the_closed_form_is_the_mean_over_widths(order: int, shape: int) -> None:
    kernel = SplineBinning(order, shape)
    for t in (0.02, 0.7, 2.5):

        def integrand(w: float, t: float = t) -> float:
            density = w ** (shape - 1) * math.exp(-w) / math.factorial(shape - 1)
            return convolution(order, t / (kernel.scale * w)) * density

        start = t / kernel.scale
        knots = [start * order / (order - j) for j in range(1, order)]
        expected, _ = quad(integrand, start, start + 60, points=[*knots, start + 12], limit=200)
        found = float(torch.exp(kernel.log_factor(torch.tensor(t, dtype=torch.float64))))
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_windows_have_norm_one(order: int) -> None:
    assert convolution(order, 0.0) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("order", "shape"), [(2, 4), (2, 7), (3, 6), (3, 9)])
def test_curvature_and_smoothness(order: int, shape: int) -> None:
    """1 - t^2/2 near 0; the next odd power of t is 2 order - 1: order 2 has |t|^3, order 3 has not."""
    kernel = SplineBinning(order, shape)
    h = 1e-3
    t = h * torch.arange(5, dtype=torch.float64)
    g = torch.exp(kernel.log_factor(t))
    assert float(2 * (1 - g[1]) / h**2) == pytest.approx(1.0, abs=2e-3)
    third = float(g[4] - 3 * g[3] + 3 * g[2] - g[1]) / h**3  # at t = 5/2 h
    assert (third > 0.5) == (order == 2)


def test_a_product_over_coordinates(generator) -> None:
    x, y = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    kernel = SplineBinning(3)
    found = kernel(x, y)
    for i in range(4):
        for j in range(4):
            factors = [float(torch.exp(kernel.log_factor(t))) for t in x[i] - y[j]]
            assert float(found[i, j]) == pytest.approx(math.prod(factors), rel=1e-12)
    assert float(torch.linalg.eigvalsh(kernel(x, x)).min()) > 0
    single = kernel(x.float(), y.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), found, rtol=1e-5)


def test_far_apart_and_at_zero_distance() -> None:
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    kernel = SplineBinning()
    far = kernel.log(x, torch.tensor([[1e6, 1e12], [0.0, 1.0]], dtype=torch.float64))
    assert bool(torch.isfinite(far).all())
    assert far[0, 0].item() == pytest.approx(-1e12 / kernel.scale, rel=1e-5)
    (gradient,) = torch.autograd.grad(far[0, 1], x)
    assert gradient.abs().max() < 1e-12


def test_parameters() -> None:
    assert SplineBinning() == SplineBinning(2, 7) != SplineBinning(3, 7)
    assert copy.copy(SplineBinning(3)) == SplineBinning(3)
    assert repr(SplineBinning(3, 8)) == "SplineBinning(order=3, shape=8)"
    assert KERNELS["spline-binning"] == SplineBinning()
    with pytest.raises(ValueError, match=r"Laplacian\(\)"):
        SplineBinning(1)
    with pytest.raises(ValueError, match="at least 2 \\* order = 6"):
        SplineBinning(3, 5)
    with pytest.raises(TypeError, match=r"use Laplacian\(\) or SplineBinning"):
        Window.of(KERNELS["gaussian"])
    assert Window.of(Laplacian()) == Window(1, 2, 1.0)
