"""Which proposal (docs/theory.md 4 to 6): optima found numerically, identities, existence.

Each is stated in its printed form, in naive float64, and compared with what the library computes.
"""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from bochner.balanced import balanced_coordinates
from bochner.catalog import make
from bochner.feature_maps.data_aware_absolute import absolute_proposal
from bochner.nonlinearities import Positive
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request
from bochner.statistics import AttentionMoments, Moments
from bochner.transformed import TransformedFeatures
from bochner.transforms import Centring
from tests.formula_points import DIM, calibration, normals, spd


# -- sections 4 to 6 ----------------------------------------------------------------------------------
def gaussian_moments(generator, dim: int, size: float) -> Moments:
    return Moments(
        torch.zeros(dim).double(),
        torch.zeros(dim).double(),
        spd(generator, dim, size),
        spd(generator, dim, size),
    )


def expected_second_moment(
    moments: Moments, covariance: Tensor, mean: Tensor, *, relative: bool
) -> float:
    """E_{q,k}[c Z^2] by quadrature over w from the definition: int p^2/psi E phi(q)^2 E phi(k)^2 dw.

    c = 1, or K^-2 = exp(-2 q.k) (relative), for which q and k do not separate: then the printed
    per-pair form prod c(rho) e^{rho (s - mean)^2} is averaged in closed form over s ~ N(0, Lq + Lk).
    """
    grid = torch.linspace(-14, 14, 281, dtype=torch.float64)
    w = torch.cartesian_prod(grid, grid)
    cell = float(grid[1] - grid[0]) ** 2

    def log_normal(centre: Tensor, cov: Tensor) -> Tensor:
        v = w - centre
        quadratic = (v @ torch.linalg.inv(cov) * v).sum(-1)
        return -0.5 * quadratic - 0.5 * torch.logdet(2 * math.pi * cov)

    eye = torch.eye(2, dtype=torch.float64)
    log_p, log_psi = log_normal(torch.zeros(2).double(), eye), log_normal(mean, covariance)
    if relative:
        # exp(2 w.s - |s|^2) over s ~ N(0, Lq + Lk)
        both = [moments.query_covariance + moments.key_covariance]
    else:
        both = [moments.query_covariance, moments.key_covariance]
    log_f = torch.zeros(len(w), dtype=torch.float64)
    for cov in both:
        inner = torch.linalg.inv(eye + 2 * cov)
        log_f += 2 * (w @ (cov @ inner) * w).sum(-1) - 0.5 * torch.logdet(eye + 2 * cov)
    return cell * float(torch.exp(2 * log_p - log_psi + log_f).sum())


def minimum(moments: Moments, *, relative: bool) -> tuple[Tensor, float]:
    """The best Gaussian proposal of mean zero, found numerically."""

    def covariance(theta: np.ndarray) -> Tensor:
        lower = torch.tensor([[theta[0], 0.0], [theta[1], theta[2]]], dtype=torch.float64)
        lower = lower.tril(-1) + torch.diag(lower.diagonal().exp())
        return lower @ lower.T

    def objective(theta: np.ndarray) -> float:
        value = expected_second_moment(
            moments, covariance(theta), torch.zeros(2).double(), relative=relative
        )
        return math.log(value)

    found = scipy.optimize.minimize(
        objective, [0.2, 0.0, 0.2], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-10}
    )
    return covariance(found.x), found.fun


def test_absolute_proposal_is_the_numerical_optimum(generator) -> None:
    # (a): S^-1 = (I+2Lq)^-1 + (I+2Lk)^-1 - I, unlike and non-commuting covariances
    moments = gaussian_moments(generator, 2, 0.2)
    best, value = minimum(moments, relative=False)
    proposal, clipped = absolute_proposal(moments)
    assert int(clipped) == 0
    assert torch.allclose(proposal.covariance, best, rtol=5e-3, atol=5e-3)
    zero = torch.zeros(2).double()
    found = expected_second_moment(moments, proposal.covariance, zero, relative=False)
    assert math.log(found) <= value + 1e-9
    for _ in range(30):
        step = 0.05 * normals(generator, 2, 2)
        moved = proposal.covariance + step + step.T
        worse = expected_second_moment(moments, moved, zero, relative=False)
        shifted = expected_second_moment(
            moments, proposal.covariance, 0.1 * normals(generator, 2), relative=False
        )
        assert worse > found
        assert shifted > found


def test_theorem_3_2_is_the_equal_case(generator) -> None:
    covariance = spd(generator, 3, 0.15)
    eye = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(3).double()
    proposal, _ = absolute_proposal(Moments(zero, zero, covariance, covariance))
    printed = (eye + 2 * covariance) @ torch.linalg.inv(eye - 2 * covariance)
    assert torch.allclose(proposal.covariance, printed, rtol=1e-9)


@pytest.mark.parametrize(("eigenvalue", "exists"), [(0.49, True), (0.51, False)])
def test_the_absolute_optimum_exists_iff_eigenvalues_are_below_one_half(
    eigenvalue: float, exists: bool
) -> None:
    covariance = torch.diag(torch.tensor([0.1, eigenvalue], dtype=torch.float64))
    moments = Moments(torch.zeros(2).double(), torch.zeros(2).double(), covariance, covariance)
    if exists:
        absolute_proposal(moments)
        return
    with pytest.raises(ValueError, match="does not exist"):
        absolute_proposal(moments)
    proposal, clipped = absolute_proposal(moments, clip=1 / 19)
    assert int(clipped) == 1
    assert float(proposal.variances.max()) == pytest.approx(19.0)


