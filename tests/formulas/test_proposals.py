"""GERF, DERF, shifts and the simplex (docs/theory.md 2 to 5), one formula at a time.

Each is stated in its printed form, in naive float64, and compared with what the library computes.
"""

import math

import pytest
import scipy.optimize
import torch
from torch import Tensor

from bochner.catalog import make
from bochner.feature_maps.gerf import isotropic_proposal, optimal_a
from bochner.feature_maps.sderf import log_optimal_variance
from bochner.nonlinearities import Positive, Trigonometric
from bochner.projections import IID, Antithetic, Simplex
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.statistics import Moments
from bochner.transformed import TransformedFeatures
from bochner.transforms import Centring, LinearPair
from tests.formula_points import DIM, calibration, log_e2, normals, relvar, root, spd
from tests.naive import mean_is


# -- 5.1 GERF -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("a", [-1.0, -0.2, 0.05])
def test_gerf_features_as_printed(a: float, generator) -> None:
    # (1-4A)^{d/4} exp(A|w|^2 + sqrt(1-4A) w.u - |u|^2/2) / sqrt(m), w ~ N(0, I), is a proposal
    scale = 1 - 4 * a
    proposal = GaussianProposal(torch.zeros(DIM), scale * torch.eye(DIM, dtype=torch.float64))
    request = Request(dim=DIM, num_features=6, generator=generator, dtype=torch.float64)
    phi = RandomFeatures(request, Positive(), proposal)
    w = phi.omega / scale**0.5
    u = normals(generator, 3, DIM)
    printed = scale ** (DIM / 4) * torch.exp(
        a * w.square().sum(-1) + scale**0.5 * u @ w.T - 0.5 * u.square().sum(-1, keepdim=True)
    )
    assert torch.allclose(phi.query(u).materialise(), printed / 6**0.5, rtol=1e-10)
    # E2 = c(rho)^d e^{rho phi}, rho = 1/(1-8A)
    x, y = 0.5 * u[:1], 0.5 * u[1:2]
    rho = torch.full((DIM,), 1 / (1 - 8 * a), dtype=torch.float64)
    e2 = math.exp(float(log_e2(rho, (x + y)[0])))
    assert relvar(phi, x, y) == pytest.approx((e2 - 1) / 6, rel=1e-9)


@pytest.mark.parametrize("dim", [1, 6, 64])
@pytest.mark.parametrize("phi", [0.05, 1.0, 12.0])
def test_optimal_rho_and_a(dim: int, phi: float) -> None:
    rho = (math.sqrt((dim + 2 * phi) ** 2 + 8 * dim * phi) - (dim + 2 * phi)) / (4 * phi)
    a = float(optimal_a(torch.tensor(phi, dtype=torch.float64), dim))
    assert a == pytest.approx((1 - 1 / rho) / 8, rel=1e-9)
    p = phi / dim
    assert a == pytest.approx((1 - 2 * p - math.sqrt((2 * p + 1) ** 2 + 8 * p)) / 16, rel=1e-12)

    def objective(log_rho: float) -> float:
        r = math.exp(log_rho)
        return dim * math.log((1 + r) / (2 * math.sqrt(r))) + r * phi

    best = scipy.optimize.minimize_scalar(objective, bounds=(-12, 0), options={"xatol": 1e-9})
    assert math.exp(best.x) == pytest.approx(rho, rel=1e-3)
    assert objective(math.log(rho)) <= best.fun + 1e-12


def test_the_erratum_as_printed() -> None:
    # a formula without d: -2.26 where -0.231 is right, at d = 6 (phi = 4.11 gives both figures)
    phi = 4.11
    wrong = (1 - 2 * phi - math.sqrt((2 * phi + 1) ** 2 + 8 * phi)) / 8
    right = float(optimal_a(torch.tensor(phi, dtype=torch.float64), 6))
    assert wrong == pytest.approx(-2.26, abs=5e-3)
    assert right == pytest.approx(-0.231, abs=5e-4)


def test_antithetic_and_trigonometric_gerf(generator) -> None:
    rho, a = 0.4, (1 - 1 / 0.4) / 8
    proposal = GaussianProposal(torch.zeros(DIM), (1 - 4 * a) * torch.eye(DIM).double())
    x, y = 0.6 * normals(generator, 1, DIM), 0.6 * normals(generator, 1, DIM)
    phi, delta = float((x + y).square().sum()), float((x - y).square().sum())
    c = ((1 + rho) / (2 * rho**0.5)) ** DIM
    request = Request(dim=DIM, num_features=2, projection=Antithetic(IID()))
    both = relvar(RandomFeatures(request, Positive(), proposal), x, y)
    assert both == pytest.approx(c / 2 * (math.exp(rho * phi) + math.exp(-phi)) - 1, rel=1e-9)
    iid = relvar(RandomFeatures(Request(dim=DIM, num_features=2), Positive(), proposal), x, y)
    assert (both < iid) == (c * math.exp(-phi) < 1)
    trig = RandomFeatures(Request(dim=DIM, num_features=2), Trigonometric(), proposal)
    e2 = c / 2 * (math.exp(delta) + math.exp(-rho * delta))
    assert relvar(trig, x, y) == pytest.approx(e2 - 1, rel=1e-9)
    plain = make("trigonometric", dim=DIM, num_features=2, projection="iid")
    assert relvar(trig, x, y) > relvar(plain, x, y)  # A < 0 never helps trigonometric features


