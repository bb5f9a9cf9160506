"""Directions: one draw that maps can share, through copies, pickles, moves and redraws."""

import copy
import pickle

import pytest
import torch
from torch import nn

from bochner.directions import Directions
from bochner.nonlinearities import Hyperbolic, Positive, Trigonometric
from bochner.projections import Antithetic, Orthogonal
from bochner.proposals import GaussianProposal
from bochner.random_features import RandomFeatures
from bochner.request import Request


def request(generator: torch.Generator, m: int = 8, **changes: object) -> Request:
    return Request(dim=3, num_features=m, generator=generator, **changes)


@pytest.mark.parametrize(
    "again",
    [
        lambda pair: pair,
        copy.deepcopy,
        lambda pair: pickle.loads(pickle.dumps(pair)),
        lambda pair: pair.double(),
        lambda pair: pair.to("cpu"),
    ],
    ids=["as made", "deepcopy", "pickle", "double", "to"],
)
def test_what_is_shared_stays_shared(generator, again) -> None:
    first = RandomFeatures(request(generator), Hyperbolic())
    second = RandomFeatures(request(generator), Trigonometric(), directions=first.directions)
    first, second = again(nn.ModuleList([first, second]))
    assert first.directions is second.directions
    before = first.omega.clone()
    second.resample_(generator)
    assert torch.equal(first.omega, second.omega)
    assert not torch.equal(first.omega, before)


def test_rows_up_to_sign(generator) -> None:
    assert Directions(request(generator), 6).independent == (6, False)
    mirrored = request(generator, projection=Antithetic(Orthogonal()))
    assert Directions(mirrored, 6).independent == (3, True)


def test_what_is_refused(generator) -> None:
    shared = Directions(request(generator), 4)
    with pytest.raises(ValueError, match=r"\(count, dim, batch_shape\)=\(4, 3, \(\)\)"):
        RandomFeatures(request(generator), Positive(), directions=shared)
    with pytest.raises(ValueError, match="this map needs"):
        RandomFeatures(request(generator, 4, batch_shape=(2,)), Positive(), directions=shared)
    proposal = GaussianProposal(torch.zeros(3), 2 * torch.eye(3))
    with pytest.raises(ValueError, match="not both"):
        RandomFeatures(request(generator, 4), Positive(), proposal, directions=shared)
    with pytest.raises(ValueError, match="proposal has dim=3"):
        Directions(Request(dim=2, num_features=4), 4, proposal)
