"""Dtypes, autocast and memory."""

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bochner import AttentionState, describe, linear_attention, make, measure, predict, step
from bochner.features import log_inner
from bochner.landmarks import LandmarkFeatures, LandmarkSide
from bochner.request import Request
from tests.attention.dense import dense
from tests.maps import FITTED, NAMES, budget, fitted, normal, on_sphere, seeded

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")

ROUNDING = {
    torch.float16: 2e-3,  # that of the output: features and sums are float32
    torch.bfloat16: 1.6e-2,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype(name: str, causal: bool, dtype: torch.dtype) -> None:
    """Against float64 attention of the same rounded inputs; the output has the dtype of v."""
    phi = fitted(name, dim=4, num_features=64, dtype=torch.float32)
    q, k, v = (normal(90, 4, seed=s, scale=0.4, dtype=dtype) for s in (1, 2, 3))
    out = linear_attention(phi, q, k, v, causal=causal)
    assert out.dtype == dtype
    truth = dense(phi, q, k, v, causal=causal)
    # a signed denominator may be small; then rounding is divided by it
    kernel = phi.estimate(q.double(), k.double()).detach()
    condition = float((kernel.abs().sum(-1) / kernel.sum(-1).abs()).max())
    limit = ROUNDING[dtype] * (1.0 if phi.positive or causal is False else condition)
    if not phi.draws():  # fitted matrices: the features themselves are sums that cancel
        limit = ROUNDING[dtype] * 10.0 * condition
    torch.testing.assert_close(out.double(), truth, rtol=limit, atol=limit)


@pytest.mark.parametrize("causal", [False, True])
def test_values_of_another_dtype(causal: bool) -> None:
    """The output has the dtype of v; float64 anywhere is computed in float64."""
    phi = fitted("positive", dim=4, num_features=8)
    q, k, v = (normal(70, 4, seed=s) for s in (1, 2, 3))
    truth = linear_attention(phi, q, k, v, causal=causal)
    for points, values in (
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
    ):
        out = linear_attention(phi, q.to(points), k.to(points), v.to(values), causal=causal)
        assert out.dtype == values
        limit = 0.1 if torch.finfo(points).bits == 16 else 2 * torch.finfo(values).eps ** 0.9 + 1e-5
        torch.testing.assert_close(out.double(), truth, rtol=limit, atol=limit)


def test_half_precision_features_are_computed_in_float32() -> None:
    phi = make("positive", dim=4, num_features=8, generator=seeded(0))
    x = normal(5, 4, seed=1, scale=3.0)
    for dtype in (torch.float16, torch.bfloat16):
        features, truth = phi.query(x.to(dtype)), phi.query(x.to(dtype).double())
        assert features.log_values.dtype == features.log_scale.dtype == torch.float32
        assert (features.log_values - truth.log_values).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing_inside(name: str) -> None:
    """Linear layers hand over bfloat16; features, sums, estimates and fits stay in float32."""
    phi = fitted(name, dim=4, num_features=8, dtype=torch.float32)
    q, k, v = (normal(70, 4, seed=s, scale=0.4, dtype=torch.float32) for s in (1, 2, 3))

    def everything() -> list[Tensor]:
        state = AttentionState(phi)
        return [
            linear_attention(phi, q, k, v),
            linear_attention(phi, q, k, v, causal=True),
            step(state, q, k, v)[0],
            phi.estimate(q, k),
            phi.log_estimate(q, k).log_abs,
            phi.log_exact(q, k).log_abs,
            fitted(name, dim=4, num_features=8, dtype=torch.float32).estimate(q, k),
            measure(phi, q, k, v, num_redraws=2, generator=seeded(1)).per_head["output"],
            *([] if (predicted := predict(phi, q, k, v)) is None else [predicted.per_head]),
            torch.tensor(describe(q, k).entropy),
        ]

    plain = everything()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            cast = everything()
        for inside, outside in zip(cast, plain, strict=True):
            assert inside.dtype == outside.dtype
            assert torch.equal(inside, outside)


@pytest.mark.parametrize("name", FITTED)
def test_fitting_under_autocast(name: str) -> None:
    """Calibration data come from a model that runs under autocast."""
    q, k = (normal(70, 4, seed=s, dtype=torch.float32) for s in (1, 2))
    m = budget(name, 8)
    plain = make(name, dim=4, num_features=m, generator=seeded(0)).fit(q, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = make(name, dim=4, num_features=m, generator=seeded(0)).fit(q, k)
    for key, value in plain.state_dict().items():
        assert torch.equal(cast.state_dict()[key], value), key


def test_gaussian_features_do_not_cancel_at_large_norms() -> None:
    """exp(|x|^2/2) exp(-|x|^2/2) = 1 is never formed: at |x| = 80, K(x, x) = 1 to float32's rounding.

    Added one after the other, the two halves of 3,200 would leave an error of 1e-4.
    """
    phi = make("trigonometric", dim=4, num_features=64, kernel="gaussian", generator=seeded(0))
    x = on_sphere(50, 4, norm=80.0, seed=1).float()
    assert (phi.estimate(x, x).diagonal() - 1).abs().max() < 1e-5
    assert phi.query(x).log_scale.unique().numel() == 1
    y = x + 0.1 * normal(50, 4, seed=2).float()
    single, double = phi.estimate(x, y), phi.estimate(x.double(), y.double())
    assert (single - double).abs().max() < 2e-4  # what rounding x . omega, about 300, leaves


def test_a_layer_under_autocast_trains() -> None:
    """Projections in bfloat16, attention in float32, output in bfloat16, gradients in float32."""
    phi = make("positive", dim=8, num_features=16, generator=seeded(0))
    layer = torch.nn.Linear(8, 24)
    x = normal(2, 70, 8, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_attention(phi, *layer(x).chunk(3, dim=-1), causal=True)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert torch.isfinite(layer.weight.grad).all()
    q, k, v = layer(x).chunk(3, dim=-1)
    truth = linear_attention(phi, q, k, v, causal=True)
    assert (out - truth).norm() / truth.norm() < 0.03


class Memory(TorchDispatchMode):
    """Bytes alive beside what there was before, and the largest tensor, over all operations."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in inputs}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.alive = {key: ref for key, ref in self.alive.items() if not ref[0].expired()}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (key := x.untyped_storage()._cdata) not in self.known:
                self.alive[key] = StorageWeakRef(x.untyped_storage()), x.untyped_storage().nbytes()
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def _memory(name: str, length: int, m: int, *, causal: bool, norm: float) -> Memory:
    phi = fitted(name, dim=16, num_features=m, dtype=torch.float32)
    q, k = (on_sphere(length, 16, norm=norm, seed=s).float() for s in (1, 2))
    v = normal(length, 16, seed=3, dtype=torch.float32)
    memory = Memory(q, k, v, *phi.buffers())
    with memory, torch.no_grad():
        linear_attention(phi, q, k, v, causal=causal)
    return memory


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "data-aware", "trigonometric"])
def test_memory_is_linear_with_a_constant_of_the_output(name: str, causal: bool) -> None:
    """At L = 8,192, m = 128 no tensor is larger than v: neither [L, L] nor [L, m] exists."""
    long = _memory(name, 8192, 128, causal=causal, norm=1.0)
    values = 8192 * 16 * 4
    assert long.largest <= values
    short = _memory(name, 4096, 128, causal=causal, norm=1.0)
    growth = long.peak - short.peak
    assert growth <= 4 * (values // 2), "more than four tensors of the size of v"
    assert long.peak <= 4 * values + 20 * 256 * 128 * 4


def test_memory_of_the_log_domain_rescue() -> None:
    """At norm 80 most pairs of a causal block underflow and are summed again, a few MB at a time."""
    memory = _memory("positive", 2048, 128, causal=True, norm=80.0)
    assert memory.largest <= 16 * 2**20
    phi = fitted("positive", dim=16, num_features=256, dtype=torch.float32)
    queries, keys = (phi.query(on_sphere(500, 16, norm=80.0, seed=s).float()) for s in (1, 2))
    memory = Memory(queries.log_values, keys.log_values)
    with memory, torch.no_grad():
        log_inner(queries, keys)
    assert memory.largest <= 16 * 2**20
    assert memory.peak <= 80 * 2**20


def test_the_rescue_loses_no_pair() -> None:
    """Rows whose large features lie apart: the product of the values is 0 in float32, K is not."""
    phi = fitted("positive", dim=4, num_features=16, dtype=torch.float32)
    x, y = (on_sphere(40, 4, norm=60.0, seed=s) for s in (1, 2))
    queries, keys = phi.query(x.float()), phi.key(y.float())
    lost = (queries.values @ keys.values.mT == 0).double().mean()
    assert 0.1 < lost < 0.9
    truth = phi.log_estimate(x, y).log_abs
    assert torch.isfinite(truth).all()
    assert (log_inner(queries, keys).log_abs - truth).abs().max() < 1e-3
    where = normal(40, 40, seed=3) > 0
    some = log_inner(queries, keys, where=where).log_abs
    assert torch.equal(some[where], log_inner(queries, keys).log_abs[where])
    assert torch.isneginf(some[~where]).all()


@pytest.mark.parametrize("causal", [False, True])
def test_signed_products_that_no_float32_holds_count(causal: bool) -> None:
    # values (1, e^-60, e^-120) . (e^-120, e^-60, 1): three terms of e^-120, and a kernel of 3
    points, matrix = torch.tensor([[1.0], [0.0], [-1.0]]), torch.eye(3)
    side = LandmarkSide(points, torch.zeros(3), matrix)
    phi = LandmarkFeatures(Request(dim=1, num_features=3), side, side)
    q, k = torch.tensor([[60.0], [0.5]]), torch.tensor([[-60.0], [-59.5]])
    v = torch.tensor([[2.0], [3.0]])
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = linear_attention(phi, q, k, v, causal=causal)
    truth = dense(phi, q, k, v, causal=causal)
    torch.testing.assert_close(out.double(), truth, rtol=1e-4, atol=0.0)
    weights = torch.tensor([[1.0], [2.0]])
    found = torch.autograd.grad((out * weights).sum(), leaves)
    known = torch.autograd.grad((truth * weights).sum(), leaves)
    for ours, theirs in zip(found, known, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
