"""Closed-form second moments against quadrature, arbitrary precision and Monte Carlo.

Most are deterministic: a second moment in two dimensions is a Gauss-Hermite sum (exact to 1e-9 here).
The statistical ones name the error that they would have seen (see tests/naive.py).
"""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.catalog import make
from bochner.moments import coupled_pair, log_c, log_cross_moment, log_second_moment_pairs, rho_of
from bochner.nonlinearities import Hyperbolic, Nonlinearity, Positive, Trigonometric
from bochner.projections import IID, Antithetic, Orthogonal, Projection, Simplex
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from tests.naive import estimate, hermite, hyp0f1, hyp1f1, variance_is

KINDS = {"positive": Positive(), "hyperbolic": Hyperbolic(), "trigonometric": Trigonometric()}
AXES = torch.linalg.qr(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)).Q
PROPOSALS = {
    "isotropic": GaussianProposal(torch.zeros(2), 1.7 * torch.eye(2)),
    "narrow": GaussianProposal(torch.zeros(2), 0.8 * torch.eye(2)),
    "anisotropic": GaussianProposal(
        torch.zeros(2), AXES @ torch.diag(torch.tensor([1.2, 2.5], dtype=torch.float64)) @ AXES.T
    ),
    "shifted": GaussianProposal(
        torch.tensor([0.3, -0.4]),
        AXES @ torch.diag(torch.tensor([1.1, 1.6], dtype=torch.float64)) @ AXES.T,
    ),
}


def points(count: int, dim: int, generator: torch.Generator, norm: float = 0.7) -> Tensor:
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return norm * x / x.norm(dim=-1, keepdim=True)


def by_quadrature(kind: str, proposal: GaussianProposal, x: Tensor, y: Tensor, z: Tensor) -> float:
    """E[Z(x, y) Z(x, z)] / (K(x, y) K(x, z)) for one projection, from the definition."""
    normals, weights = hermite(90, dim=2)
    omega, log_half_ratio = proposal.shape(normals)
    importance = torch.exp(2 * log_half_ratio)

    def one(a: Tensor, b: Tensor) -> Tensor:
        if kind == "trigonometric":
            half = 0.5 * (a.square().sum() + b.square().sum())
            return importance * torch.cos(omega @ (a - b)) * torch.exp(half - a @ b)
        half = 0.5 * (a + b).square().sum()
        plus = torch.exp(omega @ (a + b) - half)
        if kind == "positive":
            return importance * plus
        return importance * 0.5 * (plus + torch.exp(-omega @ (a + b) - half))

    # a check of the quadrature itself: Z is unbiased
    assert float((weights * one(x, y)).sum()) == pytest.approx(1.0, abs=1e-9)
    return float((weights * one(x, y) * one(x, z)).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROPOSALS)
def test_one_projection_against_quadrature(kind: str, name: str, generator) -> None:
    proposal = PROPOSALS[name]
    if name == "shifted" and kind != "positive":
        with pytest.raises(ValueError, match="centre the inputs"):
            RandomFeatures(Request(dim=2, num_features=2), KINDS[kind], proposal)
        return
    columns = KINDS[kind].columns
    phi = RandomFeatures(Request(dim=2, num_features=columns), KINDS[kind], proposal)
    x, y = points(2, 2, generator), points(3, 2, generator)
    variance, covariance = phi.relative_variance(x, y), phi.relative_covariance(x, y)
    for i in range(2):
        for j in range(3):
            truth = by_quadrature(kind, proposal, x[i], y[j], y[j]) - 1
            assert float(variance[i, j]) == pytest.approx(truth, rel=1e-8, abs=1e-9)
            for k in range(3):
                truth = by_quadrature(kind, proposal, x[i], y[j], y[k]) - 1
                assert float(covariance[i, j, k]) == pytest.approx(truth, rel=1e-8, abs=1e-9)


def test_even_positive_features_are_hyperbolic_ones(generator) -> None:
    proposal = PROPOSALS["anisotropic"]
    x, y = points(4, 2, generator), points(4, 2, generator)
    request = Request(dim=2, num_features=6, projection=Antithetic(IID()), generator=generator)
    a = RandomFeatures(request, Positive(), proposal)
    b = RandomFeatures(Request(dim=2, num_features=6, generator=generator), Hyperbolic(), proposal)
    assert torch.allclose(a.relative_variance(x, y), b.relative_variance(x, y), rtol=1e-12)
    assert torch.allclose(a.relative_covariance(x, y), b.relative_covariance(x, y), rtol=1e-12)


