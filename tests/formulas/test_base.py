"""Base estimators and coupled directions (docs/theory.md 1, 2), one formula at a time.

Each is stated in its printed form, in naive float64, and compared with what the library computes.
"""

import math

import pytest
import torch

from bochner.catalog import make
from bochner.transformed import TransformedFeatures
from bochner.transforms import LinearPair
from tests.formula_points import DIM, KINDS, normals, pair, relvar
from tests.naive import hermite, hyp1f1


# -- section 1: base estimators -----------------------------------------------------------------------
@pytest.mark.parametrize("m", [2, 7])
def test_mean_squared_errors_of_lemma_1_4(m: int, generator) -> None:
    x, y = 0.6 * normals(generator, 1, DIM), 0.6 * normals(generator, 1, DIM)
    z, delta, kernel = x + y, x - y, math.exp(float(x @ y.T))
    z2, d2 = float(z.square().sum()), float(delta.square().sum())
    printed = {
        "trigonometric": [
            math.exp(z2) * kernel**-2 * (1 - math.exp(-d2)) ** 2 / (2 * m),
            kernel**2 * math.exp(d2) * (1 - math.exp(-d2)) ** 2 / (2 * m),
            2 / m * kernel**2 * math.sinh(d2 / 2) ** 2,
        ],
        "positive": [
            math.exp(z2) * kernel**2 * (1 - math.exp(-z2)) / m,
            kernel**2 * (math.exp(z2) - 1) / m,
        ],
        "hyperbolic": [
            math.exp(z2) * kernel**2 * (1 - math.exp(-z2)) ** 2 / (2 * m),
            2 / m * kernel**2 * math.sinh(z2 / 2) ** 2,
        ],
    }
    for kind, forms in printed.items():
        columns = 1 if kind == "positive" else 2
        phi = make(kind, dim=DIM, num_features=columns * m, projection="iid")
        for form in forms:
            assert kernel**2 * relvar(phi, x, y) == pytest.approx(form, rel=1e-10)


def test_exact_points(generator) -> None:
    x = 2.0 * normals(generator, 3, DIM)
    for kind, y in (("trigonometric", x), ("positive", -x), ("hyperbolic", -x)):
        for projection in ("iid", "orthogonal", "simplex"):
            phi = make(kind, dim=DIM, num_features=8, projection=projection, dtype=torch.float64)
            ratio = phi.estimate(x, y) / phi.kernel(x, y)
            assert torch.allclose(ratio.diagonal(), torch.ones(3).double(), rtol=0, atol=1e-12)
            assert float(phi.relative_variance(x, y).diagonal().abs().max()) < 1e-12


@pytest.mark.parametrize("theta", [0.1, 1.0, 2.5])
def test_trigonometric_mirrors_hyperbolic(theta: float) -> None:
    trig, hyp = (make(kind, dim=DIM, num_features=8, projection="iid") for kind in KINDS[:0:-1])
    for r in (0.5, 1.5):
        mirrored = relvar(hyp, *pair(DIM, r, math.pi - theta))
        assert relvar(trig, *pair(DIM, r, theta)) == pytest.approx(mirrored, rel=1e-9)


# -- 1.1 with real A ----------------------------------------------------------------------------------
def test_one_sample_of_the_a_matrix_estimator(generator) -> None:
    # Z = SM exp(w.s - s.s/2), s = A x + A^-T y
    a = normals(generator, DIM, DIM) + 2 * torch.eye(DIM, dtype=torch.float64)
    inner = make("positive", dim=DIM, num_features=5, generator=generator, dtype=torch.float64)
    phi = TransformedFeatures(inner, LinearPair(a))
    x, y = 0.5 * normals(generator, 1, DIM), 0.5 * normals(generator, 1, DIM)
    s = (a @ x[0]) + torch.linalg.inv(a).T @ y[0]
    samples = math.exp(float(x @ y.T)) * torch.exp(inner.omega @ s - 0.5 * s @ s)
    products = phi.query(x).materialise()[0] * phi.key(y).materialise()[0] * 5
    assert torch.allclose(products, samples, rtol=1e-10)


def test_two_real_a_on_one_omega(generator) -> None:
    # Cov = SM^2 (e^{s1.s2} - 1) / m, by Gauss-Hermite
    omega, weights = hermite(40, dim=2)
    x, y = 0.4 * normals(generator, 2), 0.4 * normals(generator, 2)
    s = []
    for _ in range(2):
        a = normals(generator, 2, 2) * 0.3 + torch.eye(2, dtype=torch.float64)
        s.append(a @ x + torch.linalg.inv(a).T @ y)
    z = [torch.exp(omega @ v - 0.5 * v @ v) for v in s]
    assert float(weights @ (z[0] * z[1])) == pytest.approx(math.exp(float(s[0] @ s[1])), rel=1e-9)


def test_the_diagonal_a_of_opposite_centres_has_no_variance() -> None:
    # a_k = sqrt|q_k / r_k| where r_k q_k < 0
    r = torch.tensor([[0.5, -2.0, 0.1]], dtype=torch.float64)
    q = torch.tensor([[-1.0, 0.3, -0.7]], dtype=torch.float64)
    inner = make("positive", dim=3, num_features=4, projection="iid", dtype=torch.float64)
    phi = TransformedFeatures(inner, LinearPair(torch.diag((q / r).abs().sqrt()[0])))
    assert relvar(phi, r, q) < 1e-14
    assert float(phi.estimate(r, q) / phi.kernel(r, q)) == pytest.approx(1.0, abs=1e-12)


def test_shared_omega_of_hyperbolic_and_trigonometric(generator) -> None:
    # section 2: Cov = -SM^2 (1 - cos(|x|^2 - |y|^2)) / m
    omega, weights = hermite(60, dim=2)
    for _ in range(3):
        x, y = 0.8 * normals(generator, 2), 0.8 * normals(generator, 2)
        plus, minus = x + y, x - y
        hyp = torch.cosh(omega @ plus) * torch.exp(-0.5 * plus @ plus)
        trig = torch.cos(omega @ minus) * torch.exp(0.5 * minus @ minus)
        covariance = float(weights @ (hyp * trig)) - 1
        assert covariance == pytest.approx(math.cos(float(x @ x - y @ y)) - 1, abs=1e-8)


# -- section 3: orthogonal blocks ---------------------------------------------------------------------
@pytest.mark.parametrize(("dim", "m"), [(8, 8), (8, 3), (8, 24), (64, 64), (2, 6)])
def test_orthogonal_mean_squared_errors(dim: int, m: int, generator) -> None:
    x, y = (0.9 * normals(generator, 1, dim) / dim**0.5 for _ in range(2))
    phi, delta = float((x + y).square().sum()), float((x - y).square().sum())
    pair_pos = math.exp(-phi) * hyp1f1(dim, dim / 2, phi / 2)
    pair_trig = math.exp(delta) * hyp1f1(dim, dim / 2, -delta / 2)
    share = 1 - 1 / m if m <= dim else (dim - 1) / m
    for kind, e2, other in (
        ("positive", math.exp(phi), pair_pos),
        ("hyperbolic", math.cosh(phi), pair_pos),
        ("trigonometric", math.cosh(delta), pair_trig),
    ):
        columns = 1 if kind == "positive" else 2
        found = relvar(make(kind, dim=dim, num_features=columns * m, projection="orthogonal"), x, y)
        assert found == pytest.approx((e2 - 1) / m + share * (other - 1), rel=1e-8)
