"""First and second derivatives: right everywhere, finite at the extremes."""

from itertools import product

import pytest
import torch
from torch import Tensor

from bochner import linear_attention
from bochner.feature_map import FeatureMap
from tests.attention.dense import dense, log_dense
from tests.maps import NAMES, POSITIVE, fitted, normal, on_sphere

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens already cross two block boundaries, in both forms."""
    monkeypatch.setattr("bochner.attention.state.CAUSAL_BLOCK", 2)
    monkeypatch.setattr("bochner.attention.bidirectional.BLOCK", 2)
    monkeypatch.setattr("bochner.attention.bidirectional.CAUSAL_BLOCK", 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equal_those_of_dense_attention(name: str, causal: bool) -> None:
    phi = fitted(name, dim=4, num_features=8)
    inputs = [normal(2, 70, 4, seed=s, scale=0.3).requires_grad_() for s in (1, 2, 3)]
    weight = normal(2, 70, 4, seed=4)
    grads, truth = (
        torch.autograd.grad((form(phi, *inputs, causal=causal) * weight).sum(), inputs)
        for form in (linear_attention, dense)
    )
    for grad, expected in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric", "data-aware", "dark"])
def test_first_and_second_derivatives(name: str, causal: bool) -> None:
    """Against finite differences, also in dark's trained matrix M."""
    phi = fitted(name, dim=2, num_features=4)
    inputs = [normal(5, 2, seed=s, scale=0.3).requires_grad_() for s in (1, 2, 3)]
    parameters = list(phi.parameters())

    def attend(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        return linear_attention(phi, q, k, v, causal=causal)

    assert torch.autograd.gradcheck(attend, (*inputs, *parameters))
    assert torch.autograd.gradgradcheck(attend, (*inputs, *parameters))
    assert len(parameters) == (name == "dark")


@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_dark_learns(batch_shape: tuple[int, ...]) -> None:
    """A few steps on M lower the error against exact attention; M is one matrix per head."""
    phi = fitted("dark", dim=4, num_features=16, batch_shape=batch_shape, dtype=torch.float32)
    (matrix,) = phi.parameters()
    assert matrix.shape == (*batch_shape, 4, 4)
    q, k, v = (normal(*batch_shape, 60, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    exact = torch.softmax(q @ k.mT, dim=-1) @ v
    optimizer, losses = torch.optim.Adam(phi.parameters(), lr=0.02), []
    for _ in range(20):
        loss = (linear_attention(phi, q, k, v) - exact).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def _grads(form, phi: FeatureMap, inputs: list[Tensor], *, causal: bool) -> tuple[Tensor, ...]:
    out = form(phi, *inputs, causal=causal)
    weight = normal(*out.shape, seed=4, dtype=out.dtype)
    return torch.autograd.grad((out * weight).sum(), inputs, create_graph=True)


EXTREMES = [
    (0.0, torch.float32, 1e-5),
    (1e-4, torch.float32, 1e-5),
    (30.0, torch.float32, 5e-4),
    (80.0, torch.float32, 5e-3),
    (30.0, torch.float64, 1e-11),
    (80.0, torch.float64, 1e-10),
    (30.0, torch.bfloat16, 2e-2),  # the gradient itself is rounded to 8 bits
    (80.0, torch.bfloat16, 2e-2),
]


@pytest.mark.parametrize(("norm", "dtype", "tolerance"), EXTREMES)
@pytest.mark.parametrize("name", ["positive", "hyperbolic", "data-aware"])
@pytest.mark.parametrize("causal", [False, True])
def test_right_at_the_extremes(
    name: str, causal: bool, norm: float, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative to the largest entry, or to 1; the truth is log-domain attention in float64."""
    phi = fitted(name, dim=8, num_features=32, dtype=torch.float32)
    points = [on_sphere(90, 8, norm=norm, seed=s) for s in (1, 2)] + [normal(90, 8, seed=3)]
    inputs = [x.to(dtype).requires_grad_() for x in points]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    grads = _grads(linear_attention, phi, inputs, causal=causal)
    truth = _grads(log_dense, phi, doubles, causal=causal)
    for grad, expected in zip(grads, truth, strict=True):
        assert torch.isfinite(grad).all()
        assert (grad.double() - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(
            1
        )


@pytest.mark.parametrize("norm", [0.0, 1e-4, 5.0, 12.0, 30.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", POSITIVE)
def test_second_derivatives_are_finite_at_the_extremes(
    name: str, dtype: torch.dtype, norm: float
) -> None:
    phi = fitted(name, dim=8, num_features=16, dtype=torch.float32)
    points = [on_sphere(70, 8, norm=norm, seed=s) for s in (1, 2)] + [normal(70, 8, seed=3)]
    inputs = [x.to(dtype).requires_grad_() for x in points]
    for causal in (False, True):
        first = _grads(linear_attention, phi, inputs, causal=causal)
        for second in torch.autograd.grad(sum(g.square().sum() for g in first), inputs):
            assert torch.isfinite(second).all()


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("name", NAMES)
def test_estimates_differentiate(name: str, kernel: str) -> None:
    phi = fitted(name, dim=2, num_features=4, kernel=kernel)
    x, y = (normal(3, 2, seed=s, scale=0.5).requires_grad_() for s in (1, 2))
    for function in (phi.estimate, lambda x, y: phi.log_estimate(x, y).log_abs):
        assert torch.autograd.gradcheck(function, (x, y))
        assert torch.autograd.gradgradcheck(function, (x, y))


def test_the_exact_kernels_differentiate() -> None:
    """Also where x = y, where a distance has no derivative but its square does."""
    x = normal(3, 2, seed=1).requires_grad_()
    y = torch.cat((x.detach()[:1], normal(2, 2, seed=2))).requires_grad_()
    for name in ("positive", "trigonometric"):
        for kernel in ("softmax", "gaussian"):
            phi = fitted(name, dim=2, num_features=4, kernel=kernel)
            assert torch.autograd.gradcheck(phi.kernel, (x, y))


def test_inputs_keep_their_values_and_requires_grad() -> None:
    for name, wanted in product(NAMES, (False, True)):
        phi = fitted(name, dim=4, num_features=8)
        inputs = [normal(70, 4, seed=s, scale=0.3).requires_grad_(wanted) for s in (1, 2, 3)]
        kept = [x.detach().clone() for x in inputs]
        for causal in (False, True):
            out = linear_attention(phi, *inputs, causal=causal, key_mask=torch.arange(70) != 3)
            assert out.requires_grad == (wanted or name == "dark")
        phi.estimate(*inputs[:2])
        phi.relative_variance(*inputs[:2])
        for x, before in zip(inputs, kept, strict=True):
            assert torch.equal(x, before)
            assert x.requires_grad == wanted
            assert x.grad is None
