"""Complex exponential estimators (docs/theory.md 8), one formula at a time.

Each is stated in its printed form, in naive complex arithmetic, and compared with what the library
computes; the samples of the Monte Carlo ones are fresh draws, one per element of batch_shape.
"""

import cmath
import math

import pytest
import torch
from torch import Tensor

from bochner.exponential import ComplexExponential
from bochner.exponents import shared_covariance
from bochner.pair_matrices import from_centres
from bochner.projections import IID, Antithetic, Orthogonal, Projection
from bochner.request import Request
from tests.formula_points import DIM, normals, relvar
from tests.naive import covariance_is, hermite, hyp1f1, mean_is, variance_is

REPLICATES = 200_000


def draw(
    matrix: Tensor,
    generator: torch.Generator,
    *,
    projections: int = 4,
    batch_shape: tuple[int, ...] = (),
    projection: Projection | None = None,
) -> ComplexExponential:
    request = Request(
        dim=matrix.shape[-1],
        num_features=projections * (2 if matrix.is_complex() else 1),
        projection=projection or IID(),
        batch_shape=batch_shape,
        generator=generator,
        dtype=torch.float64,
    )
    return ComplexExponential(request, matrix)


def complex_matrix(generator: torch.Generator, dim: int = DIM) -> Tensor:
    noise = torch.complex(normals(generator, dim, dim), normals(generator, dim, dim))
    return torch.diag(torch.exp(1j * normals(generator, dim))) + 0.15 * noise


def two_points(generator: torch.Generator, dim: int = DIM) -> tuple[Tensor, Tensor]:
    """|x| = 0.5, |y| = 0.4: tails light enough for sample variances."""
    x, y = (torch.nn.functional.normalize(normals(generator, 1, dim), dim=-1) for _ in range(2))
    return 0.5 * x, 0.4 * y


def s_of(matrix: Tensor, x: Tensor, y: Tensor) -> list[complex]:
    """A x + A^-T y, a list of complex numbers."""
    a = matrix.to(torch.complex128)
    return (a @ x[0].to(a.dtype) + torch.linalg.inv(a).T @ y[0].to(a.dtype)).tolist()


def squares(s: list[complex]) -> tuple[float, complex]:
    """s^H s and s^T s."""
    return sum(abs(v) ** 2 for v in s), sum(v * v for v in s)


# -- identities ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("field", ["real", "complex"])
def test_one_sample_is_exactly_k_times_an_exponential(field: str, generator) -> None:
    # f(w, Ax) f(w, A^-T y) = K exp(w.s - s^T s / 2): real and imaginary part, feature by feature
    matrix = complex_matrix(generator)
    matrix = matrix.real if field == "real" else matrix
    phi = draw(matrix, generator, projections=3)
    x, y = normals(generator, 1, DIM), normals(generator, 1, DIM)
    s = s_of(matrix, x, y)
    half = 0.5 * squares(s)[1]
    kernel = math.exp(float(x @ y.T))
    query, key = phi.query(x).materialise()[0] * 3**0.5, phi.key(y).materialise()[0] * 3**0.5
    for j, w in enumerate(phi.omega.tolist()):
        z = kernel * cmath.exp(sum(a * b for a, b in zip(w, s, strict=True)) - half)
        if field == "real":
            assert float(query[j] * key[j]) == pytest.approx(z.real, rel=1e-9)
            continue
        f, g = complex(query[j], query[j + 3]), complex(key[j], -key[j + 3])
        assert abs(f * g - z) <= 1e-9 * abs(z)
        product = query[j] * key[j] + query[j + 3] * key[j + 3]
        assert float(product) == pytest.approx(z.real, rel=1e-9, abs=1e-9 * abs(z))


def test_complex_second_moment(generator) -> None:
    # E|Z - K|^2 = K^2 (e^{s^H s} - 1), E Z = K, by quadrature
    omega, weights = hermite(60, dim=2)
    for _ in range(3):
        s = torch.tensor(
            s_of(complex_matrix(generator, 2), *two_points(generator, 2)), dtype=torch.complex128
        )
        hermitian, bilinear = squares(s.tolist())
        z = torch.exp(omega.to(s.dtype) @ s - 0.5 * bilinear)
        assert complex(weights.to(z.dtype) @ z) == pytest.approx(1.0, rel=1e-9)
        assert float(weights @ (z - 1).abs().square()) == pytest.approx(
            math.expm1(hermitian), rel=1e-8
        )


