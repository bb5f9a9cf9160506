"""The two messages, and what happens where float32 and float64 end."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings

from bochner.structured import (
    Chain,
    Dense,
    LogSum,
    LowRank,
    Message,
    Semiring,
    Sum,
    Transitions,
)
from bochner.structured.chains import recursion
from bochner.structured.chains.recursion import (
    Part,
    backward_messages,
    forward_messages,
    recorded_log_partition,
)
from tests.structured import brute
from tests.structured.chain_cases import Case, cases, close, make_case


@settings(max_examples=40, deadline=None)
@given(case=cases(sizes=(1.0, 5.0)))
def test_both_semirings_pass_the_same_messages(case: Case) -> None:
    transitions, unaries, lengths = case.chain.flat()
    part = Part.whole(unaries, lengths)
    for passed in (forward_messages, backward_messages):
        for one, other in zip(
            passed(Sum(), transitions, part), passed(LogSum(), transitions, part), strict=True
        ):
            close(one.log.double() + one.scale[:, None], other.log + other.scale[:, None])


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_messages_agree_about_log_z_at_every_step(case: Case) -> None:
    transitions, unaries, lengths = case.chain.flat()
    part = Part.whole(unaries, lengths)
    alphas = list(forward_messages(Sum(), transitions, part))
    betas = list(backward_messages(Sum(), transitions, part))[::-1]
    for alpha, beta in zip(alphas, betas, strict=True):
        seen = (alpha.log + beta.log).logsumexp(-1) + alpha.scale + beta.scale
        close(seen.view(case.unaries.shape[:-2]), case.of("log_partition"))


@settings(max_examples=30, deadline=None)
@given(case=cases(sizes=(1.0, 100.0)))
def test_the_recorded_twin(case: Case) -> None:
    found = recorded_log_partition(LogSum(), *case.chain.flat())
    close(found.view(case.unaries.shape[:-2]), case.of("log_partition"), unit=100.0)


# -- where the fast semiring loses something ------------------------------------------------------------
def raised_later(dtype: torch.dtype, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """State 1 is out of range when it is reached, and the best there is after one more edge."""
    table = torch.tensor([[[0.0, -1.0], [-1.0, 0.0]], [[0.0, 0.0], [3.0, 3.0]]], dtype=dtype)
    unaries = torch.tensor([[0.0, -2.0], [0.0, 0.0], [0.0, 0.0]], dtype=dtype)
    return table * size, unaries * size


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 150.0), (torch.float64, 1000.0)])
def test_what_was_lost_and_then_raised_is_found_again(dtype: torch.dtype, size: float) -> None:
    table, unaries = raised_later(dtype, size)
    *_, last = forward_messages(Sum(), Dense(table), Part.whole(unaries, torch.tensor(3)))
    assert bool(last.lost)
    close(
        Chain(Dense(table), unaries).log_partition,
        brute.log_partition(table, unaries),
        tolerance=1e-6,
    )


def test_a_bound_on_what_was_lost_travels_on() -> None:
    """Lost at the first edge, raised to negligible by the second, and to the best there is by a unary."""
    table = torch.tensor([[[0.0, -104.0], [-104.0, 0.0]], [[0.0, -40.0], [-130.0, 70.0]]])
    unaries = torch.tensor([[0.0, -208.0], [0.0, 0.0], [0.0, 40.0]])
    found = Chain(Dense(table), unaries).log_partition
    close(found, torch.tensor([6.0, 0.0, 0.0]).logsumexp(0), tolerance=1e-6)


def test_what_float32_loses_float64_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rescue by rescue: no logsumexp is needed where float64 has the range."""
    table, unaries = raised_later(torch.float32, 150.0)
    monkeypatch.setattr(recursion, "recorded_log_partition", None)
    close(
        Chain(Dense(table), unaries).log_partition,
        brute.log_partition(table, unaries),
        tolerance=1e-6,
    )
    table, unaries = raised_later(torch.float32, 1000.0)
    with pytest.raises(TypeError):
        _ = Chain(Dense(table), unaries).log_partition


class Counted(Dense):
    """Counts how often a message moves, by dtype."""

    moves: ClassVar[list[torch.dtype]] = []

    def factors(self, block: int) -> None:
        """No plain products (test_scaled_products.py): the messages are what is looked at here."""

    def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
        self.moves.append(message.log.dtype)
        return super().forward(semiring, message, edge)