@pytest.mark.parametrize("phi", [0.02, 0.3, 3.0])
def test_antithetic_pairs_pay_exactly_where_the_notes_say(phi: float) -> None:
    # better than two independent features iff c^d e^-phi < 1, true at A*(phi)
    x = torch.full((1, DIM), 0.5 * (phi / DIM) ** 0.5, dtype=torch.float64)
    proposal = isotropic_proposal(torch.tensor(phi), DIM)
    iid, pairs = (
        relvar(
            RandomFeatures(Request(dim=DIM, num_features=2, projection=p), Positive(), proposal),
            x,
            x,
        )
        for p in (IID(), Antithetic(IID()))
    )
    assert pairs < iid


# -- 5.2 DERF -----------------------------------------------------------------------------------------
def test_general_derf_second_moment(generator) -> None:
    # E[Z^2] = D^4 det(I-8A)^-1/2 exp(2b'(I-8A)^-1 b + 2x'Cx + 2y'Cy), B = (I-4A)^{1/2}, C = -1/2
    eye = torch.eye(DIM, dtype=torch.float64)
    covariance = eye + spd(generator, DIM, 0.4)
    a = (eye - covariance) / 4
    x, y = 0.5 * normals(generator, 1, DIM), 0.5 * normals(generator, 1, DIM)
    b = root(eye - 4 * a) @ (x + y)[0]
    inner = eye - 8 * a
    d4 = torch.linalg.det(eye - 4 * a)
    exponent = 2 * b @ torch.linalg.solve(inner, b) - (x.square().sum() + y.square().sum())
    moment = d4 * torch.linalg.det(inner).rsqrt() * torch.exp(exponent)
    proposal = GaussianProposal(torch.zeros(DIM), covariance)
    phi = RandomFeatures(Request(dim=DIM, num_features=1), Positive(), proposal)
    kernel = math.exp(float(x @ y.T))
    assert kernel**2 * (relvar(phi, x, y) + 1) == pytest.approx(float(moment), rel=1e-9)


def test_aderf_balance_is_the_geometric_mean_and_optimal(generator) -> None:
    q, k = calibration(generator)
    m = Moments.of(q, k, ridge=0.0)
    m1, m2 = m.query_covariance, m.key_covariance
    half = root(m1)
    inverse = torch.linalg.inv(half)
    middle = root(half @ m2 @ half)
    printed = inverse @ middle @ inverse
    pair_ = LinearPair.balancing(m)
    assert torch.allclose(pair_.matrix.T @ pair_.matrix, printed, rtol=1e-6, atol=1e-9)

    def phi(g: Tensor) -> float:
        """E|G q + G^-T k|^2 - 2 E q . E k for independent q and k."""
        inverse_ = torch.linalg.inv(g)
        return float((g @ m1 @ g.T).trace() + (inverse_.T @ m2 @ inverse_).trace())

    best = phi(pair_.matrix)
    assert best == pytest.approx(2 * float(middle.trace()), rel=1e-8)
    eye = torch.eye(DIM, dtype=torch.float64)
    for step in (1e-3, 1e-2, 0.1):
        for _ in range(50):
            assert phi(pair_.matrix @ (eye + step * normals(generator, DIM, DIM))) > best
    # SADERF: the best diagonal is psi = (E k^2 / E q^2)^{1/4}
    psi = torch.diag((m2.diagonal() / m1.diagonal()) ** 0.25)
    for step in (1e-3, 0.1):
        for _ in range(20):
            assert phi(psi @ torch.diag(torch.exp(step * normals(generator, DIM)))) > phi(psi)


def test_aderf_second_moment(generator) -> None:
    # E2 = c^d e^{rho |s|^2}, s = G q + G^-T k of centred points, rho from phi = 2 tr(sigma)
    q, k = calibration(generator)
    phi = make("aderf", dim=DIM, num_features=3, projection="iid", dtype=torch.float64).fit(q, k)
    m = Moments.of(q, k)
    g = LinearPair.balancing(m).matrix
    x, y = q[:1], k[:1]
    s = g @ (x - m.query_mean)[0] + torch.linalg.inv(g).T @ (y - m.key_mean)[0]
    size = (g @ m.query_covariance @ g.T).trace() * 2
    rho = 1 / (1 - 8 * optimal_a(size, DIM))
    e2 = math.exp(float(log_e2(rho.expand(DIM), s)))
    assert relvar(phi, x, y) == pytest.approx((e2 - 1) / 3, rel=1e-8)