# -- mean squared errors ------------------------------------------------------------------------------
@pytest.mark.parametrize("field", ["real", "complex"])
@pytest.mark.parametrize("m", [1, 5])
def test_printed_mean_squared_errors(m: int, field: str, generator) -> None:
    matrix = complex_matrix(generator)
    matrix = matrix.real if field == "real" else matrix
    x, y = normals(generator, 1, DIM), normals(generator, 1, DIM)
    hermitian, bilinear = squares(s_of(matrix, x, y))
    iid = (math.exp(hermitian) / 2 + cmath.exp(bilinear).real / 2 - 1) / m
    found = relvar(draw(matrix, generator, projections=m), x, y)
    assert found == pytest.approx(iid, rel=1e-9)
    if field == "real":
        assert found == pytest.approx(math.expm1(hermitian) / m, rel=1e-9)
    # m pairs ±w
    pairs = (
        (math.exp(hermitian) + math.exp(-hermitian)) / 4
        + (cmath.exp(bilinear) + cmath.exp(-bilinear)).real / 4
        - 1
    ) / m
    mirrored = draw(matrix, generator, projections=2 * m, projection=Antithetic(IID()))
    assert relvar(mirrored, x, y) == pytest.approx(pairs, rel=1e-9)


def test_one_formula_covers_positive_and_trigonometric(generator) -> None:
    # A = I: e^{|x+y|^2} - 1; A = i I: 2 sinh^2(|x-y|^2/2)
    x, y = normals(generator, 1, DIM), normals(generator, 1, DIM)
    plus, minus = (float((x + sign * y).square().sum()) for sign in (1, -1))
    one = torch.ones(DIM, dtype=torch.float64)
    assert relvar(draw(one, generator), x, y) == pytest.approx(math.expm1(plus) / 4, rel=1e-9)
    assert relvar(draw(1j * one, generator), x, y) == pytest.approx(
        2 * math.sinh(minus / 2) ** 2 / 4, rel=1e-9
    )


@pytest.mark.parametrize(("dim", "m"), [(4, 3), (4, 12), (8, 8)])
def test_a_real_matrix_with_orthogonal_directions(dim: int, m: int, generator) -> None:
    # (e^phi - 1)/m + share (e^-phi 1F1(d; d/2; phi/2) - 1), phi = |s|^2
    matrix = torch.eye(dim).double() + 0.1 * normals(generator, dim, dim)
    x, y = two_points(generator, dim)
    phi, _ = squares(s_of(matrix, x, y))
    share = 1 - 1 / m if m <= dim else (dim - 1) / m
    pair = math.exp(-phi) * hyp1f1(dim, dim / 2, phi / 2)
    found = relvar(draw(matrix, generator, projections=m, projection=Orthogonal()), x, y)
    assert found == pytest.approx(math.expm1(phi) / m + share * (pair - 1), rel=1e-8)


@pytest.mark.parametrize("field", ["real", "complex", "imaginary"])
@pytest.mark.parametrize(
    "projection", [IID(), Antithetic(IID()), Orthogonal()], ids=["iid", "antithetic", "orthogonal"]
)
def test_means_and_variances_by_sampling(field: str, projection: Projection, generator) -> None:
    # alpha = 1e-6 over the whole suite (tests/naive.py)
    matrix = complex_matrix(generator)
    matrix = {
        "real": (matrix.real + torch.eye(DIM)) / 1.5,
        "complex": matrix,
        "imaginary": 1j * matrix,  # i A turns s = A x + A^-T y into i (A x - A^-T y)
    }[field]
    x, y = two_points(generator)
    phi = draw(
        matrix.expand(1, DIM, DIM), generator, batch_shape=(REPLICATES,), projection=projection
    )
    samples = (phi.estimate(x, y) / phi.kernel(x, y)).flatten()
    mean_is(samples, 1.0, see=0.03)
    single = draw(matrix, generator, projection=projection)
    declared = single.relative_variance(x, y)
    if declared is None:
        assert field != "real"
        assert isinstance(projection, Orthogonal)
        return
    variance_is(samples, float(declared), see=0.25)


