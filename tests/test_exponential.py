"""ComplexExponential against a naive loop in complex arithmetic, and what it promises of its matrix."""

import cmath
import copy
import math
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.directions import Directions
from bochner.exponential import ComplexExponential
from bochner.nonlinearities import Positive, Trigonometric
from bochner.projections import IID, PROJECTIONS, Antithetic, Hadamard, Orthogonal, Simplex, Sobol
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.transformed import TransformedFeatures
from bochner.transforms import LinearPair
from tests.formula_points import normals

FORMS = ["real diagonal", "real dense", "complex diagonal", "complex dense"]


def matrix_of(form: str, generator: torch.Generator, dim: int, *batch: int) -> Tensor:
    """A well-conditioned A of this form, modulus and argument both away from those of I."""
    diagonal = torch.ones(*batch, dim).double() + 0.2 * normals(generator, *batch, dim)
    if "complex" in form:
        diagonal = diagonal * torch.exp(1j * normals(generator, *batch, dim))
    if "diagonal" in form:
        return diagonal
    off = 0.2 * normals(generator, *batch, dim, dim)
    return torch.diag_embed(diagonal) + (off * (1 + 0.5j) if "complex" in form else off)


def dense(matrix: Tensor) -> Tensor:
    return torch.diag(matrix) if matrix.ndim == 1 else matrix


def made(
    matrix: Tensor, *, dim: int = 3, projections: int = 5, seed: int = 0, **parts: object
) -> ComplexExponential:
    columns = 2 if matrix.is_complex() else 1
    request = Request(
        dim=dim,
        num_features=columns * projections,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
        **parts,  # type: ignore[arg-type]
    )
    return ComplexExponential(request, matrix)


def naive_features(omega: Tensor, matrix: Tensor, x: Tensor, *, conjugate: bool) -> Tensor:
    """exp(w.Ax - (Ax)^T Ax / 2) / sqrt(r), one complex number at a time."""
    rows = []
    for point in x.tolist():
        u = [sum(a * p for a, p in zip(row, point, strict=True)) for row in matrix.tolist()]
        half = 0.5 * sum(v * v for v in u)
        f = [
            cmath.exp(sum(a * b for a, b in zip(w, u, strict=True)) - half) / math.sqrt(len(omega))
            for w in omega.tolist()
        ]
        sign = -1 if conjugate else 1
        imaginary = [sign * z.imag for z in f] if matrix.is_complex() else []
        rows.append([z.real for z in f] + imaginary)
    return torch.tensor(rows, dtype=torch.float64)


# -- features -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_features_are_those_of_the_naive_loop(form: str, generator) -> None:
    matrix = matrix_of(form, generator, 3)
    phi = made(matrix)
    x, y = normals(generator, 4, 3), normals(generator, 2, 3)
    a = dense(matrix)
    queries = naive_features(phi.omega, a, x, conjugate=False)
    keys = naive_features(phi.omega, torch.linalg.inv(a).mT, y, conjugate=True)
    assert torch.allclose(phi.query(x).materialise(), queries, rtol=1e-10, atol=1e-12)
    assert torch.allclose(phi.key(y).materialise(), keys, rtol=1e-10, atol=1e-12)
    assert phi.num_features == queries.shape[-1]
    assert phi.positive == (not matrix.is_complex())
    assert phi.query(x).positive == phi.positive


