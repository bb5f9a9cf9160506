"""Kernel principal components from sums: those of scikit-learn on the same kernel matrix, in any pieces."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import KernelPCA as Exact
from sklearn.metrics.pairwise import rbf_kernel

from bochner.sklearn import KernelPCA, RandomFeatures


def normal(rows: int = 120, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim))


def apart(one: np.ndarray, two: np.ndarray) -> float:
    """The largest difference between columns whose signs are free."""
    return float(np.minimum(np.abs(one - two).max(axis=0), np.abs(one + two).max(axis=0)).max())


def test_the_same_as_scikit_learn_on_the_kernel_matrix_of_the_features() -> None:
    X, new = normal(), normal(20, seed=1)
    ours = KernelPCA(5, n_random_features=64, gamma=0.3, random_state=0).fit(X)
    phi = RandomFeatures(n_components=64, gamma=0.3, random_state=0).fit(X)
    Z = phi.transform(X)
    theirs = Exact(5, kernel="precomputed").fit(Z @ Z.T)
    np.testing.assert_allclose(ours.eigenvalues_, theirs.eigenvalues_, rtol=1e-9)
    assert apart(ours.transform(X), theirs.transform(Z @ Z.T)) < 1e-9
    assert apart(ours.transform(new), theirs.transform(phi.transform(new) @ Z.T)) < 1e-9


def test_eigenvalues_are_those_of_the_kernel_up_to_its_error() -> None:
    """Weyl: no eigenvalue moves by more than the spectral norm of the difference."""
    X = normal()
    ours = KernelPCA(n_random_features=1024, gamma=0.3, random_state=0).fit(X)
    Z = RandomFeatures(n_components=1024, gamma=0.3, random_state=0).fit_transform(X)
    kernel = rbf_kernel(X, gamma=0.3)
    theirs = Exact(10, kernel="precomputed").fit(kernel)
    centring = np.eye(120) - 1 / 120
    error = np.linalg.norm(centring @ (Z @ Z.T - kernel) @ centring, 2)
    moved = np.abs(ours.eigenvalues_[:10] - theirs.eigenvalues_).max()
    assert moved <= error * (1 + 1e-9)
    assert error < 0.1 * theirs.eigenvalues_[0]


def test_variances_are_those_of_the_scores() -> None:
    X = normal()
    pca = KernelPCA(n_random_features=32, gamma=0.3, random_state=0).fit(X)
    scores = pca.transform(X)
    covariance = np.cov(scores.T)
    np.testing.assert_allclose(np.diag(covariance), pca.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(covariance, np.diag(pca.explained_variance_), atol=1e-12)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(
        pca.components_ @ pca.components_.T, np.eye(len(pca.components_)), atol=1e-12
    )
    assert pca.explained_variance_ratio_.sum() == pytest.approx(1.0, abs=1e-9)
    assert (np.diff(pca.eigenvalues_) <= 0).all()


def test_rows_in_pieces() -> None:
    X = normal(300)
    whole = KernelPCA(4, n_random_features=64, gamma=0.3, random_state=0).fit(X)
    pieces = KernelPCA(4, n_random_features=64, gamma=0.3, random_state=0)
    for part in np.array_split(X, 4):
        pieces.partial_fit(part)
    # the first piece is centred elsewhere: features turn, principal components do not
    np.testing.assert_allclose(pieces.eigenvalues_, whole.eigenvalues_, rtol=1e-10)
    assert apart(pieces.transform(X), whole.transform(X)) < 1e-9
    assert pieces.statistics_.num_rows == 300


def test_sparse_rows() -> None:
    X = normal() * (normal(seed=1) > 0)
    parameters = {"n_components": 4, "n_random_features": 64, "gamma": 0.3, "random_state": 0}
    dense = KernelPCA(**parameters).fit_transform(X)
    assert apart(KernelPCA(**parameters).fit_transform(sparse.csr_array(X)), dense) < 1e-9


def test_components_below_rounding_are_not_kept() -> None:
    X = np.repeat(normal(5), 40, axis=0)  # five points: four components
    for dtype in (np.float32, np.float64):
        pca = KernelPCA(n_random_features=64, gamma=0.3, random_state=0).fit(X.astype(dtype))
        assert pca.eigenvalues_.shape == (4,)
        assert pca.transform(X.astype(dtype)).dtype == dtype
        assert pca.get_feature_names_out().tolist() == [f"kernelpca{i}" for i in range(4)]


def test_single_precision_is_close() -> None:
    X = normal(400)
    parameters = {"n_components": 3, "n_random_features": 64, "gamma": 0.3, "random_state": 0}
    double = KernelPCA(**parameters).fit_transform(X)
    single = KernelPCA(**parameters).fit_transform(X.astype(np.float32))
    assert apart(single, double) < 1e-4


def test_arguments() -> None:
    with pytest.raises(ValueError, match="n_components=70 exceeds the 64 random features"):
        KernelPCA(70, n_random_features=64).fit(normal())
    with pytest.raises(ValueError, match="n_components=0 must be None or an integer of at least 1"):
        KernelPCA(0).fit(normal())


def test_equal_rows_have_no_variance_and_light_weights_are_refused() -> None:
    equal = KernelPCA(2, n_random_features=16, random_state=0).fit(np.ones((10, 3)))
    assert equal.explained_variance_ratio_.tolist() == [0.0, 0.0]
    rows = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(ValueError, match=r"sample_weight sums to 0.5; .*more than one row"):
        KernelPCA(2, n_random_features=16).fit(rows, sample_weight=np.full(10, 0.05))
