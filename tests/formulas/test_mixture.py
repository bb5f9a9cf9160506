"""The mixture proposal against its density, written out."""

import math

import pytest
import torch

from bochner import make
from bochner.proposals import MixtureProposal
from tests.maps import normal, seeded
from tests.naive import mean_is


def test_weights_equal_the_densities_of_the_whole_mixture() -> None:
    centres, normals = normal(2, 3, 4, seed=1), normal(2, 8, 4, seed=2)
    omega, half = MixtureProposal(centres).shape(normals)
    shares = (3 / 8, 3 / 8, 2 / 8)  # rows dealt in turn: 0 1 2 0 1 2 0 1

    def density(x: torch.Tensor, mean: torch.Tensor) -> float:
        return math.exp(-0.5 * float((x - mean).square().sum())) / (2 * math.pi) ** 2

    for head in range(2):
        for row in range(8):
            point = normals[head, row] + centres[head, row % 3]
            torch.testing.assert_close(omega[head, row], point)
            mixture = sum(a * density(point, z) for a, z in zip(shares, centres[head], strict=True))
            truth = 0.5 * math.log(density(point, torch.zeros(4)) / mixture)
            assert float(half[head, row]) == pytest.approx(truth, rel=1e-9)


def test_unbiased_with_components_far_apart(generator: torch.Generator) -> None:
    """Rows have means of their own: only together, and with these weights, are they unbiased."""
    centres = torch.tensor([[1.5, 0.0], [-1.0, 0.5], [0.0, -1.2]], dtype=torch.float64)
    normals = torch.randn(100_000, 5, 2, generator=generator, dtype=torch.float64)
    omega, half = MixtureProposal(centres).shape(normals)
    s = torch.tensor([0.6, -0.3], dtype=torch.float64)
    estimates = torch.exp(2.0 * half + omega @ s).mean(-1)  # E_p exp(omega.s) = exp(|s|^2 / 2)
    mean_is(estimates, math.exp(0.5 * float(s @ s)), see=0.05)


def test_centres_are_sums_of_pairs_that_attend() -> None:
    """Two groups that attend within themselves only: q' + k' is never a sum across groups."""
    side = torch.tensor([[3.0, 0.0], [-3.0, 0.0]], dtype=torch.float64).repeat(30, 1)
    q, k = (side + normal(60, 2, seed=s, scale=0.1) for s in (1, 2))
    phi = make("data-aware-mixture", dim=2, num_features=64, generator=seeded(0)).fit(q, k)
    centres = phi.inner.proposal.centres
    assert centres.shape == (32, 2)
    widest = centres.norm(dim=-1)
    assert widest.min() > 0.7 * widest.max()  # a sum across the groups would be near 0
