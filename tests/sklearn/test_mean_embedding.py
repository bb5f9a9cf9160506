"""Mean embeddings: means of kernels, distances of laws, and two-sample tests with what they promise."""

import numpy as np
import pytest
import scipy.stats
from scipy import sparse
from sklearn.metrics.pairwise import rbf_kernel

from bochner.sklearn import KernelMeanEmbedding, mmd_asymptotic_test, mmd_test


def normal(rows: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 2)) + shift


def made(**parameters: object) -> KernelMeanEmbedding:
    return KernelMeanEmbedding(
        **{"n_components": 64, "gamma": 0.5, "random_state": 0, **parameters}
    )


def test_values_are_means_of_the_kernel() -> None:
    X, points = normal(500), normal(50, seed=1)
    exact = rbf_kernel(points, X, gamma=0.5).mean(axis=1)
    mean = made(n_components=8192).fit(X)
    # |phi(x)| = 1: an error of mu has a norm of about 1/sqrt(m) = 0.011
    assert np.abs(mean.evaluate(points) - exact).max() < 0.03
    positive = made(features="gerf").fit(X)
    assert (positive.evaluate(5 * points) > 0).all()


def test_distances_between_samples() -> None:
    X, Y = normal(200), normal(150, 0.7, seed=1)
    mean = made(n_components=4096).fit(X)
    other = mean.embed(Y)
    inside = [
        (K.sum() - np.trace(K)) / (len(K) * (len(K) - 1))
        for K in (rbf_kernel(X, gamma=0.5), rbf_kernel(Y, gamma=0.5))
    ]
    exact = sum(inside) - 2 * rbf_kernel(X, Y, gamma=0.5).mean()
    assert mean.mmd2(other) == pytest.approx(exact, rel=0.1)
    assert mean.mmd2(other) == pytest.approx(other.mmd2(mean), rel=1e-12)
    witness = mean.witness(other, [[-1.0, -1.0], [1.5, 1.5]])
    assert witness[0] > 0 > witness[1]


def test_weights_are_repetitions_and_pieces_add() -> None:
    X = normal(60)
    weights = np.random.default_rng(1).integers(0, 4, size=60)
    weighted = made().fit(X, sample_weight=weights)
    repeated = made().fit(np.repeat(X, weights, axis=0))
    points = normal(10, seed=2)
    np.testing.assert_allclose(weighted.evaluate(points), repeated.evaluate(points), atol=1e-12)
    pieces = made()
    for part in np.array_split(X, 3):
        pieces.partial_fit(part)
    whole = made().fit(X)  # centred elsewhere: other features, the same products
    np.testing.assert_allclose(pieces.evaluate(points), whole.evaluate(points), atol=1e-12)
    assert pieces.mmd2(pieces.embed(X)) == pytest.approx(whole.mmd2(whole.embed(X)), abs=1e-12)


def test_embeddings_under_other_features_are_not_compared() -> None:
    X = normal(20)
    with pytest.raises(ValueError, match=r"make the second by first\.embed\(X\)"):
        made().fit(X).mmd2(made().fit(X))
    mean = made().fit(X)
    with pytest.raises(ValueError, match="pairs want two rows or more"):
        mean.mmd2(mean.embed(X[:1]))


def test_features_fitted_to_both_samples_keep_the_level() -> None:
    """Landmarks are rows: taken of one sample, they would tell the two apart. 200 tests at 20 %, and bounds
    with a false-alarm rate of 1e-6 a side."""
    law, rejected = scipy.stats.binom(200, 0.2), 0
    for seed in range(200):
        X, Y = normal(8, seed=2 * seed), normal(60, seed=2 * seed + 1)
        embedding = made(gamma=5.0, features="nystroem", n_components=8, random_state=seed)
        test = mmd_test(X, Y, embedding=embedding, level=0.2, num_permutations=19)
        rejected += test.rejected
    assert law.ppf(1e-6) <= rejected <= law.isf(1e-6)


def test_both_tests_see_a_difference_and_say_how_large() -> None:
    X, Y = normal(800), normal(700, 0.3, seed=1)
    permuted, asymptotic = mmd_test(X, Y), mmd_asymptotic_test(X, Y)
    for test in (permuted, asymptotic):
        assert test.rejected
        assert test.num_rows == (800, 700)
        assert test.mmd2 > 0
        assert test.statistic > test.threshold
    assert permuted.p_value == 0.001
    assert asymptotic.p_value < 1e-6


def test_single_precision_and_sparse_rows() -> None:
    X, Y = normal(100), normal(90, 0.5, seed=1)
    double = mmd_asymptotic_test(X, Y, embedding=made())
    single = mmd_asymptotic_test(X.astype(np.float32), Y.astype(np.float32), embedding=made())
    csr = mmd_asymptotic_test(sparse.csr_array(X), Y, embedding=made())
    assert single.p_value == pytest.approx(double.p_value, rel=1e-3)
    assert csr.p_value == pytest.approx(double.p_value, rel=1e-9)


def test_samples_of_other_columns() -> None:
    with pytest.raises(ValueError, match="X has 2 columns and Y 3; they must be the same"):
        mmd_test(normal(10), np.zeros((10, 3)))
    with pytest.raises(ValueError, match="Y contains NaN"):
        mmd_test(normal(10), np.full((10, 2), np.nan))