@pytest.mark.parametrize("form", FORMS)
def test_a_diagonal_is_the_dense_matrix_it_stands_for(form: str, generator) -> None:
    diagonal = matrix_of(form.replace("dense", "diagonal"), generator, 3)
    x, y = normals(generator, 4, 3), normals(generator, 2, 3)
    short, full = made(diagonal), made(torch.diag(diagonal))
    assert torch.allclose(short.estimate(x, y), full.estimate(x, y), rtol=1e-9)
    assert torch.allclose(short.relative_variance(x, y), full.relative_variance(x, y), rtol=1e-9)


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("form", FORMS)
def test_the_gaussian_kernel_differs_by_the_point_factors(
    form: str, kernel: str, generator
) -> None:
    from bochner.kernels import KERNELS

    phi = made(matrix_of(form, generator, 3), kernel=KERNELS[kernel])
    x, y = 0.5 * normals(generator, 4, 3), 0.5 * normals(generator, 2, 3)
    queries, keys, _ = phi.exponents(x, y)
    s = queries.unsqueeze(1) + keys
    z = torch.exp(s @ phi.omega.mT.to(s.dtype) - 0.5 * (s * s).sum(-1, keepdim=True)).real.mean(-1)
    assert torch.allclose(phi.estimate(x, y), phi.kernel(x, y) * z, rtol=1e-9, atol=1e-12)
    assert torch.equal(phi.log_exact(x, y).log_abs, phi.kernel.log(x, y))


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("form", [torch.ones(3), torch.eye(3)])
def test_identity_is_positive_and_i_is_trigonometric(form: Tensor, kernel: str, generator) -> None:
    from bochner.kernels import KERNELS

    x = 2.0 * normals(generator, 4, 3)
    for matrix, nonlinearity in ((form, Positive()), (1j * form, Trigonometric())):
        phi = made(matrix, kernel=KERNELS[kernel], projection=Orthogonal())
        request = Request(
            dim=3, num_features=phi.num_features, kernel=phi.kernel, projection=Orthogonal()
        )
        known = RandomFeatures(request, nonlinearity, directions=phi.directions)
        for side in ("query", "key"):
            ours, theirs = getattr(phi, side)(x), getattr(known, side)(x)
            assert torch.allclose(ours.materialise(), theirs.materialise(), rtol=1e-12, atol=0)
        assert torch.allclose(
            phi.relative_covariance(x, x), known.relative_covariance(x, x), rtol=1e-9, atol=1e-12
        )
        assert phi.symmetric


def test_i_is_exact_at_equal_points_and_says_so(generator) -> None:
    x = 3.0 * normals(generator, 4, 5)
    phi = made(torch.full((5,), 1j), dim=5)
    ratio = (phi.estimate(x, x) / phi.kernel(x, x)).diagonal()
    assert torch.allclose(ratio, torch.ones(4).double(), rtol=1e-12)
    assert float(phi.relative_variance(x, x).diagonal().max()) < 1e-20


