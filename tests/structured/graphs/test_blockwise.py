"""Dense blocks one after another: the same messages as the transitions themselves, and maxima of sums."""

import pytest
import torch

from bochner.structured import LogSum, LowRank, Max, Sum
from bochner.structured.graphs import blockwise
from bochner.structured.graphs.blockwise import Blockwise, row_slices
from tests.structured.graph_cases import normal, seeded


@pytest.mark.parametrize("semiring", [Sum(), LogSum(), Max()])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_against_dense_products(semiring, batch, monkeypatch) -> None:
    monkeypatch.setattr(blockwise, "_ELEMENTS", 20)
    g = seeded(0)
    left, right = normal(2, *batch, 2, 7, 3, generator=g, spread=3.0)
    given = LowRank(left, right)
    blocks = Blockwise(given)
    message = semiring.lift(normal(2, 7, generator=g, spread=3.0))
    table = torch.logsumexp(left.unsqueeze(-2) + right.unsqueeze(-3), -1)[..., 1, :, :]
    join = torch.amax if isinstance(semiring, Max) else torch.logsumexp
    values = message.log + message.scale.unsqueeze(-1)
    for found, expected in (
        (blocks.forward(semiring, message, 3), join(values.unsqueeze(-1) + table, -2)),
        (blocks.backward(semiring, message, 3), join(values.unsqueeze(-2) + table, -1)),
    ):
        torch.testing.assert_close(found.log + found.scale.unsqueeze(-1), expected)
    again = blocks.with_tensors([t + 1 for t in blocks.tensors()])
    torch.testing.assert_close(again.log_block(1, slice(2, 4)), table[..., 2:4, :] + 2)


def test_the_rest_is_the_given_transitions() -> None:
    g = seeded(1)
    given = LowRank(*normal(2, 2, 5, 3, generator=g))
    blocks, states = Blockwise(given), torch.tensor([[0, 4], [3, 1]])
    found, expected = (t.log_potential(states, states.flip(0)) for t in (blocks, given))
    torch.testing.assert_close(found, expected)
    logs = normal(4, 5, generator=g)
    found, expected = (t.bilinear(logs, logs.flip(0)) for t in (blocks, given))
    torch.testing.assert_close(found, expected)


def test_slices_cover_every_row(monkeypatch) -> None:
    monkeypatch.setattr(blockwise, "_ELEMENTS", 100)
    rows = row_slices(30, 1)
    assert [row for part in rows for row in range(30)[part]] == list(range(30))
    assert all(part.stop - part.start == 3 for part in rows)
