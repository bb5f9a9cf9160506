"""The causal backward pass: right for every map, through states, masks, overflow; linear in memory."""

import pytest
import torch
from torch import Tensor

from bochner import linear_attention
from bochner.attention import backward, causal
from tests.attention.dense import dense, log_dense
from tests.maps import NAMES, fitted, normal

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")


def _gradients(out: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    weight = normal(*out.shape, seed=9, dtype=out.dtype)
    return torch.autograd.grad((out * weight).sum(), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_several_blocks(name: str) -> None:
    """Float64 gradients are those of the dense form to 1e-10 of the largest entry."""
    phi = fitted(name, dim=4, num_features=8)
    length = 2 * causal.BLOCK + causal.PAIRS + 3
    inputs = [normal(length, 4, seed=s, scale=0.3).requires_grad_() for s in (1, 2, 3)]
    key_mask = normal(length, seed=5) > -1
    key_mask[0] = True
    wanted = [*inputs, *phi.parameters()]
    for mask in (None, key_mask):
        grads = _gradients(linear_attention(phi, *inputs, causal=True, key_mask=mask), wanted)
        truth = _gradients(dense(phi, *inputs, causal=True, key_mask=mask), wanted)
        kernel = phi.estimate(*inputs[:2]).detach().tril()
        condition = float((kernel.abs().sum(-1) / kernel.sum(-1).abs()).max())  # 1 if positive
        for grad, expected in zip(grads, truth, strict=True):
            limit = 1e-10 if phi.positive else 1e-12 * condition**2 + 1e-10
            assert (grad - expected).abs().max() < limit * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("norm", [40.0, 300.0])
def test_blocks_whose_weights_overflow(norm: float) -> None:
    """Late keys whose features are e^800 or e^45,000 times those of all before: rows from logarithms."""
    phi = fitted("positive", dim=4, num_features=16)
    length, first = 3 * causal.BLOCK, causal.BLOCK + 7
    inputs = [normal(length, 4, seed=s, scale=0.5) for s in (1, 2, 3)]
    inputs[1][:first] = norm * torch.nn.functional.normalize(inputs[1][:first], dim=-1)
    inputs = [x.requires_grad_() for x in inputs]
    out = linear_attention(phi, *inputs, causal=True)
    truth = log_dense(phi, *inputs, causal=True)
    torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)
    for grad, expected in zip(_gradients(out, inputs), _gradients(truth, inputs), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-8)


def test_features_that_early_keys_lack() -> None:
    """A clustered map: the first block is all of one cluster, so other features have no reference yet."""
    phi = fitted("cluster", dim=4, num_features=16)
    q, k, v = (normal(600, 4, seed=s, scale=0.5) for s in (1, 2, 3))
    k[:300] = k[:1] + 0.01 * k[:300]
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = linear_attention(phi, *inputs, causal=True)
    truth = dense(phi, *inputs, causal=True)
    seen = torch.isfinite(truth).all(-1)
    assert seen.sum() > 300
    torch.testing.assert_close(out[seen], truth[seen], rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(out[seen].square().sum(), inputs)
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("hidden", [1, 100, 300])
def test_a_batch_padded_on_the_left(hidden: int) -> None:
    """One sequence begins in a later block than the other: nothing leaks between their scales."""
    phi = fitted("positive", dim=4, num_features=8)
    inputs = [normal(2, 600, 4, seed=s).requires_grad_() for s in (1, 2, 3)]
    key_mask = torch.ones(2, 600, dtype=torch.bool)
    key_mask[0, :hidden] = False
    out = linear_attention(phi, *inputs, causal=True, key_mask=key_mask)
    weight = normal(600, 4, seed=7)
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    for index, first in ((0, hidden), (1, 0)):
        alone = [x[index, first:].detach().requires_grad_() for x in inputs]
        rows = linear_attention(phi, *alone, causal=True)
        truth = torch.autograd.grad((rows * weight[first:]).sum(), alone)
        for grad, expected in zip(grads, truth, strict=True):
            torch.testing.assert_close(grad[index, first:], expected, rtol=1e-9, atol=1e-9)
            assert (grad[index, :first] == 0).all()


def test_only_what_is_wanted() -> None:
    """Any subset of inputs and parameters may need gradients; out needs none otherwise."""
    phi = fitted("dark", dim=4, num_features=8)
    (matrix,) = phi.parameters()
    inputs = [normal(300, 4, seed=s, scale=0.3) for s in (1, 2, 3)]
    truth = _gradients(
        dense(phi, *(x.requires_grad_() for x in inputs), causal=True), [*inputs, matrix]
    )
    inputs = [x.detach() for x in inputs]
    for index in range(4):
        leaves = [x.clone().requires_grad_(i == index) for i, x in enumerate(inputs)]
        matrix.requires_grad_(index == 3)
        out = linear_attention(phi, *leaves, causal=True)
        (grad,) = _gradients(out, [[*leaves, matrix][index]])
        torch.testing.assert_close(grad, truth[index], rtol=1e-9, atol=1e-10)
    assert not linear_attention(phi.requires_grad_(False), *inputs, causal=True).requires_grad


def test_half_precision_gradients() -> None:
    """Accumulated in float32, returned in the dtype of the input."""
    phi = fitted("positive", dim=8, num_features=32, dtype=torch.float32)
    inputs = [normal(600, 8, seed=s, scale=0.4) for s in (1, 2, 3)]
    for dtype, limit in ((torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        doubles = [x.detach().double().requires_grad_() for x in leaves]
        grads = _gradients(linear_attention(phi, *leaves, causal=True), leaves)
        truth = _gradients(dense(phi, *doubles, causal=True), doubles)
        for grad, expected in zip(grads, truth, strict=True):
            assert grad.dtype == dtype
            assert (grad.double() - expected).norm() < limit * expected.norm()


def test_second_derivatives_over_several_blocks() -> None:
    """By computing the attention again under autograd; equal to those of the dense form."""
    phi = fitted("positive", dim=4, num_features=8)
    inputs = [normal(300, 4, seed=s, scale=0.3).requires_grad_() for s in (1, 2, 3)]
    seconds = []
    for form in (linear_attention, dense):
        out = form(phi, *inputs, causal=True)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for second, expected in zip(*seconds, strict=True):
        torch.testing.assert_close(second, expected, rtol=1e-8, atol=1e-8)


def test_backward_computes_its_features_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for it: inputs, output, denominators and one state a block, no features."""
    length, m, d = 4096, 256, 8
    phi = fitted("positive", dim=d, num_features=m, dtype=torch.float32)
    inputs = [
        normal(length, d, seed=s, scale=0.5, dtype=torch.float32).requires_grad_()
        for s in (1, 2, 3)
    ]
    sizes: list[int] = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = linear_attention(phi, *inputs, causal=True)
    states = length // causal.BLOCK * m * (d + 2)
    assert sum(sizes) <= 4 * length * d + 2 * length + states
    keys = []
    monkeypatch.setattr(
        backward,
        "recorded_features",
        lambda *a, f=backward.recorded_features: keys.append(1) or f(*a),
    )
    out.sum().backward()
    assert len(keys) == length // causal.BLOCK
