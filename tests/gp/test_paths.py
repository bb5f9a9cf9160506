"""Paths: their law in closed form, their gradients, and what becomes of them in a copy."""

import copy
import pickle

import numpy as np
import pytest
import torch

import bochner
from bochner.gp.exact import ExactPosterior
from bochner.gp.paths import PosteriorPaths
from bochner.kernels import Gaussian
from tests.gp.problems import problem
from tests.gp.test_posteriors import A, S, everything, features, new_points, nystrom

SCALES = {"outputscale": A, "noise": S}
DRAWS = 40_000


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def law(p, posterior, z):
    """Mean and covariance at z that paths must have: linear in the prior's weights and the noise."""
    phi_z = p.feature_map.query(z).materialise().numpy()
    if posterior.name == "features":
        return posterior.mean(z)[:, 0], posterior.covariance(z)
    gaussian = Gaussian()
    if posterior.name == "exact":
        covariance = A * gaussian(p.x, p.x).numpy() + S * np.eye(len(p.x))
        gain = np.linalg.solve(covariance, A * gaussian(p.x, z).numpy()).T
    else:
        centres = posterior.landmarks.centres
        k_zx, k_zz = A * gaussian(centres, p.x).numpy(), A * gaussian(centres, centres).numpy()
        inner = k_zx @ k_zx.T + S * k_zz
        gain = A * gaussian(z, centres).numpy() @ np.linalg.solve(inner, k_zx)
    left = phi_z - gain @ p.phi
    return (gain @ p.y)[:, 0], A * left @ left.T + S * gain @ gain.T


@pytest.mark.parametrize("which", [0, 1, 2], ids=["exact", "nystrom", "features"])
def test_paths_have_the_law_of_matherons_rule(which):
    """Means and covariances of 40,000 paths at 4 points: 14 z-tests, |z| < 5.5, false alarms < 1e-6."""
    p = problem()
    posterior = everything(p)[which]
    z = new_points(p, 4)
    with torch.no_grad():
        drawn = posterior.paths(DRAWS, seeded())(z).numpy()
    mean, covariance = law(p, posterior, z)
    errors = drawn - mean
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(errors.mean(0)) < 5.5 * spread / DRAWS**0.5).all()
    sampled = errors.T @ errors / DRAWS
    stderr = np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / DRAWS)
    assert (np.abs(sampled - covariance) < 5.5 * stderr).all()


def test_with_many_features_the_law_is_the_exact_posterior():
    p = problem(m=4096)
    posterior = ExactPosterior(p.feature_map, p.x, p.y, **SCALES)
    z = new_points(p)
    mean, covariance = law(p, posterior, z)
    assert np.allclose(mean, posterior.mean(z)[:, 0], atol=1e-10)
    assert np.allclose(covariance, posterior.covariance(z), atol=0.05 * A)


def test_far_away_paths_are_the_prior():
    p = problem()
    far = p.x[:3] + 100.0
    for posterior in everything(p)[:2]:
        _, covariance = law(p, posterior, far)
        assert np.allclose(np.diag(covariance), A, rtol=1e-10)
    assert (np.diag(law(p, features(p), far)[1]) < 0.9 * A).all()


@pytest.mark.parametrize("which", [0, 1, 2], ids=["exact", "nystrom", "features"])
def test_gradients_by_differences(which):
    p = problem()
    paths = everything(p)[which].paths(3, seeded())
    x = new_points(p, 4).requires_grad_()
    assert torch.autograd.gradcheck(paths, (x,))


def test_each_is_the_diagonal_of_all():
    p = problem()
    paths = nystrom(p, p.x[:20]).paths(5, seeded())
    x = torch.randn(2, 5, 4, 3, generator=seeded(), dtype=torch.float64)
    every = paths(x)
    assert every.shape == (2, 5, 5, 4)
    own = torch.stack([every[:, i, i] for i in range(5)], dim=1)
    assert torch.allclose(paths.each(x), own, atol=1e-12)
    with pytest.raises(ValueError, match="S=5"):
        paths.each(x[:, :3])


def test_units_and_mean():
    p = problem()
    paths = everything(p)[0].paths(2, seeded())
    plain = paths(p.x)
    offset, inverse = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.5, 1.0, 4.0]).double()
    moved = paths.in_units(offset=offset, inverse_lengthscales=inverse, mean=7.0)
    assert torch.allclose(moved(p.x / inverse + offset), plain + 7.0)


def test_the_dtype_is_that_of_the_points_and_copies_agree():
    p = problem()
    paths = everything(p)[0].paths(2, seeded())
    single = paths(p.x.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), paths(p.x), atol=1e-4)
    for twin in (copy.deepcopy(paths), pickle.loads(pickle.dumps(paths))):
        assert torch.equal(twin(p.x), paths(p.x))


def test_a_seed_gives_the_same_paths_and_global_randomness_is_left_alone():
    p = problem()
    before = torch.get_rng_state()
    for posterior in everything(p):
        first, second = (posterior.paths(2, seeded(s)) for s in (5, 5))
        other = posterior.paths(2, seeded(6))
        assert torch.equal(first(p.x), second(p.x))
        assert not torch.equal(first(p.x), other(p.x))
    assert torch.equal(torch.get_rng_state(), before)


def test_paths_of_two_outputs_are_refused():
    p = problem(k=2)
    for posterior in everything(p):
        with pytest.raises(ValueError, match="2 columns"):
            posterior.paths(1, seeded())


def test_wrong_points_are_named():
    phi = bochner.make("trigonometric", dim=3, num_features=2, kernel="gaussian")
    paths = PosteriorPaths(phi, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="x has last dimension 2; expected dim=3"):
        paths(torch.zeros(4, 2))
