"""The counter of elements itself."""

import torch

from tests.structured.allocations import largest_tensor


def test_it_sees_forward_and_backward_and_no_views() -> None:
    x = torch.ones(100, requires_grad=True)
    with largest_tensor() as seen:
        x.sum().backward()
        x.detach().expand(1000, 100)
    assert seen.elements == 100
    with largest_tensor() as seen:
        (x.unsqueeze(0) * x.detach().unsqueeze(1)).sum().backward()
    assert seen.elements == 10_000
