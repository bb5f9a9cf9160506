"""Which kernel is exact inside a window: the one that the map stands for."""

import pytest
import torch

from bochner import linear_attention, measure
from bochner.algebra import Constant
from bochner.attention import ExactWindow
from bochner.attention.window_pairs import WindowPairs
from tests.attention.dense_window import dense_window, exact_pairs, sink_columns
from tests.maps import NAMES, fitted, normal


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("name", NAMES)
def test_log_kernel_is_the_mean_of_the_estimate(name: str, kernel: str) -> None:
    phi = fitted(name, dim=4, num_features=8, kernel=kernel)
    x, y = (normal(7, 4, seed=s, scale=0.5) for s in (1, 2))
    logs = phi.log_kernel(x, y)
    torch.testing.assert_close(logs, phi.log_exact(x, y).log_abs, rtol=1e-9, atol=1e-9)
    assert phi.log_kernel(x.float(), y.float()).dtype == torch.float32


def test_a_trained_kernel_moves_the_exact_pairs() -> None:
    """With M = 2 I the kernel is exp(4 q.k), also inside the window; M gets gradients from there."""
    phi = fitted("dark", dim=4, num_features=8)
    (matrix,) = phi.parameters()
    with torch.no_grad():
        matrix.mul_(2.0)
    assert phi.changes_kernel
    q, k, v = (normal(20, 4, seed=s, scale=0.3) for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, exact=ExactWindow(100, 0))
    weights = torch.softmax(phi.log_exact(q, k).log_abs, dim=-1)
    torch.testing.assert_close(out, weights @ v)
    assert (weights - torch.softmax(q @ k.mT, dim=-1)).abs().max() > 0.01
    (grad,) = torch.autograd.grad(out.square().sum(), phi.parameters())
    assert grad.abs().max() > 1e-4


def test_expressions() -> None:
    """Weights, sums and products stand for what they estimate; hybrids for the kernel."""
    x, y = (normal(5, 4, seed=s, scale=0.5) for s in (1, 2))
    a = fitted("positive", dim=4, num_features=6, seed=1)
    b = fitted("trigonometric", dim=4, num_features=4, seed=2)
    logits = x @ y.mT
    for phi, truth in (
        (3.0 * a, logits + torch.tensor(3.0).double().log()),
        (a + b, logits + torch.tensor(2.0).double().log()),
        (a * b, 2 * logits),
        (0.5 * a + 0.5 * b, logits),
        (a - 0.5 * b, logits - torch.tensor(2.0).double().log()),
        (Constant(4), logits),
        (fitted("angular", dim=4, num_features=16), logits),
    ):
        torch.testing.assert_close(phi.log_kernel(x, y), truth)
    assert not fitted("angular", dim=4, num_features=16).changes_kernel
    assert (a + b).changes_kernel
    with pytest.raises(ValueError, match="not positive"):
        (-a).log_kernel(x, y)
    with pytest.raises(ValueError, match="Sum estimates values that are not positive"):
        linear_attention(0.5 * a - b, x, y, y, exact=ExactWindow(2, 0))


@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
@pytest.mark.parametrize("causal", [False, True])
def test_a_weighted_map_is_that_map_inside_and_outside(causal: bool) -> None:
    """A common factor cancels, so that exact pairs must have it too."""
    phi, exact = fitted("positive", dim=4, num_features=6), ExactWindow(9, 2)
    q, k, v = (normal(150, 4, seed=s, scale=0.5) for s in (1, 2, 3))
    plain = linear_attention(phi, q, k, v, causal=causal, exact=exact)
    scaled = linear_attention(7.0 * phi, q, k, v, causal=causal, exact=exact)
    torch.testing.assert_close(plain, scaled)


@pytest.mark.parametrize("causal", [False, True])
def test_pairs_for_diagnostics_are_those_of_the_engine(causal: bool) -> None:
    phi, exact = fitted("positive", dim=4, num_features=6), ExactWindow(6, 3)
    q, k = (normal(2, 40, 4, seed=s) for s in (1, 2))
    pairs = WindowPairs.of(exact, phi, q, k, causal=causal)
    shown = torch.ones(2, 40, dtype=torch.bool)
    columns = sink_columns(exact, (q @ k.mT).unsqueeze(-3), shown, causal=causal)
    truth = exact_pairs(exact, 40, 40, causal=causal, sinks=columns)
    found = torch.cat([pairs.rows(slice(s, s + 10)).expand(2, -1, -1) for s in range(0, 40, 10)], 1)
    assert torch.equal(found, truth)


@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exact", [ExactWindow(6, 3), ExactWindow(0, 3), ExactWindow(4, 1, 0.0)])
@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_measure_reports_the_error_of_the_window(
    name: str, exact: ExactWindow, causal: bool
) -> None:
    """The output error of linear_attention itself, draw for draw; float64."""
    phi = fitted(name, dim=4, num_features=8, batch_shape=(3,))
    q, k, v = (normal(3, 60, 4, seed=s, scale=0.8) for s in (1, 2, 3))
    seen = torch.ones(60, 60, dtype=torch.bool)
    logits = (q @ k.mT).masked_fill(~(seen.tril() if causal else seen), -torch.inf)
    truth = torch.softmax(logits, dim=-1) @ v
    generator = torch.Generator().manual_seed(3)
    report = measure(phi, q, k, v, causal=causal, exact=exact, num_redraws=3, generator=generator)
    generator = torch.Generator().manual_seed(3)
    for draw in range(3):
        phi.resample_(generator)
        out = linear_attention(phi, q, k, v, causal=causal, exact=exact)
        if exact.denominator_floor is None:
            torch.testing.assert_close(out, dense_window(phi, exact, q, k, v, causal=causal))
        error = (out - truth).norm(dim=(-1, -2)) / truth.norm(dim=(-1, -2))
        torch.testing.assert_close(report.per_head["output"][draw], error)


def test_measure_finds_nothing_wrong_with_a_window_over_everything() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = (normal(60, 4, seed=s) for s in (1, 2, 3))
    report = measure(phi, q, k, v, exact=ExactWindow(200, 0), num_redraws=2)
    assert report.kernel_error.value == 0
    assert report.output_error.value < 1e-12
