"""Sums of features: by hand, in pieces, on threads."""

import numpy as np
import pytest
import torch

import bochner
from bochner.gram.feature_sums import FeatureSums, accumulate_sums
from bochner.gram.features import BlockFeatures


def features(dtype: type = np.float64) -> BlockFeatures:
    generator = torch.Generator().manual_seed(0)
    phi = bochner.make("positive", dim=2, num_features=6, kernel="gaussian", generator=generator)
    return BlockFeatures(phi, dtype=dtype)


def test_sums_by_hand() -> None:
    rng = np.random.default_rng(0)
    phi, y, w = rng.standard_normal((40, 5)), rng.standard_normal((40, 2)), rng.random(40)
    sums = FeatureSums.of(phi, y, w)
    np.testing.assert_allclose(sums.feature_sum, w @ phi, rtol=1e-13)
    np.testing.assert_allclose(sums.cross, phi.T @ (w[:, None] * y), rtol=1e-13)
    assert sums.weight == pytest.approx(w.sum())
    assert sums.square_weight == pytest.approx((w**2).sum())
    assert sums.square_norms == pytest.approx((w**2 * (phi**2).sum(axis=1)).sum())
    pairs = [w[i] * w[j] * phi[i] @ phi[j] for i in range(40) for j in range(40) if i != j]
    shares = [w[i] * w[j] for i in range(40) for j in range(40) if i != j]
    assert sums.mean_product() == pytest.approx(sum(pairs) / sum(shares), rel=1e-10)


def test_all_rows_on_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40_000, 2)).astype(np.float32), rng.standard_normal((40_000, 1))
    phi = features(np.float32)
    one, three = (accumulate_sums(phi, X, y, num_threads=n) for n in (1, 3))
    assert (one.feature_sum == three.feature_sum).all()
    assert (one.cross == three.cross).all()
    assert one.square_norms == three.square_norms
    assert one.num_rows == 40_000
    whole = FeatureSums.of(phi(X), y)
    np.testing.assert_allclose(one.feature_sum, whole.feature_sum, rtol=1e-6)
    np.testing.assert_allclose(one.cross, whole.cross, rtol=1e-5, atol=1e-3)


def test_other_sizes_are_not_merged() -> None:
    one, two = (FeatureSums.of(np.ones((3, m))) for m in (2, 3))
    with pytest.raises(ValueError, match="cannot be merged"):
        one + two
    with pytest.raises(ValueError, match=r"1 row\(s\) with a weight: pairs want two"):
        FeatureSums.of(np.ones((1, 2))).mean_product()
