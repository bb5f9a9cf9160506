"""The path from one eigendecomposition = the loop that it replaces."""

import numpy as np
import pytest

from bochner.gram.descent import GradientPath
from bochner.gram.statistics import GramStatistics


def data(rows=60, features=7, targets=2, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(rows, features)) / features**0.5
    if rank is not None:
        phi = phi[:, :rank] @ rng.normal(size=(rank, features)) / rank**0.5
    return phi, rng.normal(size=(rows, targets))


def descend(phi, y, step, iterations):
    w = np.zeros((phi.shape[1], y.shape[1]))
    for _ in range(iterations):
        w = w - step / len(phi) * phi.T @ (phi @ w - y)
    return w


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("part", [0.3, 1.0, 1.7])
def test_equals_the_loop(rank, part):
    phi, y = data(rank=rank)
    step = part / np.linalg.eigvalsh(phi.T @ phi / len(phi))[-1]
    path = GradientPath(GramStatistics.of(phi, y), step_size=step)
    for found, t in zip(path.coefficients([0, 1, 2, 25, 400]), (0, 1, 2, 25, 400), strict=True):
        np.testing.assert_allclose(found, descend(phi, y, step, t), rtol=1e-10, atol=1e-12)


def test_ends_at_least_squares():
    phi, y = data()
    path = GradientPath(GramStatistics.of(phi, y), step_size=1.0)
    last = path.coefficients([10**9])[0]
    np.testing.assert_allclose(last, np.linalg.lstsq(phi, y)[0], rtol=1e-9)


def test_weights_of_rows_count():
    phi, y = data()
    weight = np.repeat([1.0, 2.0], 30)
    twice = np.concatenate([phi, phi[30:]]), np.concatenate([y, y[30:]])
    ours = GradientPath(GramStatistics.of(phi, y, weight), step_size=0.5).coefficients([7])[0]
    np.testing.assert_allclose(ours, descend(*twice, 0.5, 7), rtol=1e-10)


def test_effective_dof_is_the_trace_of_the_smoother():
    phi, y = data(rank=4)
    path = GradientPath(GramStatistics.of(phi, y), step_size=1.0)
    smoother = phi @ np.stack([descend(phi, e[:, None], 1.0, 9)[:, 0] for e in np.eye(60)], axis=1)
    assert path.effective_dof([9])[0] == pytest.approx(np.trace(smoother), rel=1e-10)
    assert path.effective_dof([10**7])[0] == pytest.approx(4, rel=1e-6)


def test_late_iterates_of_tiny_eigenvalues_do_not_cancel():
    """lambda = 1e-14, t = 1e6: w = eta t h to 1e-8; the plain difference would keep two digits."""
    gram, cross = np.diag([1.0, 1e-14]), np.array([[0.0], [1.0]])
    path = GradientPath.from_matrices(gram, cross, num_rows=1, step_size=1.0)
    assert path.coefficients([10**6])[0, 1, 0] == pytest.approx(1e6, rel=1.1e-8)


@pytest.mark.parametrize("step", [0.0, -1.0, 2.1, float("nan")])
def test_a_step_that_diverges_is_refused(step):
    with pytest.raises(ValueError, match="step_size"):
        GradientPath.from_matrices(np.eye(2), np.ones((2, 1)), num_rows=1, step_size=step)


def test_no_rows():
    with pytest.raises(ValueError, match="rows"):
        GradientPath(GramStatistics.zeros(2, 1), step_size=1.0)
