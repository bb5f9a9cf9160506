"""torch.compile gives what eager execution gives; graph breaks are allowed."""

from shutil import which

import pytest
import torch
from torch import Tensor

from bochner import AttentionState, linear_attention, step
from tests.maps import fitted, normal

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    """Compiled code of other tests does not count."""
    torch.compiler.reset()


def _inputs(length: int, scale: float = 0.4) -> list[Tensor]:
    return [normal(2, length, 4, seed=s, scale=scale, dtype=torch.float32) for s in (1, 2, 3)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "data-aware", "trigonometric"])
def test_forward(name: str, causal: bool) -> None:
    phi = fitted(name, dim=4, num_features=8, dtype=torch.float32)
    compiled = torch.compile(linear_attention, backend="eager")
    for length in (1, 70) if name == "positive" else (70,):
        q, k, v = _inputs(length)
        key_mask = torch.arange(length) != 5
        for mask in (None, key_mask):
            out = compiled(phi, q, k, v, causal=causal, key_mask=mask)
            truth = linear_attention(phi, q, k, v, causal=causal, key_mask=mask)
            torch.testing.assert_close(out, truth)


def test_pairs_that_underflow_are_not_lost() -> None:
    phi = fitted("positive", dim=4, num_features=16, dtype=torch.float32)
    q, k, v = _inputs(70, scale=20.0)
    out = torch.compile(linear_attention, backend="eager")(phi, q, k, v, causal=True)
    eager = linear_attention(
        phi, q, k, v, causal=True
    )  # compiled, all scores go through logarithms
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-4)


def test_streaming() -> None:
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    compiled, (q, k, v) = torch.compile(step, backend="eager"), _inputs(6)
    state, outputs = AttentionState(phi), []
    for token in range(6):
        rows = slice(token, token + 1)
        out, state = compiled(state, q[:, rows], k[:, rows], v[:, rows])
        outputs.append(out)
    truth = linear_attention(phi, q, k, v, causal=True)
    torch.testing.assert_close(torch.cat(outputs, dim=1), truth)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal: bool) -> None:
    """Through aot_autograd, in the inputs and in dark's trained matrix."""
    phi = fitted("dark", dim=4, num_features=8, dtype=torch.float32)
    compiled = torch.compile(linear_attention, backend="aot_eager")
    inputs = [x.requires_grad_() for x in _inputs(70)]
    wanted = [*inputs, *phi.parameters()]
    grads, truth = (
        torch.autograd.grad(form(phi, *inputs, causal=causal).square().sum(), wanted)
        for form in (compiled, linear_attention)
    )
    for grad, expected in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not which("g++") and not which("clang++"), reason="needs a C++ compiler")
def test_inductor() -> None:
    """The default backend: code is generated and built."""
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    q, k, v = _inputs(70)
    out = torch.compile(linear_attention)(phi, q, k, v)
    torch.testing.assert_close(out, linear_attention(phi, q, k, v))


def test_a_feature_map_compiles_as_a_module() -> None:
    phi = fitted("data-aware", dim=4, num_features=8, dtype=torch.float32)
    x, y, _ = _inputs(20)
    torch.testing.assert_close(torch.compile(phi, backend="eager")(x, y), phi(x, y))


class Attention(torch.nn.Module):
    """What torch.export takes."""

    def __init__(self, name: str, *, causal: bool) -> None:
        super().__init__()
        self.phi = fitted(name, dim=4, num_features=8, dtype=torch.float32)
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(self.phi, q, k, v, causal=self.causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "data-aware", "trigonometric"])
def test_export(name: str, causal: bool) -> None:
    """A program without Python, at the lengths of its example."""
    attention, inputs = Attention(name, causal=causal), _inputs(150)
    program = torch.export.export(attention, tuple(inputs))
    others = [normal(2, 150, 4, seed=s, scale=0.4, dtype=torch.float32) for s in (4, 5, 6)]
    for x in (inputs, others):
        torch.testing.assert_close(program.module()(*x), attention(*x))