@pytest.mark.parametrize("form", FORMS)
def test_antithetic_directions_give_the_cosh_form(form: str, generator) -> None:
    phi = made(matrix_of(form, generator, 3), projections=6, projection=Antithetic(IID()))
    x, y = 0.5 * normals(generator, 4, 3), 0.5 * normals(generator, 2, 3)
    queries, keys, even = phi.exponents(x, y)
    assert even
    s = queries.unsqueeze(1) + keys
    half = 0.5 * (s * s).sum(-1, keepdim=True)
    omega = phi.omega[:3].mT.to(s.dtype)
    z = (torch.cosh(s @ omega) * torch.exp(-half)).real.mean(-1)
    assert torch.allclose(phi.estimate(x, y), phi.kernel(x, y) * z, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_an_offset_changes_no_estimate(form: str, generator) -> None:
    matrix = matrix_of(form, generator, 3)
    plain = made(matrix)
    request = Request(dim=3, num_features=plain.num_features)
    offset = normals(generator, 3)
    phi = ComplexExponential(request, matrix, directions=plain.directions, offset=offset)
    x, y = normals(generator, 4, 3), normals(generator, 2, 3)
    assert torch.allclose(phi.estimate(x, y), plain.estimate(x, y), rtol=1e-9)
    assert torch.equal(phi.relative_variance(x, y), plain.relative_variance(x, y))
    weight = torch.exp(-phi.omega @ offset).repeat(plain.num_features // 5)
    assert torch.allclose(phi.query(x).materialise(), plain.query(x).materialise() * weight)


def test_an_offset_keeps_far_clusters_in_range(generator) -> None:
    # queries at c, keys at -c: |w.c| up to hundreds, while s = x + y is small
    centre = torch.full((4,), 100.0, dtype=torch.float64)
    x, y = centre + 0.3 * normals(generator, 5, 4), -centre + 0.3 * normals(generator, 5, 4)
    matrix = torch.ones(4, dtype=torch.complex128)
    plain = made(matrix, dim=4, projections=64)
    assert bool((plain.log_estimate(x.float(), y.float()).sign == 0).any())
    request = Request(dim=4, num_features=128)
    phi = ComplexExponential(request, matrix, directions=plain.directions, offset=centre)
    assert plain.symmetric
    assert not phi.symmetric
    relative = phi.log_estimate(x, y).log_abs - phi.kernel.log(x, y)
    assert float(relative.abs().max()) < 1.5  # relative variance e^{|s|^2} - 1 over 64
    single = phi.log_estimate(x.float(), y.float()).log_abs - phi.kernel.log(x, y)
    assert float((single - relative).abs().max()) < 0.1  # |x|^2 = 40,000 in float32
    with pytest.raises(ValueError, match=r"offset has shape \[3\]"):
        ComplexExponential(request, matrix, offset=torch.zeros(3))
    with pytest.raises(ValueError, match="offset holds NaN"):
        ComplexExponential(request, matrix, offset=torch.full((4,), math.nan))


# -- the same directions, other maps ------------------------------------------------------------------
@pytest.mark.parametrize("projection", [IID(), Orthogonal(), Simplex(), Antithetic(Orthogonal())])
def test_a_real_matrix_is_a_linear_pair_around_positive_features(projection, generator) -> None:
    matrix = matrix_of("real dense", generator, 3)
    phi = made(matrix, projections=8, projection=projection)
    request = Request(dim=3, num_features=8, projection=projection)
    inner = RandomFeatures(request, Positive(), directions=phi.directions)
    known = TransformedFeatures(inner, LinearPair(matrix))
    x, y = 0.5 * normals(generator, 4, 3), 0.5 * normals(generator, 2, 3)
    assert torch.allclose(phi.estimate(x, y), known.estimate(x, y), rtol=1e-10)
    for form in ("relative_variance", "relative_covariance"):
        ours, theirs = getattr(phi, form)(x, y), getattr(known, form)(x, y)
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_shared_directions_are_redrawn_together(generator) -> None:
    first = made(matrix_of("complex diagonal", generator, 3))
    request = Request(dim=3, num_features=5)
    second = ComplexExponential(request, torch.ones(3), directions=first.directions)
    before = second.omega.clone()
    assert first.resample_(generator) is first
    assert torch.equal(first.omega, second.omega)
    assert not torch.equal(second.omega, before)
    covariance = first.covariance_with(second, before[:2], before[:1], grid=False)
    assert covariance is not None


# -- what it declares ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("matrix", "symmetric"),
    [
        (torch.ones(2), True),
        (torch.tensor([1.0, -1.0]), True),
        (torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double(), False),  # 0.6 in binary: see below
        (torch.tensor([1j, 1.0]), True),
        (torch.tensor([2j, 1.0]), False),
        (torch.tensor([[0.0, 1j], [1.0, 0.0]]), True),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), False),
    ],
)
def test_symmetric_means_unitary(matrix: Tensor, symmetric: bool, generator) -> None:
    if matrix.dtype == torch.float64:  # float32 values of 0.6 and 0.8: off by 1e-8
        matrix, symmetric = torch.linalg.qr(matrix).Q, True
    phi = made(matrix, dim=2)
    assert phi.symmetric == symmetric
    x = normals(generator, 3, 2)
    same = torch.allclose(phi.query(x).materialise(), phi.key(x).materialise(), rtol=1e-10)
    assert same == symmetric


@pytest.mark.parametrize("name", sorted(PROJECTIONS))
@pytest.mark.parametrize("form", ["real dense", "complex dense"])
def test_closed_forms_exist_where_the_docs_say(form: str, name: str, generator) -> None:
    projection = PROJECTIONS[name]
    base = projection.antithetic_base or projection
    phi = made(matrix_of(form, generator, 3), projections=4, projection=projection)
    x, y = normals(generator, 4, 3), normals(generator, 2, 3)
    coupled = isinstance(base, Orthogonal | Simplex) and "complex" in form
    missing = isinstance(base, Hadamard | Sobol) or coupled
    assert (phi.relative_variance(x, y) is None) == missing
    assert (phi.relative_covariance(x, y) is None) == isinstance(base, Hadamard)
    assert phi.unbiased == projection.unbiased


def test_one_coupled_row_is_independent(generator) -> None:
    matrix = matrix_of("complex dense", generator, 3)
    x, y = normals(generator, 4, 3), normals(generator, 2, 3)
    for projection, count in ((Orthogonal(), 1), (Antithetic(Orthogonal()), 2)):
        phi = made(matrix, projections=count, projection=projection)
        base = IID() if count == 1 else Antithetic(IID())
        independent = made(matrix, projections=count, projection=base)
        assert torch.equal(phi.relative_variance(x, y), independent.relative_variance(x, y))


