"""Calibrated landmark features against what they promise, and against a naive least squares."""

import math
import warnings

import pytest
import torch
from torch import Tensor

import bochner
from bochner import landmark_fit, linear_attention
from bochner.feature_maps import calibrated
from bochner.feature_maps.calibrated import fit_calibrated
from bochner.kernels import Softmax
from bochner.landmark_data import ExactPairs, Sequences
from bochner.landmark_fit import System
from bochner.landmark_points import k_means
from bochner.landmarks import LandmarkFeatures, LandmarkSide
from bochner.request import Request
from tests.maps import normal, seeded


def request(m: int, dim: int = 4, batch_shape: tuple[int, ...] = ()) -> Request:
    return Request(
        dim=dim, num_features=m, batch_shape=batch_shape, generator=seeded(0), dtype=torch.float64
    )


def attention_error(phi: LandmarkFeatures, q: Tensor, k: Tensor) -> float:
    """|D^-1 (K^ - K)|_F / |D^-1 K|_F: the absolute scale counts."""
    kernel = torch.exp(q @ k.mT)
    rows = kernel.sum(-1, keepdim=True)
    gap = (phi.estimate(q, k) - kernel) / rows
    return float(gap.norm() / (kernel / rows).norm())


def test_equals_naive_least_squares() -> None:
    """The core matrix solves the normal equations (G_q + r) W (G_k + r) = F^T A G / N^2, head by head."""
    q, k = normal(2, 3, 10, 4, seed=1), normal(2, 3, 7, 4, seed=2)
    u, w = normal(2, 5, 4, seed=3), normal(2, 5, 4, seed=4)
    data = Sequences.of(bochner.Softmax(), q, k, None, ExactPairs())
    system = System.of(data, u, w, ExactPairs())
    for ridge in (0.5, 1e-3):
        core, left, right = system.solve(ridge)
        found = (
            system.query_map @ (left.unsqueeze(-1) * core * right.unsqueeze(-2)) @ system.key_map.mT
        )
        for head in range(2):
            x, y = q[head].flatten(0, 1), k[head].flatten(0, 1)
            attention = torch.softmax(x @ y.T, dim=-1)
            f = torch.exp(x @ u[head].T) / torch.exp(x @ y.T).sum(-1, keepdim=True)
            g = torch.exp(y @ w[head].T)
            f, g = (z / z.square().mean(0).sqrt() for z in (f, g))
            eye = torch.eye(5, dtype=torch.float64)
            gram_f, gram_g = f.T @ f / len(f) + ridge * eye, g.T @ g / len(g) + ridge * eye
            cross = f.T @ attention @ g / (len(f) * len(g))
            truth = torch.linalg.inv(gram_f) @ cross @ torch.linalg.inv(gram_g)
            torch.testing.assert_close(found[head], truth, rtol=1e-8, atol=1e-10)


def test_hidden_pairs_have_no_weight_in_a_causal_fit() -> None:
    """Conjugate gradients against the dense normal equations over visible pairs (cross-sequence ones
    are visible by position), and the future does not matter."""
    q, k = normal(1, 2, 6, 3, seed=1), normal(1, 2, 6, 3, seed=2)
    u, w = normal(1, 3, 3, seed=3), normal(1, 3, 3, seed=4)
    exact, ridge = ExactPairs(causal=True), 0.3
    data = Sequences.of(bochner.Softmax(), q, k, None, exact)
    system = System.of(data, u, w, exact)
    core, left, right = system.solve(ridge)
    f, g = system.queries[0] * left[0], system.keys[0] * right[0]
    n = len(f)
    seen = (torch.arange(n)[:, None] % 6 >= torch.arange(n)[None, :] % 6).double()
    pairs = torch.einsum("ia,jb->ijab", f, g).reshape(n * n, -1)
    hidden = pairs * (1 - seen).reshape(-1, 1)
    normal_matrix = torch.eye(9, dtype=torch.float64) - hidden.T @ hidden / n**2
    logits = (q[0].flatten(0, 1) @ k[0].flatten(0, 1).T).masked_fill(seen == 0, -math.inf)
    target = torch.softmax(logits, dim=-1)
    truth = torch.linalg.solve(normal_matrix, pairs.T @ target.reshape(-1) / n**2)
    torch.testing.assert_close(core[0].reshape(-1), truth, rtol=1e-6, atol=1e-10)


