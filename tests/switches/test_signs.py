"""Sign switches: layouts agree, moments are those of hyperplanes, and nothing else is accepted."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bochner.projections import IID, Antithetic, Orthogonal
from bochner.request import Request
from bochner.switches import BucketedSignSwitch, Complement, SignSwitch
from bochner.switches.signs import angle_share
from tests.naive import covariance_is, mean_is, variance_is

REPLICATES = 40_000
TABLES = ((0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0), (0.1, 0.5, 0.9))


def request(generator: torch.Generator, dim: int = 3, **changes: object) -> Request:
    plain = Request(dim=dim, num_features=1, generator=generator, dtype=torch.float64)
    return replace(plain, **changes)


def plane(*angles: float, dim: int = 3) -> Tensor:
    """Unit vectors at angles of a plane."""
    found = torch.zeros(len(angles), dim, dtype=torch.float64)
    for row, angle in enumerate(angles):
        found[row, 0], found[row, 1] = math.cos(angle), math.sin(angle)
    return found


def votes(switch: SignSwitch, x: Tensor, y: Tensor) -> Tensor:
    """The weight straight from its definition: bits counted by a loop over groups."""
    total = torch.zeros(len(x), len(y), dtype=torch.float64)
    rows = switch.directions.omega.reshape(switch.num_groups, switch.bits, -1)
    for i, j in itertools.product(range(len(x)), range(len(y))):
        for group in rows:
            differ = sum(float(t @ x[i] >= 0) != float(t @ y[j] >= 0) for t in group)
            total[i, j] += switch.table[differ] / switch.num_groups
    return total


# -- features ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("layout", [SignSwitch, BucketedSignSwitch])
@pytest.mark.parametrize("groups", [1, 3])
def test_both_layouts_are_the_vote_itself(generator, table, layout, groups) -> None:
    switch = layout(request(generator), table, groups)
    x, y = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    x[0], y[0], y[1] = 0.0, x[1], -x[2]
    for found, truth in (
        (switch.estimate(x, y), votes(switch, x, y)),
        (switch.complement().estimate(x, y), 1.0 - votes(switch, x, y)),
        (Complement(switch).estimate(x, y), 1.0 - votes(switch, x, y)),
    ):
        assert torch.allclose(found, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "dense", "bucketed"),
    [
        (lambda kind, r: kind.angular(r, 4), 1 + 4, 4 * 2),
        (lambda kind, r: kind.agreement(r, 2, 3), 1 + 3 * 3, 3 * 4),
        (lambda kind, r: kind.majority(r, 2), 1 + 2 * 4, 2 * 8),
    ],
)
def test_columns(generator, make, dense, bucketed) -> None:
    x = torch.randn(2, 3, generator=generator)
    for kind, columns in ((SignSwitch, dense), (BucketedSignSwitch, bucketed)):
        switch = make(kind, request(generator))
        assert switch.num_features == columns
        assert switch.query(x).num_features == switch.key(x).num_features == columns


def test_the_angular_layout_is_the_published_matrix(generator) -> None:
    # q: [1, sgn(tau.x)/sqrt n]/sqrt 2, k the same with a sign: 1/2 - (1/2n) sum sgn sgn
    switch = SignSwitch.angular(request(generator), 5)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    signs = torch.sign(x @ switch.directions.omega.T)
    assert torch.allclose(switch.estimate(x, x), 0.5 - signs @ signs.T / 10, atol=1e-15)
    assert torch.allclose(switch.key(x).materialise()[:, 1:], signs / math.sqrt(10), atol=1e-15)


# -- moments -------------------------------------------------------------------------------------------
@given(st.floats(0, 2 * math.pi), st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
def test_the_angle_keeps_its_digits(angle: float, size: float, other: float) -> None:
    expected = min(angle, 2 * math.pi - angle) / math.pi
    found = float(angle_share(size * plane(0.0), other * plane(angle)))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_angle_at_its_ends() -> None:
    x = torch.tensor([[0.3, -1.7, 2.2]], dtype=torch.float64)
    zero = torch.zeros_like(x)
    assert float(angle_share(x, x)) == 0.0
    assert float(angle_share(x, -x)) == 1.0
    assert float(angle_share(x, zero)) == 0.5
    assert float(angle_share(zero, zero)) == 0.0
    small = torch.tensor([[0.3, -1.7, 2.2 + 1e-12]], dtype=torch.float64)
    assert 0 < float(angle_share(x, small)) < 1e-12


@pytest.mark.parametrize("table", TABLES)
def test_mean_variance_and_covariance(generator, table) -> None:
    replicated = request(generator, batch_shape=(REPLICATES,), projection=IID())
    switch = SignSwitch(replicated, table, 2)
    x, y = plane(0.2), 2.0 * plane(1.0, 2.2)
    found = switch.estimate(x, y)
    mean = switch.mean(x, y)
    variance = switch.variance(x, y)
    covariance = switch.covariance_with(switch, x, y, grid=True)
    for j in range(2):
        mean_is(found[:, 0, j] / mean[0, j], 1.0, see=0.2)
        variance_is(found[:, 0, j], float(variance[0, j]), see=0.2)
    covariance_is(found[:, 0, 0], found[:, 0, 1], float(covariance[0, 0, 1]), see=0.05)
    assert torch.allclose(covariance.diagonal(dim1=-2, dim2=-1), variance, atol=1e-15)


@pytest.mark.parametrize(
    ("make", "mean"),
    [
        (lambda r: SignSwitch.angular(r, 7), lambda lam: lam),
        (lambda r: SignSwitch.agreement(r, 3, 7), lambda lam: lam**3),
        (lambda r: SignSwitch.majority(r, 7), lambda lam: 3 * lam**2 * (1 - lam) + lam**3),
    ],
)
def test_the_weights_are_the_stated_functions_of_the_angle(generator, make, mean) -> None:
    switch = make(request(generator))
    angles = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    lam = mean(angles / math.pi)
    x, y = plane(0.0), plane(*angles.tolist())
    assert torch.allclose(switch.mean(x, y)[0], lam, rtol=1e-12, atol=1e-14)
    assert torch.allclose(switch.variance(x, y)[0], lam * (1 - lam) / 7, rtol=1e-10, atol=1e-15)
    rest = switch.complement()
    assert torch.allclose(rest.mean(x, y), 1 - switch.mean(x, y), atol=1e-15)
    both = switch.covariance_with(rest, x, y, grid=False)
    assert torch.allclose(both, -switch.variance(x, y), atol=1e-15)
    assert torch.allclose(Complement(switch).covariance_with(rest, x, y, grid=False), -both)


@pytest.mark.parametrize(("num_signs", "ratio"), [(4, 0.92), (8, 0.81), (16, 0.61)])
def test_orthogonal_hyperplanes_vary_less_and_have_no_closed_form(
    generator, num_signs, ratio
) -> None:
    replicated = request(
        generator, 16, batch_shape=(REPLICATES,), projection=Orthogonal(), dtype=torch.float32
    )
    switch = SignSwitch.angular(replicated, num_signs)
    x, y = plane(0.0, dim=16), plane(2.0, dim=16)
    found = switch.estimate(x, y)[:, 0, 0].double()
    share = 2.0 / math.pi
    mean_is(found / share, 1.0, see=0.05)
    variance_is(found, ratio * share * (1 - share) / num_signs, see=0.15)
    assert switch.variance(x, y) is None
    assert SignSwitch.angular(replicated, 1).variance(x, y) is not None  # one has no partner


def test_groups_of_several_bits_are_drawn_independently(generator) -> None:
    orthogonal = request(generator, projection=Antithetic(Orthogonal()))
    assert SignSwitch.angular(orthogonal, 2).directions.projection == Orthogonal()
    assert SignSwitch.majority(orthogonal).directions.projection == IID()


# -- the rest ------------------------------------------------------------------------------------------
def test_resample_and_complements_stay_together(generator) -> None:
    switch = SignSwitch.angular(request(generator), 4)
    rest = switch.complement()
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    before = switch.estimate(x, -0.5 * x.flip(0))
    switch.resample_(generator)
    after = switch.estimate(x, -0.5 * x.flip(0))
    assert not torch.equal(before, after)
    assert torch.allclose(rest.estimate(x, -0.5 * x.flip(0)), 1 - after, atol=1e-15)


@pytest.mark.parametrize("table", [(), (1.0,), (0.0, 1.5), (-0.1, 1.0), (0.0, math.nan)])
def test_bad_tables(generator, table) -> None:
    with pytest.raises(ValueError, match="table="):
        SignSwitch(request(generator), table, 1)


def test_bad_counts(generator) -> None:
    with pytest.raises(ValueError, match="num_groups"):
        SignSwitch.angular(request(generator), 0)
    with pytest.raises(ValueError, match="bits"):
        SignSwitch.agreement(request(generator), 0)