@pytest.mark.parametrize("projection", [IID(), Antithetic(IID())])
@pytest.mark.parametrize("form", FORMS)
def test_the_diagonal_of_the_covariance_is_the_variance(form: str, projection, generator) -> None:
    phi = made(matrix_of(form, generator, 3), projections=4, projection=projection)
    x, y = normals(generator, 4, 3), normals(generator, 5, 3)
    grid = phi.relative_covariance(x, y)
    assert grid.shape == (4, 5, 5)
    assert torch.allclose(grid, grid.mT, rtol=1e-9)
    variance = phi.relative_variance(x, y)
    assert torch.allclose(grid.diagonal(dim1=-2, dim2=-1), variance, rtol=1e-9, atol=1e-12)
    assert bool((torch.linalg.eigvalsh(grid) > -1e-9 * variance.amax()).all())


# -- numbers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_norm_80_is_finite(form: str, dtype: torch.dtype, generator) -> None:
    phi = made(matrix_of(form, generator, 8), dim=8, projections=16)
    x = 80.0 * torch.nn.functional.normalize(normals(generator, 5, 8), dim=-1).to(dtype)
    for a, b in ((x, x), (x, -x)):
        q, k = phi.query(a), phi.key(b)
        for part in (q.values, q.log_scale, k.values, k.log_scale):
            assert part.dtype == dtype
            assert bool(torch.isfinite(part).all())
        assert float(q.values.abs().max()) <= 1.0
        assert not bool(torch.isnan(phi.log_estimate(a, b).log_abs).any())
        estimate = phi.estimate(a, b)
        assert not bool(torch.isnan(estimate).any())
        assert bool((torch.sign(estimate) * phi.log_estimate(a, b).sign >= 0).all())
        variance = phi.relative_variance(a, b)
        assert bool((variance >= 0).all())
        assert not bool(torch.isnan(phi.relative_covariance(a, b)).any())


