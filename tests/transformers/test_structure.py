"""A map described and rebuilt is the same map."""

import json

import pytest
import torch
from torch import nn

import bochner
from bochner import NotFittedError
from bochner.catalog import specs
from bochner.transformers.structure import describe, rebuild
from tests.maps import NAMES, fitted


def round_trip(phi):
    description, tensors = describe(phi)
    return rebuild(json.loads(json.dumps(description)), tensors)


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("name", NAMES)
def test_every_map_of_the_catalogue(name, kernel):
    phi = fitted(name, dim=4, num_features=20, kernel=kernel)
    again = round_trip(phi)
    x, y = (torch.randn(5, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(again.estimate(x, y), phi.estimate(x, y))
    assert repr(again) == repr(phi)
    assert [n for n, _ in again.named_modules()] == [n for n, _ in phi.named_modules()]
    assert list(again.state_dict()) == list(phi.state_dict())
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in phi.parameters()
    ]
    redrawn = (m.resample_(torch.Generator().manual_seed(7)).estimate(x, y) for m in (phi, again))
    assert torch.equal(*redrawn)


def test_expressions_keep_what_they_share():
    g = torch.Generator().manual_seed(0)
    phi = bochner.make("positive", dim=3, num_features=8, generator=g)
    shared = phi + 2.0 * phi
    again = round_trip(shared)
    x = torch.randn(4, 3, generator=g)
    assert torch.equal(again.estimate(x, x), shared.estimate(x, x))
    assert len(list(again.modules())) == len(list(shared.modules()))


@pytest.mark.parametrize("name", [n for n, s in specs().items() if n in ("dark", "calibrated")])
def test_maps_without_data_stay_so(name):
    phi = bochner.make(name, dim=4, num_features=16, generator=torch.Generator().manual_seed(3))
    again = round_trip(phi)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(NotFittedError):
        again.estimate(x, x)
    assert torch.equal(again.fit(x, x).estimate(x, x), phi.fit(x, x).estimate(x, x))


class Foreign(nn.Module):
    """No class of bochner."""


def test_classes_of_others_are_neither_written_nor_read():
    phi = bochner.make("positive", dim=3, num_features=8)
    phi.add_module("extra", Foreign())
    with pytest.raises(ValueError, match=r"Foreign cannot be saved; expected classes of bochner"):
        describe(phi)
    description, tensors = describe(bochner.make("positive", dim=3, num_features=8))
    for name, said in (
        ("os:system", "expected one of"),
        ("subprocess:Popen", "expected one of"),
        ("bochner.kernels:Softmax", "is no module"),
        ("bochner.kernels:Nothing", "does not have"),
        ("bochner.catalog:make", "is no class"),
    ):
        with pytest.raises(ValueError, match=said):
            rebuild(description | {"class": name}, tensors)
    with pytest.raises(ValueError, match="missing"):
        rebuild(description, {})


def test_functions_are_not_written():
    phi = bochner.make("positive", dim=3, num_features=8)
    phi.note = lambda x: x
    with pytest.raises(ValueError, match=r"note is <function.*cannot be saved"):
        describe(phi)
