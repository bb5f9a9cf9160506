"""Matern, rational quadratic and Laplacian kernels: values, derivatives, spectra, errors."""

import math

import mpmath
import pytest
import torch
from scipy import integrate, stats

from bochner.kernels import Gaussian, Laplacian, Matern, RationalQuadratic, kernel_from_name

EVERY = [Matern(0.5), Matern(1.5), Matern(2.5), Matern(0.8), Matern(4.5), RationalQuadratic(0.7)]
EVERY = [*EVERY, RationalQuadratic(), Laplacian()]


def line(*radii: float) -> torch.Tensor:
    """Points at these distances from 0, on one axis of R^3."""
    x = torch.zeros(len(radii), 3, dtype=torch.float64)
    x[:, 0] = torch.tensor(radii, dtype=torch.float64)
    return x


def matern(nu: float, r: float) -> float:
    """Equation (4.14) of Rasmussen and Williams with 30 digits."""
    with mpmath.workdps(30):
        z = mpmath.sqrt(2 * mpmath.mpf(nu)) * r
        return float(2 ** (1 - mpmath.mpf(nu)) / mpmath.gamma(nu) * z**nu * mpmath.besselk(nu, z))


@pytest.mark.parametrize("nu", [0.25, 0.5, 0.8, 1.0, 1.5, 2.5, 3.5, 7.3, 12.5, 40.0])
def test_matern_against_bessel_functions(nu: float) -> None:
    radii = (1e-6, 1e-2, 0.3, 1.0, 2.0, 7.0)
    found = Matern(nu)(line(0.0), line(*radii))[0]
    for value, r in zip(found.tolist(), radii, strict=True):
        assert value == pytest.approx(matern(nu, r), rel=1e-10)


@pytest.mark.parametrize(("alpha", "r"), [(0.5, 1.0), (1.0, 3.0), (4.0, 0.2)])
def test_rational_quadratic_is_a_mixture_of_gaussians(alpha: float, r: float) -> None:
    law = stats.gamma(alpha, scale=1 / alpha)
    truth, _ = integrate.quad(lambda s: law.pdf(s) * math.exp(-0.5 * s * r * r), 0, math.inf)
    assert float(RationalQuadratic(alpha)(line(0.0), line(r))) == pytest.approx(truth, rel=1e-6)


def test_laplacian_is_scikit_learns_at_gamma_1(generator) -> None:
    from sklearn.metrics.pairwise import laplacian_kernel

    x, y = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    assert torch.allclose(
        Laplacian()(x, y), torch.from_numpy(laplacian_kernel(x.numpy(), y.numpy(), gamma=1.0))
    )


def test_limits_and_special_cases(generator) -> None:
    x, y = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    gaussian = Gaussian()(x, y)
    assert float((RationalQuadratic(1e8)(x, y) - gaussian).abs().max()) < 1e-6
    assert 1e-3 < float((Matern(50)(x, y) - gaussian).abs().max()) < 1e-2
    assert torch.allclose(Matern(0.5)(x, y), torch.exp(-torch.cdist(x, y)))
    assert torch.allclose(Matern(0.5)(x[:, :1], y[:, :1]), Laplacian()(x[:, :1], y[:, :1]))


@pytest.mark.parametrize("kernel", EVERY, ids=repr)
@pytest.mark.parametrize("norm", [1.0, 1e6])
def test_exact_at_equal_points_and_never_nan(kernel, norm: float, generator) -> None:
    x = norm * torch.randn(4, 3, generator=generator)
    log = kernel.log(x, torch.cat((x, -x)))
    assert bool((log.diagonal() == 0).all())
    assert bool(torch.isfinite(log).all())
    assert float(log.max()) <= 1e-6
    half = kernel.log(x.to(torch.bfloat16), x.to(torch.bfloat16))
    assert half.dtype == torch.float32


@pytest.mark.parametrize("kernel", EVERY, ids=repr)
def test_derivatives(kernel) -> None:
    x = torch.tensor([[0.3, -0.2], [1.1, 0.4]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.7, 0.9]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: kernel.log(p, y), (x,))
    (slope,) = torch.autograd.grad(kernel.log(x, x).sum(), x)
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("kernel", EVERY, ids=repr)
def test_frequencies_have_the_spectrum_of_the_kernel(kernel) -> None:
    """By quadrature where it is one-dimensional: E cos(omega t), omega = frequencies(g, u), t on an axis."""
    cells, points = (1, 400_000) if kernel == Laplacian() else (300, 1_500)
    u = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    normals = torch.special.ndtri((torch.arange(points, dtype=torch.float64) + 0.5) / points)
    g, v = torch.cartesian_prod(normals, u).unbind(-1)
    omega = kernel.frequencies(g[:, None], v[:, None])[:, 0]
    for t in (0.3, 1.0, 2.0):
        truth = float(kernel(torch.zeros(1, 1).double(), torch.full((1, 1), t).double()))
        assert float(torch.cos(omega * t).mean()) == pytest.approx(truth, abs=5e-3)


@pytest.mark.parametrize(
    ("kernel", "marginal"),
    [
        (Matern(1.5), stats.t(3)),
        (Matern(0.5), stats.t(1)),
        (Laplacian(), stats.cauchy()),
    ],
    ids=["Matern 3/2", "Matern 1/2", "Laplacian"],
)
def test_one_frequency_has_the_textbook_law(kernel, marginal, generator) -> None:
    normals = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(20_000, 1, generator=generator, dtype=torch.float64)
    omega = kernel.frequencies(normals, uniforms)
    assert all(stats.kstest(omega[:, i].numpy(), marginal.cdf).pvalue > 1e-6 / 9 for i in range(3))


def test_one_scale_for_all_coordinates_or_one_for_each() -> None:
    one = torch.ones(1, 3, dtype=torch.float64)
    signs = one * torch.tensor([1.0, -2.0, 3.0])
    for kernel in (Matern(1.5), RationalQuadratic()):
        omega = kernel.frequencies(signs, 0.3 * one[:, :1])
        assert torch.allclose(omega, omega[0, 0] * signs)
    assert torch.allclose(
        Laplacian().frequencies(signs, 0.3 * one[:, :1]),
        torch.tan(math.pi * (torch.special.ndtr(signs) - 0.5)),
    )


def test_names_equality_and_errors() -> None:
    assert Matern(1.5) == Matern(1.5) != Matern(2.5)
    assert kernel_from_name("matern-5/2") == Matern(2.5)
    assert [Matern(nu).name for nu in (0.5, 2.0, 0.8)] == ["matern-1/2", "matern-2", "matern-0.8"]
    assert repr(RationalQuadratic(2.0)) == "RationalQuadratic(alpha=2.0)"
    for wrong in (0.0, -1.0, 0.1, 51.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"nu=.* must be between 0.25 and 50; .*Gaussian"):
            Matern(wrong)
    with pytest.raises(ValueError, match=r"alpha=0 .* must be finite and above 0"):
        RationalQuadratic(0)