@pytest.mark.parametrize("form", FORMS)
def test_float32_and_half_precision_inputs(form: str, generator) -> None:
    phi = made(matrix_of(form, generator, 4), dim=4, projections=16)
    x, y = normals(generator, 5, 4), normals(generator, 3, 4)
    exact = phi.estimate(x, y)
    assert phi.estimate(x.float(), y.float()).dtype == torch.float32
    scale = exact.abs().max()
    assert float((phi.estimate(x.float(), y.float()) - exact).abs().max() / scale) < 1e-5
    rounded = phi.estimate(x.half().double(), y.half().double())
    assert float((phi.estimate(x.half(), y.half()) - rounded).abs().max() / scale) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str, generator) -> None:
    phi = made(matrix_of(form, generator, 3))
    x = normals(generator, 2, 3).requires_grad_()
    y = normals(generator, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(phi.estimate, (x, y))


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    dim=st.integers(1, 5),
    projections=st.integers(1, 4),
    batch=st.sampled_from([(), (3,), (2, 3)]),
    wide=st.booleans(),
    lead=st.sampled_from([(), (2,)]),
    seed=st.integers(0, 2**31),
)
def test_shapes(
    form: str,
    dim: int,
    projections: int,
    batch: tuple[int, ...],
    wide: bool,
    lead: tuple[int, ...],
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    matrix = matrix_of(form, g, dim, *(batch if wide else [1] * len(batch)))
    phi = made(matrix, dim=dim, projections=projections, batch_shape=batch)
    columns = projections * (2 if "complex" in form else 1)
    x, y = normals(g, *lead, *batch, 4, dim), normals(g, 2, dim)
    features = phi.query(x)
    assert features.values.shape == (*lead, *batch, 4, columns)
    assert features.log_scale.shape == (*lead, *batch, 4, 1)
    assert phi.key(y).values.shape == (*batch, 2, columns)
    assert phi.estimate(x, y).shape == (*lead, *batch, 4, 2)
    assert phi.relative_variance(x, y).shape == (*lead, *batch, 4, 2)
    assert phi.relative_covariance(x, y).shape == (*lead, *batch, 4, 2, 2)
    queries, keys, _ = phi.exponents(x, y)
    assert queries.shape == x.shape
    assert queries.dtype == keys.dtype == torch.complex128
    # s^T s = (A x)^2 + (A^-T y)^2 + 2 x.y whatever A
    cross = (queries @ keys.mT).broadcast_to(*lead, *batch, 4, 2)
    assert torch.allclose(cross, (x @ y.mT).to(cross.dtype), rtol=1e-8, atol=1e-8)


# -- saving and moving --------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_round_trips(form: str, generator) -> None:
    phi = made(matrix_of(form, generator, 3))
    other = made(matrix_of(form, generator, 3), seed=1)
    x = normals(generator, 4, 3)
    assert not torch.equal(other.estimate(x, x), phi.estimate(x, x))
    other.load_state_dict(phi.state_dict())
    for twin in (other, copy.deepcopy(phi), pickle.loads(pickle.dumps(phi))):
        assert torch.equal(twin.estimate(x, x), phi.estimate(x, x))
        assert torch.equal(twin.matrix, phi.matrix)
        assert torch.equal(twin.relative_variance(x, x), phi.relative_variance(x, x))


@pytest.mark.parametrize("form", FORMS)
def test_casting_a_model_leaves_the_matrix_alone(form: str, generator) -> None:
    phi = made(matrix_of(form, generator, 3))
    before, x = phi.matrix.clone(), normals(generator, 4, 3)
    estimate = phi.estimate(x, x)
    moves: list[Callable[[torch.nn.Module], object]] = [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.float(),
        lambda m: m.to("cpu"),
    ]
    model = torch.nn.Sequential(phi)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for move in moves:
            move(model)
            assert torch.equal(phi.matrix, before)
            assert phi.matrix.dtype == (torch.complex128 if "complex" in form else torch.float64)
            assert torch.equal(phi.estimate(x, x), estimate)


def test_the_matrix_is_a_copy(generator) -> None:
    matrix = matrix_of("complex dense", generator, 3)
    phi = made(matrix)
    kept = matrix.clone()
    matrix.zero_()
    assert torch.equal(phi.matrix, kept)
    identity = (phi.matrix @ phi.inverse_transpose.mT).real
    assert torch.allclose(identity, torch.eye(3).double(), atol=1e-12)


def test_the_representation_says_what_it_is(generator) -> None:
    assert "complex diagonal matrix, IID()" in repr(made(torch.tensor([1j, 2.0, 3.0])))
    assert "real dense matrix" in repr(made(torch.eye(3)))


# -- refusals -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.zeros(3), ValueError, "singular"),
        (torch.tensor([1.0, 0.0, 2.0]), ValueError, "singular"),
        (torch.tensor([1.0, 1e-320, 2.0]).double(), ValueError, "singular"),
        (torch.ones(3, 3), ValueError, "singular"),
        (torch.ones(3, 3) + 1e-14 * torch.eye(3).double() ** 2, ValueError, "singular"),
        (torch.ones(3, 3) * 1j, ValueError, "singular"),
        (torch.ones(3, 2), ValueError, r"expected \[\*batch_shape, d, d\] = \[3, 3\]"),
        (torch.ones(2), ValueError, "shape .2.; expected"),
        (torch.ones(2, 3, 3), ValueError, "shape .2, 3, 3.; expected"),
        (torch.tensor(2.0), ValueError, "shape ..; expected"),
        (torch.tensor([1.0, math.nan, 1.0]), ValueError, "1 NaN or infinite entries out of 3"),
        (torch.tensor([1.0, math.inf * 1j, 1.0]), ValueError, "NaN or infinite"),
        (torch.ones(3, dtype=torch.long), TypeError, "dtype torch.int64"),
        ([1.0, 1.0, 1.0], TypeError, "got list"),
    ],
)
def test_bad_matrices(matrix: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ComplexExponential(Request(dim=3, num_features=4), matrix)


def test_batch_shapes_that_do_not_fit() -> None:
    request = Request(dim=3, num_features=4, batch_shape=(2,))
    for shape in ((3,), (3, 3), (3, 3, 3)):
        with pytest.raises(ValueError, match=r"= \[2, 3, 3\] or the diagonal .* = \[2, 3\]"):
            ComplexExponential(request, torch.rand(*shape))
    assert ComplexExponential(request, torch.ones(1, 3)).diagonal
    assert not ComplexExponential(request, torch.eye(3).expand(2, 3, 3)).diagonal


def test_budgets_and_directions_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="multiple of 2 for a complex matrix"):
        ComplexExponential(Request(dim=2, num_features=3), torch.tensor([1j, 1.0]))
    assert ComplexExponential(Request(dim=2, num_features=3), torch.ones(2)).num_projections == 3
    request = Request(dim=2, num_features=4)
    with pytest.raises(ValueError, match="this map needs"):
        ComplexExponential(request, torch.ones(2), directions=Directions(request, 3))
    wide = Directions(request, 4, GaussianProposal(torch.zeros(2), 2 * torch.eye(2)))
    with pytest.raises(ValueError, match="standard normal ones"):
        ComplexExponential(request, torch.ones(2), directions=wide)
