"""The law of the directions: what is exact per draw, what holds on average, what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.projections import (
    IID,
    PROJECTIONS,
    Antithetic,
    Hadamard,
    Orthogonal,
    Simplex,
    Sobol,
    haar_orthogonal,
    projection_from_name,
)
from bochner.projections.hadamard import hadamard_transform
from bochner.projections.orthogonal import haar_frame
from bochner.projections.simplex import simplex_directions
from bochner.validation import UnknownNameError
from tests.naive import hyp0f1, hyp1f1, mean_is

ALL = pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=PROJECTIONS.keys())
EXACT = [p for p in PROJECTIONS.values() if p.unbiased and "Sobol" not in repr(p)]


def single(omega: Tensor, z: Tensor) -> Tensor:
    """Positive features of one projection each, relative to the kernel: exp(w.z - |z|^2/2)."""
    return torch.exp(omega @ z - 0.5 * z.square().sum())


def ones(dim: int, norm: float) -> Tensor:
    return torch.full((dim,), norm / dim**0.5, dtype=torch.float64)


# -- shapes, seeds, errors --------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(PROJECTIONS)),
    half=st.integers(1, 9),
    dim=st.integers(1, 9),
    batch=st.lists(st.integers(1, 3), max_size=2),
)
def test_shape_and_seed(name: str, half: int, dim: int, batch: list[int]) -> None:
    def draw(seed: int) -> Tensor:
        return PROJECTIONS[name].draw(
            2 * half,
            dim,
            generator=torch.Generator().manual_seed(seed),
            batch_shape=tuple(batch),
        )

    omega = draw(0)
    assert omega.shape == (*batch, 2 * half, dim)
    assert omega.dtype == torch.float64
    assert bool(torch.isfinite(omega).all())
    assert torch.equal(omega, draw(0))
    assert not torch.equal(omega, draw(1))


@ALL
def test_the_global_generator_is_left_alone(projection, generator) -> None:
    before = torch.get_rng_state()
    projection.draw(4, 3, generator=generator)
    assert torch.equal(before, torch.get_rng_state())


@ALL
def test_batch_elements_are_different_draws(projection, generator) -> None:
    omega = projection.draw(4, 3, generator=generator, batch_shape=(5,))
    assert all(not torch.equal(omega[i], omega[j]) for i in range(5) for j in range(i + 1, 5))


@ALL
def test_counts_and_generators_are_checked(projection, generator) -> None:
    for bad in (0, -2, 2.0, True):
        with pytest.raises(ValueError, match="integer of at least 1"):
            projection.draw(bad, 3, generator=generator)
        with pytest.raises(ValueError, match="integer of at least 1"):
            projection.draw(2, bad, generator=generator)
    with pytest.raises(TypeError, match="manual_seed"):
        projection.draw(2, 3, generator=0)


def test_antithetic_refuses_odd_counts_and_pairs_of_pairs(generator) -> None:
    with pytest.raises(ValueError, match="use 2 or 4"):
        Antithetic(IID()).draw(3, 2, generator=generator)
    with pytest.raises(ValueError, match="antithetic already"):
        Antithetic(Antithetic(IID()))
    with pytest.raises(TypeError, match="must be a Projection"):
        Antithetic("iid")  # type: ignore[arg-type]


def test_sobol_refuses_dimensions_without_direction_numbers(generator) -> None:
    with pytest.raises(ValueError, match="21201"):
        Sobol().draw(1, 21_202, generator=generator)


def test_names() -> None:
    for name, projection in PROJECTIONS.items():
        assert projection_from_name(name) == projection
        assert projection_from_name(projection) is projection
    with pytest.raises(UnknownNameError, match="did you mean 'orthogonal'"):
        projection_from_name("ortogonal")


# -- exact in every draw ----------------------------------------------------------------------------
def cosines(omega: Tensor, dim: int) -> list[Tensor]:
    """Gram matrices of the directions, block by block of `dim` rows."""
    unit = omega / omega.norm(dim=-1, keepdim=True)
    return [block @ block.mT for block in unit.split(dim, dim=-2)]


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 8, 11, 24])
@pytest.mark.parametrize("projection", [Orthogonal(), Simplex()], ids=repr)
def test_the_angle_inside_a_block_is_the_declared_one(projection, dim, rows, generator) -> None:
    omega = projection.draw(rows, dim, generator=generator)
    coupling = projection.coupling(rows, dim)
    for gram in cosines(omega, dim):
        off = gram[~torch.eye(len(gram), dtype=torch.bool)]
        assert torch.allclose(off, torch.full_like(off, coupling.cosine), atol=1e-12)
    pairs = sum(i != j and i // dim == j // dim for i in range(rows) for j in range(rows))
    assert coupling.share == pairs / rows**2


def test_the_coupling_of_whole_blocks_is_the_formula_of_the_notes() -> None:
    # (1 - 1/m) for one block, (d - 1)/m for several: docs/theory.md 2
    assert Orthogonal().coupling(8, 8).share == pytest.approx(1 - 1 / 8)
    assert Orthogonal().coupling(24, 8).share == pytest.approx(7 / 24)
    assert IID().coupling(24, 8).share == 0
    assert Hadamard().coupling(8, 8) is None
    assert Sobol().coupling(8, 8) is None


def test_antithetic_rows_are_pairs(generator) -> None:
    for base in (IID(), Orthogonal(), Sobol()):
        omega = Antithetic(base).draw(10, 3, generator=generator, batch_shape=(2,))
        assert torch.equal(omega[:, :5], -omega[:, 5:])


@pytest.mark.parametrize("dim", [1, 2, 3, 17])
def test_simplex_directions(dim: int) -> None:
    gram = simplex_directions(dim) @ simplex_directions(dim).T
    expected = torch.full((dim, dim), -1 / (dim - 1) if dim > 1 else 1.0, dtype=torch.float64)
    expected.fill_diagonal_(1.0)
    assert torch.allclose(gram, expected, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_hadamard_transform_against_the_matrix(size: int, generator) -> None:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    x = torch.randn(5, size, generator=generator, dtype=torch.float64)
    assert torch.allclose(hadamard_transform(x), x @ matrix / size**0.5, atol=1e-12)


def test_hadamard_rows_are_orthogonal_for_powers_of_two(generator) -> None:
    omega = Hadamard().draw(20, 8, generator=generator, batch_shape=(4,))
    for gram in cosines(omega, 8):
        assert torch.allclose(gram, torch.eye(gram.shape[-1], dtype=gram.dtype), atol=1e-12)


# -- on average -------------------------------------------------------------------------------------
@ALL
def test_rows_have_mean_zero_and_covariance_one(projection, generator) -> None:
    # sees 5 % of a variance, 0.05 of a mean or covariance; 0F1-free: holds for Hadamard too
    slow = "Sobol" in repr(projection)
    rows, dim, replicates = (256, 3, 1_000) if slow else (4, 3, 60_000)
    omega = projection.draw(rows, dim, generator=generator, batch_shape=(replicates,))
    mean, second = omega.mean(-2), omega.mT @ omega / rows
    for i in range(dim):
        mean_is(1 + mean[:, i], 1.0, see=0.05)
        for j in range(i + 1):
            mean_is(second[:, i, j] + (i != j), 1.0, see=0.05)


@pytest.mark.parametrize("projection", [Orthogonal(), Simplex()], ids=repr)
def test_every_single_row_is_unbiased_in_the_all_ones_direction(projection, generator) -> None:
    # the Haar sign fix, row by row; sees a bias of 5 %, where the missing fix costs 33 %
    omega = projection.draw(8, 8, generator=generator, batch_shape=(100_000,))
    estimates = single(omega, ones(8, 1.1))
    for row in range(8):
        mean_is(estimates[:, row], 1.0, see=0.05)


def test_the_bias_without_the_sign_fix(generator) -> None:
    # Householder's R_11 = -sign(a_11)|a_1|, so q_11 < 0 always and row 1 is Gaussian with its first
    # coordinate's sign forced: E exp(w.z - |z|^2/2) = 2 Phi(-z_1). Later rows lean the same way.
    normals = torch.randn(100_000, 8, 8, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(normals).Q
    assert bool((q[:, 0, 0] < 0).all())
    norms = torch.randn(100_000, 8, 8, generator=generator, dtype=torch.float64).norm(dim=-1)
    z = ones(8, 1.1)
    estimates = single(q * norms.unsqueeze(-1), z)
    mean_is(estimates[:, 0], math.erfc(float(z[0]) / 2**0.5), see=0.05)
    assert -0.26 < float(estimates.mean()) - 1 < -0.14


def test_haar_matrices_are_invariant_under_rotation(generator) -> None:
    # E q_ij^4 = 3 / (d (d + 2)) and E q_ij = 0 for every entry; sees 4 % and 0.03
    q = haar_orthogonal((60_000,), 4, generator)
    mean_is(q[:, 0, 0].pow(4), 3 / 24, see=0.06)
    mean_is(q[:, 3, 1].pow(4), 3 / 24, see=0.06)
    for i in range(4):
        mean_is(1 + q[:, i, i], 1.0, see=0.03)


@pytest.mark.parametrize("dim", [3, 5, 16])
def test_fixed_norms_are_biased_by_the_printed_formula(dim: int, generator) -> None:
    # 5.5: E exp(w.z) / K = 0F1(; d/2; d phi/4) / e^{phi/2} for |w| = sqrt(d); sees 2 %
    phi = 1.44
    normals = torch.randn(400_000, dim, generator=generator, dtype=torch.float64)
    omega = dim**0.5 * torch.nn.functional.normalize(normals, dim=-1)
    z = ones(dim, phi**0.5)
    estimates = 0.5 * (single(omega, z) + single(-omega, z))
    truth = hyp0f1(dim / 2, dim * phi / 4) / math.exp(phi / 2)
    mean_is(estimates, truth, see=0.02)
    assert truth == pytest.approx(math.exp(-(phi**2) / (4 * (dim + 2))), rel=0.03)


@pytest.mark.parametrize(("phi", "printed"), [(2, 0.986), (8, 0.810), (16, 0.471)])
def test_fixed_norm_bias_as_printed(phi: float, printed: float) -> None:
    assert hyp0f1(32, 16 * phi) / math.exp(phi / 2) == pytest.approx(printed, abs=5e-4)


def test_the_orthogonal_pair_is_the_one_of_the_formula(generator) -> None:
    # e^-phi 1F1(d; d/2; phi/2) over pairs in one block: 8 % below 1; sees 4 %
    dim, phi = 4, 1.0
    omega = Orthogonal().draw(dim, dim, generator=generator, batch_shape=(100_000,))
    f = single(omega, ones(dim, phi**0.5))
    pairs = (f.sum(-1).square() - f.square().sum(-1)) / (dim * (dim - 1))
    mean_is(pairs, math.exp(-phi) * hyp1f1(dim, dim / 2, phi / 2), see=0.04)


@pytest.mark.parametrize("projection", EXACT, ids=repr)
def test_rows_far_apart_are_independent(projection, generator) -> None:
    # row 0 and row d of a draw of 4 d rows are in different blocks and are no antithetic pair; sees 5 %
    dim = 3
    omega = projection.draw(4 * dim, dim, generator=generator, batch_shape=(100_000,))
    f = single(omega[:, [0, dim]], ones(dim, 0.8))
    mean_is(f[:, 0] * f[:, 1], 1.0, see=0.05)


# -- text: more columns than a d x d block has room for ---------------------------------------------
def test_few_directions_in_many_dimensions() -> None:
    """A whole block would be 80 GB."""
    omega = Orthogonal().draw(4, 100_000, generator=torch.Generator().manual_seed(0))
    unit = omega / omega.norm(dim=-1, keepdim=True)
    assert omega.shape == (4, 100_000)
    assert bool((unit @ unit.T - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-12)


def test_frames_are_as_the_rows_of_haar_matrices() -> None:
    """E q_ij = 0, E q_ij^2 = 1/d, E q_00^4 = 3/(d (d + 2)): five sigma and more, false alarms < 1e-6."""
    dim, count, draws = 5, 3, 40_000
    q = haar_frame((draws,), count, dim, torch.Generator().manual_seed(1))
    assert q.shape == (draws, count, dim)
    tolerance = 6.0 / draws**0.5
    assert float(q.mean(0).abs().max()) < tolerance / dim**0.5
    assert float((q.square().mean(0) * dim - 1.0).abs().max()) < 2.0 * tolerance
    assert float((q.pow(4).mean(0) * dim * (dim + 2) / 3.0 - 1.0).abs().max()) < 6.0 * tolerance
