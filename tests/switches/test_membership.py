"""Membership switches: one pair of clusters each, a partition of unity together."""

import math

import pytest
import torch

from bochner.request import Request
from bochner.switches import MembershipSwitch


def test_all_pairs_add_up_to_one_and_each_is_zero_or_one(generator) -> None:
    centres = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    others = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    request = Request(dim=3, num_features=1)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (6, 7))
    nearest = [torch.cdist(p, c).argmin(-1) for p, c in ((x, centres), (y, others))]
    total = torch.zeros(6, 7, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            switch = MembershipSwitch(request, centres, others, index=(i, j))
            truth = ((nearest[0] == i).unsqueeze(-1) & (nearest[1] == j)).double()
            assert torch.equal(switch.estimate(x, y), truth)
            assert torch.equal(switch.mean(x, y), truth)
            assert not switch.variance(x, y).any()
            assert switch.draws() == []
            total += truth
    assert torch.equal(total, torch.ones_like(total))


def test_centres_per_head(generator) -> None:
    centres = torch.randn(4, 2, 3, generator=generator)
    switch = MembershipSwitch(
        Request(dim=3, num_features=1, batch_shape=(4,)), centres, centres.flip(0), index=(0, 1)
    )
    x = torch.randn(2, 4, 5, 3, generator=generator)
    for head in range(4):
        single = MembershipSwitch(
            Request(dim=3, num_features=1), centres[head], centres[3 - head], index=(0, 1)
        )
        assert torch.equal(switch.estimate(x, x)[:, head], single.estimate(x[:, head], x[:, head]))


def test_what_is_refused() -> None:
    request, centres = Request(dim=3, num_features=1), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="key_centres has shape"):
        MembershipSwitch(request, centres, torch.zeros(2, 4), index=(0, 0))
    with pytest.raises(ValueError, match="out of range"):
        MembershipSwitch(request, centres, centres, index=(0, 2))
    with pytest.raises(ValueError, match="query_centres has shape"):
        MembershipSwitch(request, torch.zeros(5, 2, 3), centres, index=(0, 0))
    with pytest.raises(ValueError, match="query_centres .* NaN"):
        MembershipSwitch(request, centres * math.nan, centres, index=(0, 0))