@pytest.mark.parametrize("eigenvalue", [0.16, 0.175])
def test_isotropic_sampling_has_infinite_variance_from_one_sixth(eigenvalue: float) -> None:
    # 4 l/(1+2l) + 4 l/(1+2l) >= 1 iff l >= 1/6: the exponent of p^2/psi f f at psi = p
    precision = 1 - 2 * (4 * eigenvalue / (1 + 2 * eigenvalue))
    assert (precision > 0) == (eigenvalue < 1 / 6)
    cov = torch.diag(torch.tensor([eigenvalue, 0.01], dtype=torch.float64))
    moments = Moments(torch.zeros(2).double(), torch.zeros(2).double(), cov, cov)
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2).double()
    value = expected_second_moment(moments, eye, zero, relative=False)
    # on the finite grid of the quadrature, "infinite" is a number of the size of its edge
    assert (value < 20) == (eigenvalue < 1 / 6)


def test_relative_proposal_is_the_numerical_optimum(generator) -> None:
    # (b): S = I + 2 (Lq + Lk), second moment det(S)^{1/2}
    moments = gaussian_moments(generator, 2, 0.3)
    best, value = minimum(moments, relative=True)
    eye = torch.eye(2, dtype=torch.float64)
    printed = eye + 2 * (moments.query_covariance + moments.key_covariance)
    assert torch.allclose(best, printed, rtol=5e-3, atol=5e-3)
    found = expected_second_moment(moments, printed, torch.zeros(2).double(), relative=True)
    assert found == pytest.approx(float(torch.linalg.det(printed).sqrt()), rel=1e-6)
    assert math.log(found) <= value + 1e-9


def test_the_catalogue_uses_these_proposals(generator) -> None:
    q, k = calibration(generator)
    view = balanced_coordinates(q, k, ())
    relative = make("data-aware-relative", dim=DIM, num_features=4).fit(q, k)
    expected = torch.diag(1 + 4 * view.spread)
    assert torch.allclose(relative.inner.proposal.covariance, expected, rtol=1e-9)
    attention = make("data-aware", dim=DIM, num_features=4).fit(q, k)
    weights = torch.softmax(q @ k.T, dim=-1) / len(q)  # exact attention, in the old coordinates
    sums = (view.queries.unsqueeze(1) + view.keys).reshape(-1, DIM)
    mean = weights.reshape(-1) @ sums
    covariance = (sums * weights.reshape(-1, 1)).T @ sums - mean.outer(mean)
    eye = torch.eye(DIM, dtype=torch.float64)
    assert torch.allclose(attention.inner.proposal.mean, mean, atol=1e-9)
    assert torch.allclose(attention.inner.proposal.covariance, eye + covariance, atol=1e-9)


def test_gaussian_attention_in_closed_form() -> None:
    # (d): q ~ N(0, Lq), k | q ~ N(Lk q, Lk): Cov_a(s) = (I + Lk) Lq (I + Lk) + Lk, on quantiles
    count = 2_001
    grid = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    lq, lk = 0.4, 0.3
    moments = AttentionMoments.of(lq**0.5 * grid.unsqueeze(-1), lk**0.5 * grid.unsqueeze(-1))
    assert float(moments.mean) == pytest.approx(0.0, abs=1e-9)
    assert float(moments.covariance) == pytest.approx((1 + lk) ** 2 * lq + lk, rel=5e-3)


def test_centring_is_a_shift_of_the_proposal_mean(generator) -> None:
    # (e): K^/K of N(mq+mk, S) on (q, k) is K^/K of N(0, S) on (q-mq, k-mk), for the same normals
    mq, mk = normals(generator, DIM), normals(generator, DIM)
    covariance = torch.eye(DIM, dtype=torch.float64) + spd(generator, DIM, 0.5)
    maps = []
    for mean in (mq + mk, torch.zeros(DIM).double()):
        request = Request(
            dim=DIM,
            num_features=7,
            generator=torch.Generator().manual_seed(3),
            dtype=torch.float64,
        )
        maps.append(RandomFeatures(request, Positive(), GaussianProposal(mean, covariance)))
    shifted, centred = maps
    q, k = normals(generator, 5, DIM), normals(generator, 6, DIM)
    left = shifted.estimate(q, k) / shifted.kernel(q, k)
    right = centred.estimate(q - mq, k - mk) / centred.kernel(q - mq, k - mk)
    assert torch.allclose(left, right, rtol=1e-11)
    whole = TransformedFeatures(centred, Centring(mq, mk))
    assert torch.allclose(whole.estimate(q, k), shifted.estimate(q, k), rtol=1e-11)
    assert torch.allclose(whole.relative_variance(q, k), shifted.relative_variance(q, k), rtol=1e-9)


def test_balancing_gives_both_sides_the_same_diagonal(generator) -> None:
    # (f): sigma = sqrt(eig(Lq Lk)); S_rel becomes diag(1 + 4 sigma)
    q, k = calibration(generator)
    view = balanced_coordinates(q, k, ())
    found = Moments.of(view.queries, view.keys, ridge=0.0)
    diagonal = torch.diag(view.spread)
    assert torch.allclose(found.query_covariance, diagonal, atol=1e-5)
    assert torch.allclose(found.key_covariance, diagonal, atol=1e-5)
    assert torch.allclose(found.query_mean, torch.zeros(DIM).double(), atol=1e-12)
    m = Moments.of(q, k)
    eigenvalues = torch.linalg.eigvals(m.query_covariance @ m.key_covariance).real.sqrt()
    assert torch.allclose(view.spread.sort().values, eigenvalues.sort().values, rtol=1e-6)