def test_reproduces_the_calibration_data_as_features_are_added() -> None:
    q, k = normal(64, 4, seed=1, scale=0.7), normal(64, 4, seed=2, scale=0.7)
    errors = [attention_error(fit_calibrated(request(m), q, k), q, k) for m in (1, 4, 16, 64)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.03


def test_more_landmarks_at_equal_rank() -> None:
    q, k = normal(8, 64, 4, seed=1, scale=0.7), normal(8, 64, 4, seed=2, scale=0.7)
    few, many = (
        attention_error(fit_calibrated(request(8), q, k, landmarks=p), q, k) for p in (8, 64)
    )
    assert many < few


def test_the_scale_is_absolute() -> None:
    """The features may stand beside exact values in one sum: their own sum is right, not only its shape."""
    q, k = normal(4, 128, 4, seed=1, scale=0.6) + 0.5, normal(4, 128, 4, seed=2, scale=0.6) - 0.3
    phi = fit_calibrated(request(32), q, k)
    x, y = normal(50, 4, seed=5, scale=0.6) + 0.5, normal(60, 4, seed=6, scale=0.6) - 0.3
    ratio = phi.estimate(x, y).sum(-1) / torch.exp(x @ y.mT).sum(-1)
    assert ratio.min() > 0.9
    assert ratio.max() < 1.1


def test_grouped_queries_are_sequences_of_their_key_head() -> None:
    """Six query heads, two key heads: the map of key head 0 serves query heads 0, 1 and 2."""
    q, k = normal(4, 6, 32, 4, seed=1, scale=0.6), normal(4, 2, 32, 4, seed=2, scale=0.6)
    phi = fit_calibrated(request(16, batch_shape=(2,)), q, k)
    alone = fit_calibrated(
        request(16, batch_shape=(1,)),
        q[:, :3].transpose(0, 1).reshape(12, 1, 32, 4),
        k[:, :1].transpose(0, 1).expand(3, 4, 32, 4).reshape(12, 1, 32, 4),
    )
    x, y = normal(2, 9, 4, seed=5, scale=0.6), normal(2, 9, 4, seed=6, scale=0.6)
    kernel = torch.exp(x @ y.mT)
    for found in (phi.estimate(x, y)[0], alone.estimate(x[:1], y[:1])[0]):
        assert (found - kernel[0]).norm() / kernel[0].norm() < 0.2


def test_features_need_not_serve_what_will_be_exact() -> None:
    """Local peaks and a sink: the fit that knows of them is better on everything else."""
    n, b = 64, 8
    place = torch.eye(n, dtype=torch.float64)[:, :16].repeat(b, 1, 1)
    place = torch.cat([normal(1, n, 4, seed=3, scale=1.5).expand(b, n, 4)], dim=-1)
    q = place + normal(b, n, 4, seed=1, scale=0.5)
    k = place + normal(b, n, 4, seed=2, scale=0.5)
    kernel = torch.exp(q @ k.mT)
    gap = torch.arange(n)[:, None] - torch.arange(n)
    outside = (gap.abs() > 4).double()
    rows = kernel.sum(-1, keepdim=True)

    def error(phi: LandmarkFeatures) -> float:
        return float(((phi.estimate(q, k) - kernel) / rows * outside).norm())

    aware = fit_calibrated(request(8), q, k, window=8)
    assert error(aware) < error(fit_calibrated(request(8), q, k))


def test_deterministic_given_data_and_seed() -> None:
    q, k = normal(3, 2, 40, 4, seed=1), normal(3, 2, 40, 4, seed=2)
    one, two = (fit_calibrated(request(8, batch_shape=(2,)), q, k) for _ in range(2))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    before = one.estimate(q[0], k[0])
    assert one.resample_(seeded(9)) is one
    assert torch.equal(before, one.estimate(q[0], k[0]))
    assert one.draws() == []
    assert not one.unbiased
    assert not one.positive
    assert one.relative_variance(q[0], k[0]) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    q, k = (normal(4, 64, 4, seed=s, scale=0.6, dtype=dtype) for s in (1, 2))
    small = Request(dim=4, num_features=16, generator=seeded(0))
    phi = fit_calibrated(small, q, k)
    assert phi.query(q).values.dtype == torch.float32
    assert attention_error(phi, q.double(), k.double()) < 0.15
    wide = fit_calibrated(
        Request(dim=4, num_features=16, generator=seeded(0)), q.double(), k.double()
    )
    for name, tensor in phi.state_dict().items():
        assert torch.equal(tensor, wide.state_dict()[name]), name


def test_domain_shift_is_bounded_or_loud() -> None:
    """Queries and keys four times as large and moved: finite, and either among the values or warned of."""
    q, k = normal(4, 64, 4, seed=1, scale=0.5), normal(4, 64, 4, seed=2, scale=0.5)
    phi = fit_calibrated(Request(dim=4, num_features=16, generator=seeded(0)), q, k)
    far_q, far_k = 4.0 * normal(200, 4, seed=3) - 2.0, 4.0 * normal(200, 4, seed=4) + 2.0
    values = normal(200, 3, seed=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = linear_attention(phi, far_q, far_k, values)
    assert torch.isfinite(out).all()
    loud = any("denominators are not positive" in str(w.message) for w in caught)
    assert loud or float(out.abs().max()) < 100 * float(values.abs().max())


def test_trainable_keeps_names_and_gets_gradients() -> None:
    q, k = normal(2, 40, 4, seed=1), normal(2, 40, 4, seed=2)
    phi = fit_calibrated(request(8), q, k)
    names, before = set(phi.state_dict()), phi.estimate(q, k)
    assert phi.trainable_() is phi
    assert phi.trainable_() is phi
    assert set(phi.state_dict()) == names
    assert torch.equal(phi.estimate(q, k), before)
    phi.estimate(q, k).sum().backward()
    assert len(list(phi.parameters())) == 4
    assert all(bool(p.grad.abs().sum() > 0) for p in phi.parameters())


def test_a_blank_map_takes_a_saved_state() -> None:
    q, k = normal(2, 3, 40, 4, seed=1), normal(2, 3, 40, 4, seed=2)
    phi = fit_calibrated(request(8, batch_shape=(3,)), q, k)
    blank = LandmarkFeatures.blank(request(8, batch_shape=(3,)), phi.landmarks)
    blank.load_state_dict(phi.state_dict())
    assert torch.equal(blank.estimate(q, k), phi.estimate(q, k))


def test_k_means_finds_clusters_and_outliers() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 200.0]], dtype=torch.float64)
    points = torch.cat(
        [c + normal(n, 2, seed=n, scale=0.1) for c, n in zip(centres, (50, 40, 1), strict=True)]
    )
    found = k_means(points.expand(2, -1, 2), 3, generator=seeded(0))
    for head in found:
        assert torch.cdist(centres, head).amin(-1).max() < 0.5
    assert torch.isfinite(k_means(points[:1].expand(1, 5, 2), 3, generator=seeded(0))).all()