# -- the pieces ------------------------------------------------------------------------------------
def test_rho_and_c() -> None:
    scale = torch.tensor([1.0, 2.0, 0.5, 0.3, 0.75], dtype=torch.float64)
    assert rho_of(scale).tolist() == pytest.approx([1.0, 1 / 3, math.inf, math.inf, 2.0])
    rho = torch.tensor([[1.0, 1.0], [0.25, 4.0]], dtype=torch.float64)
    assert log_c(rho).tolist() == pytest.approx([0.0, 2 * math.log(1.25)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_proposal_too_narrow_has_infinite_variance(kind: str) -> None:
    proposal = GaussianProposal(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.5])))
    phi = RandomFeatures(Request(dim=2, num_features=4), KINDS[kind], proposal)
    x = torch.zeros(1, 2)
    assert float(phi.relative_variance(x, x)) == math.inf
    assert float(phi.relative_covariance(x, x)) == math.inf


@settings(max_examples=60, deadline=None)
@given(
    dim=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    oscillating=st.booleans(),
    even=st.booleans(),
    size=st.floats(0, 30),
)
def test_pairs_and_grid_are_one_formula(
    dim: int, seed: int, oscillating: bool, even: bool, size: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    x, y = points(3, dim, g, size), points(2, dim, g, size)
    rho = torch.rand(dim, generator=g, dtype=torch.float64) + 0.05
    fast = log_second_moment_pairs(x, y, rho, oscillating=oscillating, even=even)
    for i in range(3):
        for j in range(2):
            a = (x[i] - y[j] if oscillating else x[i] + y[j]).unsqueeze(0)
            slow = log_cross_moment(a, a, rho, oscillating=oscillating, even=even)
            assert float(fast[i, j]) == pytest.approx(
                float(slow), rel=1e-9, abs=1e-9 * (1 + size**2)
            )


# -- coupled pairs ---------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 64, 65, 256])
@pytest.mark.parametrize("oscillating", [False, True])
def test_right_angles_against_arbitrary_precision(dim: int, oscillating: bool) -> None:
    # e^-phi 1F1(d; d/2; phi/2), phi -> -Delta; the error counts beside E2 = e^phi or cosh(Delta)
    for phi in (0.0, 1e-6, 0.01, 1.0, 8.0, 64.0, 300.0):
        found = coupled_pair(
            torch.tensor(phi, dtype=torch.float64),
            dim,
            0.0,
            oscillating=oscillating,
            even=oscillating,
        )
        with mpmath.workdps(60):
            s = mpmath.mpf(-phi if oscillating else phi)
            truth = mpmath.exp(-s) * mpmath.hyp1f1(dim, mpmath.mpf(dim) / 2, s / 2)
            size = abs(truth) + mpmath.cosh(phi) * oscillating
            assert abs(mpmath.mpf(float(found)) - truth) <= 1e-9 * size


def chi_nodes(dim: int) -> tuple[Tensor, Tensor]:
    """A fine grid of chi_dim norms with their probabilities; d = 2 has a corner at 0: 2e-4."""
    w = torch.linspace(0, dim**0.5 + 9, 801, dtype=torch.float64)[1:]
    log_density = (dim - 1) * torch.log(w) - 0.5 * w.square()
    density = torch.exp(log_density - log_density.max())
    return w, density / density.sum()


@pytest.mark.parametrize("dim", [2, 3, 5, 16, 64])
@pytest.mark.parametrize("cosine", ["simplex", "right"])
def test_pairs_at_a_fixed_angle_against_the_printed_double_integral(dim: int, cosine: str) -> None:
    # 5.4: e^-phi E_{w1,w2}[0F1(; d/2; phi (w1^2 + w2^2 + 2 w1 w2 cos)/4)], norms independent chi_d
    angle = -1 / (dim - 1) if cosine == "simplex" else 0.0
    norms, weights = chi_nodes(dim)
    first, second = norms[:, None], norms[None, :]
    squares = first.square() + second.square() + 2 * angle * first * second
    from scipy.special import gammaln, ive

    for phi in (0.3, 2.0, 6.0):
        t = (
            phi * squares.clamp_min(1e-300) / 4
        ).sqrt()  # 0F1(;b;t^2) = Gamma(b) I_{b-1}(2t) t^{1-b}
        log_0f1 = (
            torch.log(torch.from_numpy(ive(dim / 2 - 1, (2 * t).numpy())))
            + 2 * t
            + gammaln(dim / 2)
            + (1 - dim / 2) * torch.log(t)
        )
        kernel = torch.where(squares > 1e-12, torch.exp(log_0f1), 1.0)
        truth = math.exp(-phi) * float(weights @ kernel @ weights)
        found = coupled_pair(
            torch.tensor(phi, dtype=torch.float64), dim, angle, oscillating=False, even=False
        )
        assert float(found) == pytest.approx(truth, rel=2e-4 if dim == 2 else 1e-7)
    assert hyp0f1(dim / 2, 0.0) == 1.0


def test_even_simplex_pairs_average_both_angles() -> None:
    phi = torch.tensor([0.5, 3.0], dtype=torch.float64)
    both = [coupled_pair(phi, 4, c, oscillating=False, even=False) for c in (-1 / 3, 1 / 3)]
    even = coupled_pair(phi, 4, -1 / 3, oscillating=False, even=True)
    assert torch.allclose(even, (both[0] + both[1]) / 2, rtol=1e-12)


def test_the_simplex_repels_more_than_a_right_angle() -> None:
    phi = torch.linspace(0.01, 20, 50, dtype=torch.float64)
    for dim in (2, 8, 64):
        right = coupled_pair(phi, dim, 0.0, oscillating=False, even=False)
        wide = coupled_pair(phi, dim, -1 / (dim - 1), oscillating=False, even=False)
        assert bool((wide < right).all())
        assert bool((right < 1).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projection", ["orthogonal", "simplex", "antithetic-orthogonal"])
def test_no_nan_where_the_variance_overflows(kind: str, projection: str) -> None:
    phi = make(kind, dim=2, num_features=8, projection=projection)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64) * torch.logspace(0, 3, 40).unsqueeze(-1)
    for y in (x, -x):
        assert bool((phi.relative_variance(x, y) >= 0).all())


# -- against sampling ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("projection", "dim", "rows"),
    [
        (IID(), 3, 4),
        (Orthogonal(), 8, 8),
        (Orthogonal(), 8, 16),  # two blocks: (d-1)/m
        (Orthogonal(), 8, 11),  # a truncated block
        (Simplex(), 3, 6),
        (Antithetic(Orthogonal()), 8, 16),
        (Orthogonal(), 1, 4),
    ],
    ids=str,
)
def test_the_variance_of_a_draw(
    kind: str, projection: Projection, dim: int, rows: int, generator
) -> None:
    # sees a formula that is 15 % wrong, and always one that leaves the coupling out
    nonlinearity: Nonlinearity = KINDS[kind]
    request = Request(
        dim=dim,
        num_features=rows * nonlinearity.columns,
        projection=projection,
        batch_shape=(130_000,),
        generator=generator,
        dtype=torch.float64,
    )
    phi = RandomFeatures(request, nonlinearity)
    u = points(2, dim, generator, 1.0)
    s = 0.75
    x, y = 0.5 * s * (u[:1] + u[1:]), 0.5 * s * (u[:1] - u[1:])
    ratio = phi.estimate(x, y)[:, 0, 0] / phi.kernel(x, y)[0, 0]
    declared = float(phi.relative_variance(x, y).flatten()[0])
    phi.directions.projection = IID() if projection.antithetic_base is None else Antithetic(IID())
    uncoupled = float(phi.relative_variance(x, y).flatten()[0])
    coupling = abs(math.log(declared / uncoupled))
    variance_is(ratio, declared, see=coupling if coupling > 0.01 else 0.15)