# -- two matrices on one w ----------------------------------------------------------------------------
@pytest.mark.parametrize("fields", ["real real", "real complex", "complex complex"])
def test_covariances_of_two_matrices_by_sampling(fields: str, generator) -> None:
    x, y = two_points(generator)
    maps: list[ComplexExponential] = []
    exponents: list[list[complex]] = []
    for field in fields.split():
        matrix = complex_matrix(generator)
        matrix = (matrix.real + torch.eye(DIM)) / 1.5 if field == "real" else matrix
        request = Request(
            dim=DIM,
            num_features=4 if field == "real" else 8,
            batch_shape=(REPLICATES,),
            generator=generator,
            dtype=torch.float64,
        )
        directions = maps[0].directions if maps else None
        maps.append(ComplexExponential(request, matrix.expand(1, DIM, DIM), directions=directions))
        exponents.append(s_of(matrix, x, y))
    first, second = exponents
    bilinear = sum(a * b for a, b in zip(first, second, strict=True))
    hermitian = sum(a.conjugate() * b for a, b in zip(first, second, strict=True))
    truth = (cmath.exp(bilinear).real / 2 + cmath.exp(hermitian).real / 2 - 1) / 4
    if fields == "real real":
        assert truth == pytest.approx(math.expm1(bilinear.real) / 4, rel=1e-9)
    a, b = ((phi.estimate(x, y) / phi.kernel(x, y)).flatten() for phi in maps)
    covariance_is(a, b, truth, see=0.1)
    declared = maps[0].covariance_with(maps[1], x, y, grid=False)
    assert torch.allclose(declared, torch.full_like(declared, truth), rtol=1e-8)


def test_positive_and_trigonometric_share_with_profit(generator) -> None:
    # Cov = -K^2 (1 - cos(|x|^2 - |y|^2)) / m <= 0, for every pair of points
    one = torch.ones(DIM, dtype=torch.float64)
    x, y = 2 * normals(generator, 5, DIM), normals(generator, 6, DIM)
    a, b = (draw(matrix, generator).exponents(x, y)[:2] for matrix in (one, 1j * one))
    found = shared_covariance(*a, *b, count=4)
    gap = x.square().sum(-1).unsqueeze(-1) - y.square().sum(-1)
    assert torch.allclose(found, -(1 - torch.cos(gap)) / 4, rtol=1e-9, atol=1e-12)
    assert bool((found <= 1e-15).all())


# -- choosing A ---------------------------------------------------------------------------------------
def test_the_diagonal_of_two_centres_has_no_error(generator) -> None:
    # a_k = sqrt|q_k / r_k|, times i where r_k q_k > 0: |s| = 2e-16
    r = torch.tensor([[0.5, -2.0, 0.3, 1.0]], dtype=torch.float64)
    q = torch.tensor([[-1.0, 0.3, 0.7, 2.0]], dtype=torch.float64)
    a = from_centres(r[0], q[0])
    assert max(abs(v) for v in s_of(torch.diag(a), r, q)) <= 4.5e-16
    phi = draw(a, generator)
    assert relvar(phi, r, q) < 1e-14
    assert float(phi.estimate(r, q) / phi.kernel(r, q)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_dense_real_matrix_reaches_zero_iff_the_centres_oppose(sign: float, generator) -> None:
    # A^T A r = -q has a positive definite solution iff r.q < 0; otherwise |s|^2 >= 4 r.q
    r, q = normals(generator, DIM), normals(generator, DIM)
    q = q * sign * torch.sign(r @ q)
    if sign < 0:
        gram = torch.outer(q, q) / -(r @ q) + torch.eye(DIM) - torch.outer(r, r) / (r @ r)
        assert torch.allclose(gram @ r, -q, atol=1e-12)
        phi = draw(torch.linalg.cholesky(gram).mT, generator)
        assert relvar(phi, r.unsqueeze(0), q.unsqueeze(0)) < 1e-10
        return
    least = 4 * float(r @ q)
    for _ in range(100):
        a = normals(generator, DIM, DIM)
        s = a @ r + torch.linalg.inv(a).T @ q
        assert float(s @ s) >= least * (1 - 1e-9)