def test_sderf_second_moment_and_optimum(generator) -> None:
    q, k = calibration(generator)
    phi = make("sderf", dim=DIM, num_features=3, projection="iid", dtype=torch.float64).fit(q, k)
    m = Moments.of(q, k)
    values, axes = torch.linalg.eigh(m.query_covariance + m.key_covariance)
    a = (1 - 2 * values - ((2 * values + 1) ** 2 + 8 * values).sqrt()) / 16
    assert torch.allclose(log_optimal_variance(values), 1 - 4 * a, rtol=1e-12)
    rho = 1 / (1 - 8 * a)
    x, y = q[:1], k[:1]
    s = axes.T @ (x - m.query_mean + y - m.key_mean)[0]
    assert relvar(phi, x, y) == pytest.approx((math.exp(float(log_e2(rho, s))) - 1) / 3, rel=1e-8)

    def mean_log(r: Tensor) -> float:
        """E log E2 = sum log c + rho L, the objective of 1.1 (c)."""
        return float(log_e2(r, values.sqrt()))

    for factor in (0.9, 0.99, 1.01, 1.1):
        for axis in range(DIM):
            moved = rho.clone()
            moved[axis] *= factor
            assert mean_log(moved) > mean_log(rho)


def test_combined_g_and_diagonal_rho(generator) -> None:
    g = normals(generator, DIM, DIM) * 0.3 + torch.eye(DIM, dtype=torch.float64)
    scale = torch.tensor([1.0, 1.4, 2.0, 3.0], dtype=torch.float64)
    inner = RandomFeatures(
        Request(dim=DIM, num_features=2, dtype=torch.float64),
        Positive(),
        GaussianProposal(torch.zeros(DIM), torch.diag(scale)),
    )
    phi = TransformedFeatures(inner, LinearPair(g))
    x, y = 0.5 * normals(generator, 1, DIM), 0.5 * normals(generator, 1, DIM)
    s = g @ x[0] + torch.linalg.inv(g).T @ y[0]
    e2 = math.exp(float(log_e2(1 / (2 * scale - 1), s)))
    assert relvar(phi, x, y) == pytest.approx((e2 - 1) / 2, rel=1e-9)


# -- 5.3 shift ----------------------------------------------------------------------------------------
def test_shift_identity_and_its_second_moment(generator) -> None:
    # SM(x,y) = exp(b.y + c.x - b.c) SM(x-b, y-c), hence s -> s - t in every formula
    b, c = normals(generator, DIM), normals(generator, DIM)
    x, y = normals(generator, 5, DIM), normals(generator, 3, DIM)
    left = x @ y.T
    right = (x - b) @ (y - c).T + (y @ b) + (x @ c).unsqueeze(-1) - b @ c
    assert torch.allclose(left, right, atol=1e-12)
    inner = make("positive", dim=DIM, num_features=2, projection="iid", dtype=torch.float64)
    phi = TransformedFeatures(inner, Centring(b, c))
    moved = (x.unsqueeze(1) + y - b - c).square().sum(-1)
    assert torch.allclose(phi.relative_variance(x, y), torch.expm1(moved) / 2, rtol=1e-9)


def test_the_best_shift_is_the_mean(generator) -> None:
    # of E log E2 = E|s - t|^2
    s = normals(generator, 500, DIM) + 0.7
    t = s.mean(0)
    best = (s - t).square().sum(-1).mean()
    for _ in range(20):
        assert (s - t - 0.1 * normals(generator, DIM)).square().sum(-1).mean() > best


def test_attention_is_invariant_under_a_shift_of_the_keys(generator) -> None:
    q, k, v = (normals(generator, 12, DIM) for _ in range(3))
    shift = normals(generator, DIM)
    plain = torch.softmax(q @ k.T, -1) @ v
    assert torch.allclose(torch.softmax(q @ (k - shift).T, -1) @ v, plain, atol=1e-12)


# -- 5.4 simplex, sampled -----------------------------------------------------------------------------
def test_simplex_pair_by_sampling(generator) -> None:
    # the printed double integral is checked by quadrature in test_moments; sees 3 %
    dim = 3
    omega = Simplex().draw(dim, dim, generator=generator, batch_shape=(100_000,))
    z = torch.full((dim,), 0.9 / dim**0.5, dtype=torch.float64)
    f = torch.exp(omega @ z - 0.405)
    pairs = (f.sum(-1).square() - f.square().sum(-1)) / (dim * (dim - 1))
    phi = make("positive", dim=dim, num_features=dim, projection="simplex")
    iid = make("positive", dim=dim, num_features=dim, projection="iid")
    x = 0.5 * z.unsqueeze(0)
    declared = 1 + (relvar(phi, x, x) - relvar(iid, x, x)) / (1 - 1 / dim)
    mean_is(pairs, declared, see=0.03)