@pytest.mark.parametrize("projection", [Orthogonal(), Simplex()], ids=repr)
@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_the_pair_term_does_not_depend_on_the_proposal(
    projection, spread: float, generator
) -> None:
    # 5.1: OPRF's pair term is PRF's for every A; sees a variance that is 15 % wrong
    dim = 2
    proposal = GaussianProposal(torch.zeros(dim), spread * torch.eye(dim))
    request = Request(
        dim=dim,
        num_features=8,
        projection=projection,
        batch_shape=(100_000,),
        generator=generator,
        dtype=torch.float64,
    )
    phi = RandomFeatures(request, Positive(), proposal)
    x = torch.tensor([[0.3, 0.2]], dtype=torch.float64)
    ratio = phi.estimate(x, x)[:, 0, 0] / phi.kernel(x, x)[0, 0]
    variance_is(ratio, float(phi.relative_variance(x, x).flatten()[0]), see=0.15)


def test_the_fast_path_is_the_naive_loop(generator) -> None:
    x, y = points(3, 4, generator, 1.3), points(2, 4, generator, 0.9)
    for kind, nonlinearity in KINDS.items():
        request = Request(
            dim=4, num_features=6 * nonlinearity.columns, generator=generator, dtype=torch.float64
        )
        phi = RandomFeatures(request, nonlinearity)
        assert torch.allclose(phi.estimate(x, y), estimate(kind, phi.omega, x, y), rtol=1e-12)
    assert hyp1f1(1.0, 1.0, 2.0) == pytest.approx(math.exp(2.0))
