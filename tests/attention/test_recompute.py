"""Training keeps inputs and states, not features."""

import pytest
import torch
from torch import Tensor

from bochner import AttentionState, linear_attention, step
from bochner.attention import bidirectional, recompute
from bochner.feature_map import FeatureMap
from tests.maps import fitted, normal


def streamed(phi: FeatureMap, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Through a state, whose gradients are recorded block by block."""
    return step(AttentionState(phi), q, k, v)[0]


def keep_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd records every block, and nothing is computed again."""
    monkeypatch.setattr(recompute, "checkpoint", lambda function, *a, **_: function(*a))
    monkeypatch.setattr(bidirectional, "recomputes", lambda *_: False)


@pytest.mark.parametrize("attend", [linear_attention, streamed])
@pytest.mark.parametrize("name", ["positive", "angular", "cluster", "dark"])
def test_gradients_are_those_of_what_is_kept(name: str, attend, monkeypatch) -> None:
    phi = fitted(name, dim=4, num_features=16)
    q, k, v = (normal(1100, 4, seed=s, scale=0.5).requires_grad_() for s in (1, 2, 3))
    leaves = [q, k, v, *phi.parameters()]

    def gradients() -> tuple[Tensor, ...]:
        out = attend(phi, q, k, v)
        return torch.autograd.grad(out.square().sum(), leaves)

    again = gradients()
    keep_everything(monkeypatch)
    for found, truth in zip(again, gradients(), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("attend", [linear_attention, streamed])
def test_what_training_keeps_does_not_grow_with_the_features(attend, monkeypatch) -> None:
    length, m, d = 4096, 256, 8
    phi = fitted("positive", dim=d, num_features=m, dtype=torch.float32)
    q, k, v = (
        normal(length, d, seed=s, scale=0.5, dtype=torch.float32).requires_grad_()
        for s in (1, 2, 3)
    )

    def saved() -> int:
        sizes: list[int] = []

        def pack(t: Tensor) -> Tensor:
            sizes.append(t.numel() * t.element_size())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            attend(phi, q, k, v)
        return sum(sizes)

    one_feature_matrix = length * m * 4
    assert saved() < one_feature_matrix
    keep_everything(monkeypatch)
    assert saved() > 3 * one_feature_matrix