def test_wrong_requests() -> None:
    q, k = normal(2, 20, 4, seed=1), normal(2, 20, 4, seed=2)
    with pytest.raises(ValueError, match="landmarks=4 must be at least num_features=8"):
        fit_calibrated(request(8), q, k, landmarks=4)
    with pytest.raises(ValueError, match="window=-1"):
        fit_calibrated(request(8), q, k, window=-1)
    with pytest.raises(ValueError, match="sequences"):
        fit_calibrated(request(8), q, k[:1])
    with pytest.raises(ValueError, match="positions"):
        fit_calibrated(request(8), q, k, values=normal(2, 19, 3))
    with pytest.raises(ValueError, match="leading dimensions"):
        fit_calibrated(request(8, batch_shape=(3,)), q, k)
    side = LandmarkSide(normal(5, 4), normal(5), normal(5, 7))
    with pytest.raises(ValueError, match=r"query_side.matrix has shape \[5, 7\]"):
        LandmarkFeatures(request(8), side, side)


def test_what_judges_a_grouped_fit_was_not_fitted_to() -> None:
    """Three query heads read each sequence: whole sequences are held out, with all three."""
    queries = torch.randn(1, 12, 8, 4, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(4.0).repeat_interleave(3).view(1, 12, 1, 1).expand(1, 12, 8, 4)
    data = Sequences.of(Softmax(), queries, keys, None, ExactPairs())
    fitted, held = landmark_fit._split(data, 3072, 3)
    assert set(fitted.keys.flatten().tolist()) == {0.0, 1.0, 2.0}
    assert held.keys.shape[1] == 3
    assert set(held.keys.flatten().tolist()) == {3.0}


def test_grouped_heads_of_one_sequence_stand_in_turn() -> None:
    """Query head h reads key head h // G; sequences of one key head follow each other by sequence."""
    q = torch.arange(2 * 6.0).view(2, 6, 1, 1).expand(2, 6, 5, 4)
    k = torch.zeros(2, 3, 5, 4)
    queries, _, _, group = calibrated._by_head(
        {"queries": q, "keys": k}, Request(dim=4, num_features=2, batch_shape=(3,))
    )
    assert group == 2
    assert queries[:, :, 0, 0].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
