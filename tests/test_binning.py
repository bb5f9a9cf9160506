"""Random binning against integers of unlimited size, its sparse form, its error and its edges."""

import math

import pytest
import torch

import bochner
from bochner.binning import RandomBinning
from bochner.kernels import Gaussian, Laplacian, SplineBinning
from bochner.request import Request
from tests.naive import mean_is, variance_is

KERNELS = [Laplacian(), SplineBinning(), SplineBinning(3)]
COLUMNS = [[78, 678, 734, 455, 561, 524], [766, 507, 614, 353, 706, 164]]
SIGNS = [[1, 1, 1, -1, 1, -1], [-1, 1, -1, -1, -1, -1]]
"""Of six grids, seed 0, with 1,024 buckets each; computed once."""


def binning(kernel, dim=3, grids=5, buckets=7, seed=0, **given) -> RandomBinning:
    generator = torch.Generator().manual_seed(seed)
    request = Request(
        dim=dim, num_features=grids * buckets, kernel=kernel, generator=generator, **given
    )
    return RandomBinning(request, buckets=buckets)


def splitmix(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
    return bits ^ (bits >> 31)


def bump(order: int, u: float) -> float:
    """The B-spline window of orders 1, 2, 3 by its pieces."""
    if order == 1:
        return 1.0
    if order == 2:
        return math.sqrt(3.0) * (1.0 - 2.0 * abs(u))
    x = 3.0 * abs(u)
    piece = 0.75 - x * x if x < 0.5 else 0.5 * (1.5 - x) ** 2
    return piece / math.sqrt(0.55 / 3.0)


def naive(phi: RandomBinning, point: list[float]) -> list[tuple[int, float]]:
    """(column, value) of every grid, by Python's integers."""
    found = []
    for r in range(phi.num_grids):
        bits, weight = int(phi.salts[r]), 1.0
        for axis, value in enumerate(point):
            position = value * float(phi.inverse_widths[r, axis]) - float(phi.offsets[r, axis])
            cell = math.floor(position + 0.5)
            bits += cell * int(phi.multipliers[r, axis])
            weight *= bump(phi.window.order, position - cell)
        bits = splitmix(bits % 2**64)
        column = r * phi.buckets + (bits >> 32) % 2**31 % phi.buckets
        found.append((column, (-1) ** (bits & 1) * weight / math.sqrt(phi.num_grids)))
    return found


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_against_a_loop(kernel, generator) -> None:
    phi = binning(kernel)
    x = 20.0 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    columns, values = phi.entries(x)
    dense = phi.query(x).materialise()
    for i, point in enumerate(x.tolist()):
        expected = naive(phi, point)
        assert columns[i].tolist() == [c for c, _ in expected]
        assert values[i].tolist() == pytest.approx([v for _, v in expected], abs=1e-12)
        row = torch.zeros(phi.num_features, dtype=torch.float64)
        for column, value in expected:
            row[column] = value
        assert torch.allclose(dense[i], row, atol=1e-12)


def test_one_seed_is_one_map_on_every_machine() -> None:
    phi = binning(Laplacian(), dim=2, grids=6, buckets=1024)
    x = torch.tensor([[0.25, -3.0], [1e9, 7.5]], dtype=torch.float64)
    columns, values = phi.entries(x)
    assert (columns - 1024 * torch.arange(6)).tolist() == COLUMNS
    assert (values * 6**0.5).round().long().tolist() == SIGNS


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_rows_are_the_dense_ones(kernel, dtype, generator, monkeypatch) -> None:
    phi = binning(kernel, grids=9, buckets=50)
    x = torch.randn(40, 3, generator=generator, dtype=dtype)
    whole = phi.sparse_features(x)
    assert whole.dtype == (x.numpy()).dtype
    assert whole.nnz == 40 * 9
    assert whole.has_canonical_format
    assert torch.equal(torch.from_numpy(whole.toarray()), phi.query(x).materialise())
    monkeypatch.setattr("bochner.binning._BLOCK", 70)  # blocks of 7 points
    assert (phi.sparse_features(x) != whole).nnz == 0
    heads = binning(kernel, batch_shape=(2,))
    columns, values = heads.entries(x)
    assert columns.shape == values.shape == (2, 40, 5)
    for message in ("batch_shape", "Use `entries`"):
        with pytest.raises(ValueError, match=message):
            heads.sparse_features(x)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("buckets", [1, 3])
def test_unbiased_whatever_collides(kernel, buckets) -> None:
    """Few columns, one of them even: points far apart must still give 0 on average."""
    draws = 40_000
    phi = binning(kernel, dim=2, grids=3, buckets=buckets, seed=1, batch_shape=(draws,))
    x = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.4, -0.5], [30.0, 45.0]], dtype=torch.float64)
    near, far = phi.estimate(x, y)[:, 0].unbind(-1)
    mean_is(near, float(kernel(x, y[:1])), see=0.15)
    mean_is(1.0 + far, 1.0, see=0.1)  # K < 1e-13
    assert float(far.std()) > 0.1, "without collisions this test shows nothing"
    if isinstance(kernel, Laplacian):
        truth = float(phi.relative_variance(x, y[:1])) * float(kernel(x, y[:1])) ** 2
        variance_is(near, truth, see=0.1)


def test_gradients_of_windows_and_none_of_steps(generator) -> None:
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    phi = binning(SplineBinning(), grids=20)
    y = x.detach() + 0.1
    assert torch.autograd.gradcheck(lambda p: phi.estimate(p, y), x, eps=1e-7, atol=1e-5)
    steps = binning(Laplacian(), grids=20).estimate(x, y)
    assert not steps.requires_grad


def test_positions_are_found_in_float64(generator) -> None:
    """float32 positions would lose the cell of points far from the origin."""
    phi = binning(Laplacian(), dim=1, grids=200, buckets=64)
    x = (1e6 + torch.rand(50, 1, generator=generator)).float()
    near, far = phi.entries(x), phi.entries(x.double())
    assert torch.equal(near[0], far[0])
    assert near[1].dtype == torch.float32


@pytest.mark.parametrize("size", [1e17, 1e30, -1e150])
def test_cells_that_cannot_be_counted_are_refused(size) -> None:
    phi = binning(SplineBinning(), dim=1)
    x = torch.tensor([[0.0], [size]], dtype=torch.float64)
    for use in (phi.query, phi.entries, phi.sparse_features):
        with pytest.raises(ValueError, match="bins from the origin; random binning can tell cells"):
            use(x)
    with pytest.raises(ValueError, match="NaN"):
        phi.entries(torch.full((1, 1), torch.nan))


def test_requests() -> None:
    with pytest.raises(ValueError, match="must be a multiple of 16"):
        bochner.make("random-binning", dim=2, num_features=40)
    with pytest.raises(TypeError, match="Gaussian\\(\\) is not the kernel of any random binning"):
        binning(Gaussian())
    with pytest.raises(ValueError, match="buckets=0"):
        RandomBinning(Request(dim=1, num_features=4, kernel=Laplacian()), buckets=0)
    phi = bochner.make("random-binning", dim=2, num_features=64, kernel=SplineBinning(3))
    assert phi.num_grids == phi.num_projections == 4
    assert "grids=4, buckets=16" in repr(phi)