@pytest.mark.parametrize("forbidden", ["none", "states", "edges"])
def test_a_hard_constraint_is_no_loss(forbidden: str) -> None:
    """-inf is exact: what is structurally 0 never sends a chain to float64."""
    g = torch.Generator().manual_seed(0)
    table, unaries = torch.randn(1, 5, 5, generator=g), torch.randn(30, 5, generator=g)
    if forbidden == "edges":
        table = table.masked_fill(torch.ones(5, 5).tril(-1).bool(), -torch.inf)  # left to right
        unaries[0, 1:] = -torch.inf
    if forbidden == "states":
        unaries = unaries.masked_fill(torch.rand(30, 5, generator=g) < 0.5, -torch.inf)
        unaries[:, 0] = 0.0
    Counted.moves = []
    _ = Chain(Counted(table), unaries.requires_grad_()).log_partition
    assert Counted.moves == [torch.float32] * 29


def test_an_impossible_chain_is_known_without_a_rescue() -> None:
    unaries = torch.zeros(6, 3)
    unaries[3] = -torch.inf
    Counted.moves = []
    assert float(Chain(Counted(torch.zeros(1, 3, 3)), unaries).log_partition) == -torch.inf
    assert Counted.moves == [torch.float32] * 5


def test_only_the_elements_that_need_it_are_run_again() -> None:
    table, hard = raised_later(torch.float32, 150.0)
    unaries = torch.stack([torch.zeros(3, 2), hard])
    sizes: list[int] = []

    class Watched(Dense):
        def factors(self, block: int) -> None:
            """No plain products."""

        def forward(self, semiring: Semiring, message: Message, edge: int) -> Message:
            sizes.append(message.log.shape[0])
            return super().forward(semiring, message, edge)

    found = Chain(Watched(table), unaries.requires_grad_()).log_partition
    assert sizes == [2, 2, 1, 1]
    close(found, brute.log_partition(table, unaries), tolerance=1e-6)


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_gradients_where_the_two_messages_do_not_meet(kind: str) -> None:
    """float32: both messages are known to 1e-38, their product in the middle is not."""
    found = 0
    for seed in range(12):
        case = make_case(seed, size=60.0, kind=kind, shape=(5, 3, 2, 4), batches=((2,), ()))
        ours, theirs = case.to(torch.float32).detached(), case.to(torch.float32).detached()
        ours.chain.log_partition.sum().backward()
        value = brute.log_partition(theirs.dense, theirs.unaries, theirs.lengths).sum()
        expected = torch.autograd.grad(value, theirs.leaves, materialize_grads=True)
        for one, other in zip(ours.leaves, expected, strict=True):
            close(one.grad, other, tolerance=1e-3)
            found += int((other.abs() > 0.01).sum())
    assert found > 50


def test_low_rank_equals_its_dense_form_on_a_larger_chain() -> None:
    g = torch.Generator().manual_seed(3)
    left, right = (torch.randn(3, 40, 5, generator=g, dtype=torch.float64) for _ in range(2))
    unaries = 3 * torch.randn(2, 17, 40, generator=g, dtype=torch.float64)
    lengths = torch.tensor([17, 9])
    low: Transitions = LowRank(left, right)
    dense = Dense(torch.stack([low.log_block(e, slice(None)) for e in range(3)]))
    one, other = (Chain(k, unaries, lengths=lengths) for k in (low, dense))
    close(one.log_partition, other.log_partition)
    close(one.marginals, other.marginals)


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
@pytest.mark.parametrize("twice", [False, True])
def test_segments_change_nothing(kind: str, twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages kept from the forward pass, or made again in rooms used again: the same gradients."""
    found = []
    for elements in (1 << 22, 0):  # one segment, segments of 4, 4, 4, 1 steps
        monkeypatch.setattr(recursion, "_SEGMENT_ELEMENTS", elements)
        case = make_case(5, size=2.0, kind=kind, shape=(13, 3, 2, 4), batches=((3,), ())).detached()
        value = case.chain.log_partition.sum()
        grads = torch.autograd.grad(value, case.leaves, retain_graph=twice)
        if twice:
            grads = torch.autograd.grad(value, case.leaves)
        found.append(grads)
    recorded = recorded_log_partition(LogSum(), *case.chain.flat()).sum()
    expected = torch.autograd.grad(recorded, case.leaves)
    for one, other, known in zip(*found, expected, strict=True):
        close(one, known)
        close(other, known)


def test_a_message_is_not_written_over() -> None:
    g = torch.Generator().manual_seed(0)
    message = Sum().lift(torch.randn(2, 5, generator=g))
    weights, before = torch.randn(2, 5, generator=g), message.log.clone()
    together = Sum().weighted(message, weights)
    apart = Sum().settled(Sum().times(message, weights))
    Dense(torch.randn(1, 5, 5, generator=g)).forward(Sum(), message, 0)
    assert torch.equal(message.log, before)
    assert torch.equal(together.log, apart.log)
    assert torch.equal(together.scale, apart.scale)
