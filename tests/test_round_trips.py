"""Every fitted map survives state_dict, pickle, deepcopy and `model.to`; nothing exact is rounded."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import bochner
from bochner import linear_attention
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from tests.maps import FITTED, NAMES, RANDOM, budget, fitted, normal, seeded


def _map(name: str, seed: int = 0) -> FeatureMap:
    return fitted(name, dim=4, num_features=8, batch_shape=(2,), seed=seed, dtype=torch.float32)


def _same(a: FeatureMap, b: FeatureMap) -> None:
    """Estimates and theory agree, to the last bit."""
    x, y = (normal(2, 9, 4, seed=s, scale=0.4) for s in (1, 2))
    assert torch.equal(a.estimate(x, y), b.estimate(x, y))
    assert torch.equal(a.log_exact(x, y).log_abs, b.log_exact(x, y).log_abs)
    for method in ("relative_variance", "relative_covariance"):
        u, v = getattr(a, method)(x, y), getattr(b, method)(x, y)
        assert (u is None) == (v is None)
        assert u is None or torch.equal(u, v)


@pytest.mark.parametrize("name", NAMES)
def test_pickle_and_deepcopy(name: str) -> None:
    phi = _map(name)
    for twin in (pickle.loads(pickle.dumps(phi)), copy.deepcopy(phi)):
        _same(twin, phi)
        twin.resample_(torch.Generator().manual_seed(5))
        if name in RANDOM:
            assert not torch.equal(twin.draws()[0], phi.draws()[0])
        else:
            _same(twin, phi)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_into_a_map_of_another_seed_and_other_data(name: str) -> None:
    phi, other = _map(name), _map(name, seed=7)
    x = normal(2, 9, 4, seed=1)
    assert not torch.equal(other.estimate(x, x), phi.estimate(x, x))
    file = io.BytesIO()
    torch.save(phi.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    _same(other, phi)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_holds_all_that_is_random_or_fitted(name: str) -> None:
    phi = _map(name)
    state = phi.state_dict().items()  # sizes that are no buffers travel as extra state, copies
    held = {x.data_ptr() for key, x in state if not key.endswith("_extra_state")}
    assert {x.data_ptr() for x in (*phi.buffers(), *phi.parameters())} == held
    assert all(draw.data_ptr() in held for draw in phi.draws())


@pytest.mark.parametrize("name", FITTED)
def test_unfitted_maps_are_copied_too(name: str) -> None:
    """With their generator: the twin, fitted to the same data, is the same map."""
    q, k = (normal(30, 4, seed=s, scale=0.4) for s in (1, 2))
    made = bochner.make(name, dim=4, num_features=budget(name, 8), generator=seeded(3))
    twins = pickle.loads(pickle.dumps(made)), copy.deepcopy(made)
    assert all(isinstance(t, UnfittedMap) for t in twins)
    phi = made.fit(q, k)
    for twin in twins:
        _same(twin.fit(q, k), phi)


class Model(nn.Module):
    """A layer with a feature map inside, as users have it."""

    def __init__(self, phi: FeatureMap) -> None:
        super().__init__()
        self.project, self.phi = nn.Linear(4, 12), phi

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_attention(self.phi, *self.project(x).chunk(3, dim=-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")
def test_model_to_dtype_leaves_directions_and_fitted_matrices_alone(
    name: str, dtype: torch.dtype
) -> None:
    """A rounded A and A^-T would no longer be inverse: the kernel would silently change."""
    model, before = Model(_map(name)), _map(name)
    for change in (lambda m: m.to(dtype), lambda m: m.half(), lambda m: m.to("cpu", dtype)):
        changed = change(copy.deepcopy(model))
        for buffer, kept in zip(changed.phi.buffers(), before.buffers(), strict=True):
            assert buffer.dtype == kept.dtype
            assert torch.equal(buffer, kept)
    model.to(dtype)
    assert model.project.weight.dtype == dtype
    assert all(p.dtype == dtype for p in model.phi.parameters())  # what is trained is cast
    out = model(normal(2, 20, 4, seed=1, dtype=dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    if name != "dark":
        _same(model.phi, before)


@pytest.mark.parametrize("name", NAMES)
def test_exact_transforms_stay_exact_in_a_half_precision_model(name: str) -> None:
    """exact = estimate's mean: transformed and untransformed kernels agree after .to(bfloat16)."""
    phi = Model(_map(name)).to(torch.bfloat16).phi
    x, y = (normal(2, 9, 4, seed=s) for s in (1, 2))
    limit = 0.05 if name == "dark" else 1e-12  # M is a parameter: it is bfloat16 now
    truth = phi.kernel.log(x, y)
    torch.testing.assert_close(phi.log_exact(x, y).log_abs, truth, rtol=limit, atol=limit)


def test_casting_a_model_keeps_gradients_of_parameters() -> None:
    phi = _map("dark")
    phi.estimate(*(normal(2, 9, 4, seed=s, dtype=torch.float32) for s in (1, 2))).sum().backward()
    phi.to(torch.float64)
    (matrix,) = phi.parameters()
    assert matrix.dtype == matrix.grad.dtype == torch.float64
    phi.half()
    assert matrix.dtype == matrix.grad.dtype == torch.float16


def test_meta_device_and_back() -> None:
    """`to_empty` and `share_memory` go through the same hook."""
    phi = fitted("data-aware", dim=4, num_features=8)
    assert all(b.is_meta for b in copy.deepcopy(phi).to("meta").buffers())
    empty = copy.deepcopy(phi).to("meta").to_empty(device="cpu")
    empty.load_state_dict(phi.state_dict())
    x = normal(9, 4, seed=1)
    assert torch.equal(empty.estimate(x, x), phi.estimate(x, x))
    assert all(b.is_shared() for b in copy.deepcopy(phi).share_memory().buffers())
