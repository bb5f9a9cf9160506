"""The data summary against its definitions."""

import math

import pytest
import torch

from bochner import describe
from tests.maps import normal


def test_equals_the_definitions() -> None:
    q = normal(3, 40, 4, seed=1) + normal(3, 1, 4, seed=3)
    k = 0.5 * normal(3, 30, 4, seed=2) - 1.0
    summary = describe(q, k)
    logs = torch.log_softmax(q @ k.mT, dim=-1)
    per_head = {
        "query_norm2": q.square().sum(-1).mean(-1),
        "key_norm2": k.square().sum(-1).mean(-1),
        "entropy": -(logs.exp() * logs).sum(-1).mean(-1),
        "log10_features_isotropic": (q.unsqueeze(-2) + k.unsqueeze(-3))
        .square()
        .sum(-1)
        .mean((-1, -2))
        / math.log(10.0),
        "log10_features_centred": (
            (q - q.mean(-2, keepdim=True)).square().sum(-1).mean(-1)
            + (k - k.mean(-2, keepdim=True)).square().sum(-1).mean(-1)
        )
        / math.log(10.0),
    }
    energy = per_head["query_norm2"] + per_head["key_norm2"]
    means = q.mean(-2).square().sum(-1) + k.mean(-2).square().sum(-1)
    per_head["mean_share"] = means / energy
    for field, values in per_head.items():
        assert getattr(summary, field) == pytest.approx(float(values.median()), rel=1e-9), field
    assert summary.heads == 3
    assert summary.max_entropy == pytest.approx(math.log(30))


def test_balanced_features_follow_from_the_spread() -> None:
    """sigma = sqrt(eig(Lq Lk)); log10 of prod (1 + 4 sigma)^(1/2) - 1."""
    q = normal(4000, 3, seed=1) * torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64)
    k = normal(4000, 3, seed=2) * torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    covariances = [x.mT.cov(correction=0) for x in (q, k)]
    sigma = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt()
    truth = math.log10(float((1 + 4 * sigma).prod().sqrt()) - 1)
    assert describe(q, k).log10_features_balanced == pytest.approx(truth, rel=1e-4)


def test_balancing_helps_where_queries_and_keys_differ() -> None:
    spread = torch.logspace(-1, 1, 6, dtype=torch.float64)
    q, k = normal(200, 6, seed=1) * spread, normal(200, 6, seed=2) / spread + 3.0
    summary = describe(q, k)
    assert summary.log10_features_balanced < summary.log10_features_centred
    assert summary.log10_features_centred < summary.log10_features_isotropic
    assert summary.mean_share > 0.1


def test_theorem_3_2_exists_only_for_small_covariances() -> None:
    """Equal covariances L: every eigenvalue below 1/2."""
    small, large = 0.3 * normal(500, 4, seed=1), 2.0 * normal(500, 4, seed=1)
    assert describe(small, small).absolute_exists == 1.0
    assert describe(large, large).absolute_exists == 0.0
    both = torch.stack((small, large))
    assert describe(both, both).absolute_exists == 0.5


@pytest.mark.parametrize("points", [1, 8])
def test_points_that_coincide(points: int) -> None:
    """No spread at all: everything sits in the means; a covariance is not invented."""
    ones = torch.ones(2, points, 4)
    summary = describe(ones, ones)
    assert summary.query_norm2 == summary.key_norm2 == pytest.approx(4.0)
    assert summary.mean_share == pytest.approx(1.0)
    assert summary.log10_features_centred == 0.0
    assert summary.log10_features_balanced == -math.inf
    assert summary.entropy == pytest.approx(math.log(points), abs=1e-12)
    zeros = describe(0 * ones, 0 * ones)
    assert zeros.query_norm2 == zeros.mean_share == zeros.log10_features_isotropic == 0.0
    assert "0% of it in the means" in str(zeros)


def test_other_leading_dimensions_are_pooled() -> None:
    q, k = normal(5, 2, 20, 3, seed=1), normal(5, 2, 20, 3, seed=2)
    assert describe(q, k).heads == 10
    summary = describe(q, k, batch_shape=(2,))
    assert summary.heads == 2
    pooled = describe(q.transpose(0, 1).flatten(1, 2), k.transpose(0, 1).flatten(1, 2))
    assert summary.query_norm2 == pytest.approx(pooled.query_norm2)
    assert summary.log10_features_balanced == pytest.approx(pooled.log10_features_balanced)


def test_inputs_that_record_gradients() -> None:
    q, k = normal(9, 4, seed=1).requires_grad_(), normal(9, 4, seed=2)
    assert describe(q, k) == describe(q.detach(), k)
