"""Products of messages where they meet, with and without one of them, and edges that travel together."""

import math

import torch

from bochner.structured import Dense, LogSum, LowRank, Message, Sum
from bochner.structured.graphs.meeting import Meeting, along, joined, rows_of
from tests.structured.graph_cases import normal, seeded


def test_all_and_others_keep_scales_forbidden_states_and_losses() -> None:
    log = torch.tensor([[0.0, -1.0, -math.inf], [-2.0, 0.0, -1.0], [0.0, 0.0, -5.0]]).double()
    given = Message(log, torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([True, False, False]))
    meeting = Meeting(given, torch.tensor([1, 1, 0]), 3)
    every, others = meeting.all(), meeting.others()
    expected = torch.tensor([[0.0, 0.0, -5.0], [-2.0, -1.0, -math.inf], [0.0, 0.0, 0.0]]).double()
    whole = expected + torch.tensor([[4.0], [3.0], [0.0]])
    torch.testing.assert_close(every.log + every.scale.unsqueeze(-1), whole)
    assert every.lost.tolist() == [False, True, False]
    rest = torch.stack([log[1] + 2.0, log[0] + 1.0, torch.zeros(3)])
    torch.testing.assert_close(others.log + others.scale.unsqueeze(-1), rest)
    assert others.lost.tolist() == [False, True, False]


def test_doubts_bound_the_product() -> None:
    log = torch.tensor([[0.0, -60.0], [-50.0, 0.0]]).double()
    doubt = torch.tensor([[-math.inf, -45.0], [-45.0, -math.inf]]).double()
    given = Message(log, torch.zeros(2).double(), None, doubt)
    product = Meeting(given, torch.zeros(2, dtype=torch.long), 1).all()
    upper = product.doubt + product.scale.unsqueeze(-1)
    torch.testing.assert_close(upper, torch.tensor([[-45.0, -45.0]]).double())
    assert bool(Sum().settled(product).lost)


def test_leaving_one_out_of_many_costs_no_digits() -> None:
    logs = -1e4 * torch.rand(300, 4, generator=seeded(0))
    given = Message(logs, torch.zeros(300).double())
    found = Meeting(given, torch.zeros(300, dtype=torch.long), 1).others()
    expected = logs.double().sum(0) - logs.double()
    value = found.log.double() + found.scale.unsqueeze(-1)
    top = expected.amax(-1, keepdim=True)
    torch.testing.assert_close(value - top, expected - top, rtol=1e-6, atol=1e-6)


def test_edges_travel_by_block_and_by_element() -> None:
    g = seeded(1)
    semiring, edges = LogSum(), torch.tensor([4, 0, 3, 1, 2])
    message = Message(normal(5, 2, 3, generator=g), normal(5, 2, generator=g))
    shared = Dense(normal(3, 3, 3, generator=g))
    left, right = normal(2, 2, 3, 3, 2, generator=g)
    for transitions in (shared, LowRank(left, right)):
        found = along(transitions.forward, semiring, message, edges, transitions)
        for at, edge in enumerate(edges.tolist()):
            part = rows_of(message, torch.tensor([at]))
            one = transitions.forward(semiring, part, edge)
            value = one.log[0] + one.scale[0].unsqueeze(-1)
            torch.testing.assert_close(found.log[at] + found.scale[at].unsqueeze(-1), value)


def test_joined_fills_in_what_some_do_not_have() -> None:
    plain = Message(torch.zeros(1, 2), torch.zeros(1))
    doubtful = Message(
        torch.zeros(2, 2), torch.zeros(2), torch.tensor([True, False]), torch.full((2, 2), -45.0)
    )
    found = joined([plain, doubtful])
    assert found.lost.tolist() == [False, True, False]
    assert found.doubt.tolist() == [[-math.inf] * 2, [-45.0] * 2, [-45.0] * 2]
