"""Gaussian switches: lambda = exp(-|Qx - Ry|^2 / 2 l^2), and its moments."""

import math
from dataclasses import replace

import pytest
import torch

from bochner.projections import IID, Orthogonal
from bochner.request import Request
from bochner.switches import Complement, Damped, GaussianSwitch
from tests.naive import covariance_is, mean_is, variance_is

REPLICATES = 40_000


def request(generator: torch.Generator, **changes: object) -> Request:
    plain = Request(dim=3, num_features=1, generator=generator, dtype=torch.float64)
    return replace(plain, **changes)


@pytest.mark.parametrize("projection", [IID(), Orthogonal()])
@pytest.mark.parametrize("images", [False, True])
def test_moments(generator, projection, images) -> None:
    matrices = {}
    if images:
        q, r = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
        matrices = {"query_matrix": q, "key_matrix": r}
    replicated = request(generator, batch_shape=(REPLICATES,), projection=projection)
    switch = GaussianSwitch(replicated, 1.3, num_frequencies=2, **matrices)
    x, y = (0.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (1, 2))
    found, mean = switch.estimate(x, y), switch.mean(x, y)
    moved = (x @ matrices["query_matrix"].T, y @ matrices["key_matrix"].T) if images else (x, y)
    truth = torch.exp(-torch.cdist(*moved).square() / (2 * 1.3**2))
    assert torch.allclose(mean, truth, rtol=1e-12)
    variance = switch.variance(x, y).reshape(-1, 1, 2)[0]
    for j in range(2):
        mean_is(found[:, 0, j] / mean[0, j], 1.0, see=0.05)
        variance_is(found[:, 0, j], float(variance[0, j]), see=0.2)
    covariance = switch.covariance_with(switch, x, y, grid=True)
    if isinstance(projection, IID):
        assert torch.allclose(variance, (1 - truth.square()).square() / 4, rtol=1e-9)
        covariance_is(found[:, 0, 0], found[:, 0, 1], float(covariance[0, 0, 1]), see=0.1)


def test_far_apart_the_variance_stays_that_of_a_cosine(generator) -> None:
    switch = GaussianSwitch(request(generator), num_frequencies=5)
    x = torch.tensor([[100.0, 0.0, 0.0]], dtype=torch.float64)
    assert float(switch.variance(x, -x)) == pytest.approx(0.1, rel=1e-12)
    assert float(switch.mean(x, -x)) == 0.0
    assert float(switch.covariance_with(switch, x, -x, grid=True)) == pytest.approx(0.1, rel=1e-9)


def test_complements_and_damped_switches(generator) -> None:
    a, b = (GaussianSwitch(request(generator), num_frequencies=3) for _ in range(2))
    x, y = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    half = Damped(torch.tensor(0.5), a)
    assert torch.allclose(half.estimate(x, y), 0.5 * a.estimate(x, y), atol=1e-14)
    rest = Complement(half, b)
    assert rest.num_features == 1 + 6 + 6
    assert torch.allclose(
        rest.estimate(x, y), 1 - 0.5 * a.estimate(x, y) - b.estimate(x, y), atol=1e-12
    )
    assert torch.allclose(rest.mean(x, y), 1 - 0.5 * a.mean(x, y) - b.mean(x, y), atol=1e-14)
    for grid in (False, True):
        va, vb = (s.covariance_with(s, x, y, grid=grid) for s in (a, b))
        assert torch.allclose(rest.covariance_with(rest, x, y, grid=grid), 0.25 * va + vb)
        assert torch.allclose(rest.covariance_with(half, x, y, grid=grid), -0.25 * va)
        assert torch.allclose(half.covariance_with(rest, x, y, grid=grid), -0.25 * va)
        assert not half.covariance_with(b, x, y, grid=grid).any()
    rest.resample_(generator)
    assert torch.allclose(
        rest.estimate(x, y), 1 - 0.5 * a.estimate(x, y) - b.estimate(x, y), atol=1e-12
    )


def test_what_is_refused(generator) -> None:
    r = request(generator)
    for length in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="lengthscale="):
            GaussianSwitch(r, length)
    with pytest.raises(ValueError, match="both, or neither"):
        GaussianSwitch(r, query_matrix=torch.eye(3))
    with pytest.raises(ValueError, match="key_matrix has shape"):
        GaussianSwitch(r, query_matrix=torch.eye(3), key_matrix=torch.eye(2))
    with pytest.raises(ValueError, match="rows"):
        GaussianSwitch(r, query_matrix=torch.eye(3), key_matrix=torch.ones(2, 3))
    with pytest.raises(ValueError, match="share="):
        Damped(torch.tensor(1.5), GaussianSwitch(r))
    with pytest.raises(ValueError, match="no switch"):
        Complement()
    other = GaussianSwitch(request(generator, dim=2))
    with pytest.raises(ValueError, match="dimensions"):
        Complement(GaussianSwitch(r), other)
    wider = [GaussianSwitch(request(generator, batch_shape=(size,))) for size in (2, 3)]
    with pytest.raises(ValueError, match="batch shapes"):
        Complement(*wider)
    with pytest.raises(ValueError, match="share has shape"):
        Damped(torch.full((3,), 0.5), GaussianSwitch(r))


@pytest.mark.parametrize(
    ("matrix", "error", "match"),
    [
        (torch.tensor(1.0), ValueError, "has shape"),
        (torch.ones(3), ValueError, "has shape"),
        (torch.ones(5, 3, 3), ValueError, "has shape"),
        (torch.full((3, 3), math.nan), ValueError, "NaN"),
        (torch.eye(3) * 1j, TypeError, "dtype"),
    ],
)
def test_matrices_that_do_not_fit(generator, matrix, error, match) -> None:
    for given in ((matrix, torch.eye(3)), (torch.eye(3), matrix)):
        with pytest.raises(error, match=match):
            GaussianSwitch(request(generator), query_matrix=given[0], key_matrix=given[1])
