"""ExactChain: stored or streamed, it is the enumeration."""

import pytest
import torch
from hypothesis import given, settings

from bochner.structured import Chain, Dense, ExactChain, LogBilinear
from tests.maps import normal
from tests.structured import brute
from tests.structured.embedded_problems import Problem, problem, problems

STREAMED = 0
"""stored_elements that no matrix has."""


@settings(max_examples=40, deadline=None)
@given(problems())
def test_stored_and_streamed_are_the_enumeration(made: Problem) -> None:
    expected = brute.log_partition(made.potentials, made.unaries, made.lengths)
    marginals = brute.marginals(made.potentials, made.unaries, made.lengths)
    for elements in (1 << 20, STREAMED):
        chain = ExactChain.from_embeddings(
            *made.parts, lengths=made.lengths, stored_elements=elements
        )
        torch.testing.assert_close(chain.log_partition, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(chain.marginals, marginals, rtol=0, atol=1e-10)


def test_streamed_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of two rows at a time: the values and gradients of the stored matrix."""
    monkeypatch.setattr("bochner.structured.edges.log_bilinear._BLOCK_ELEMENTS", 14)
    made = problem(7, 5, batch=(3,), forbidden=0.3)
    found = []
    for elements in (1 << 20, STREAMED):
        a, b, u = (t.clone().requires_grad_() for t in made.parts)
        chain = ExactChain.from_embeddings(a, b, u, lengths=made.lengths, stored_elements=elements)
        assert isinstance(chain.transitions, LogBilinear) == (elements == STREAMED)
        weights = normal(3, seed=4)
        found.append(torch.autograd.grad((chain.log_partition * weights).sum(), (a, b, u)))
    for stored, streamed in zip(*found, strict=True):
        assert stored.abs().max() > 0.01
        torch.testing.assert_close(streamed, stored, rtol=0, atol=1e-11)


def test_streamed_bilinear_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two rows, of sizes that differ by e^300, against all at once."""
    monkeypatch.setattr("bochner.structured.edges.log_bilinear._BLOCK_ELEMENTS", 14)
    a, b = normal(2, 7, 2, seed=1)
    a = a * torch.tensor([1.0, 1, 100, 100, 1, 1, 1]).double()[:, None]
    left, right = normal(2, 3, 4, 7, seed=2)
    values, shifts = LogBilinear(a, b).bilinear(left, right, first=2)
    both = left.unsqueeze(-1) + a @ b.T + right.unsqueeze(-2)
    expected = both.flatten(-2).logsumexp(-1)
    assert expected.amax() > 100
    torch.testing.assert_close(values.log() + shifts, expected, rtol=1e-12, atol=1e-12)


def test_streamed_gradients_are_differences() -> None:
    made = problem(3, 3)

    def value(*parts: torch.Tensor) -> torch.Tensor:
        return ExactChain.from_embeddings(*parts, stored_elements=STREAMED).log_partition

    inputs = [t.requires_grad_() for t in made.parts]
    torch.autograd.gradcheck(value, inputs)
    torch.autograd.gradgradcheck(value, inputs)


def test_single_entries_of_streamed_transitions() -> None:
    made = problem(5, 4, batch=(2,), own=True)
    k = LogBilinear(made.a, made.b)
    x, y = torch.tensor([[0, 4, 2], [1, 1, 3]]), torch.tensor([[1, 4, 0], [2, 1, 3]])
    dense = (made.a @ made.b.mT).unsqueeze(-3)
    expected = Dense(dense)
    torch.testing.assert_close(k.log_potential(x, y), expected.log_potential(x, y))
    torch.testing.assert_close(k.log_block(1, slice(1, 4)), expected.log_block(1, slice(1, 4)))
    states, elements = torch.tensor([4, 0, 4]), torch.tensor([1, 0, 0])
    torch.testing.assert_close(k.log_rows(0, states, elements), dense[elements, 0, states])
    between = k.log_between(0, x, y[:, :2])
    torch.testing.assert_close(between[1, 2, 0], dense[1, 0, 3, 2])


def test_log_potentials_of_every_kind() -> None:
    """One matrix, one for every element of a batch, and -inf entries."""
    made = problem(3, 4, batch=(2,))
    table = normal(2, 3, 3, seed=9)
    table[0, 1, 2] = -torch.inf
    chain = ExactChain(table, made.unaries, lengths=made.lengths)
    edges = table.unsqueeze(-3).expand(2, 3, 3, 3)
    expected = brute.log_partition(edges, made.unaries, made.lengths)
    torch.testing.assert_close(chain.log_partition, expected, rtol=0, atol=1e-10)


def test_float32_agrees() -> None:
    made = problem(60, 30, dim=4, batch=(2,), scale=0.5)
    small = made.to(torch.float32)
    exact = ExactChain.from_embeddings(*made.parts, lengths=made.lengths)
    for elements in (1 << 20, STREAMED):
        chain = ExactChain.from_embeddings(
            *small.parts, lengths=made.lengths, stored_elements=elements
        )
        assert chain.log_partition.dtype == torch.float32
        torch.testing.assert_close(
            chain.log_partition.double(), exact.log_partition, rtol=1e-6, atol=1e-4
        )
        torch.testing.assert_close(chain.marginals.double(), exact.marginals, rtol=0, atol=1e-4)


def test_streaming_keeps_no_matrix() -> None:
    """4,096 states: K has 16.8M elements. All that autograd keeps, added up, is a tenth of that."""
    saved: list[int] = []
    a, b = (0.3 * normal(4096, 2, seed=s).float() for s in (1, 2))
    a.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (saved.append(t.numel()), t)[1], lambda t: t
    ):
        chain = ExactChain.from_embeddings(a, b, torch.zeros(2, 4096), stored_elements=STREAMED)
        chain.log_partition.backward()
    assert sum(saved) < 4096**2 / 10
    assert a.grad.abs().max() > 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="log_potentials holds NaN"):
        ExactChain(torch.full((2, 2), torch.nan), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="log_potentials"):
        ExactChain(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="both need one row a state"):
        ExactChain.from_embeddings(torch.zeros(3, 1), torch.zeros(2, 1), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="X=3"):
        ExactChain.from_embeddings(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"unaries is torch.float64 on cpu, a is torch.float32"):
        ExactChain.from_embeddings(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(4, 3).double())
    half = [torch.zeros(s, dtype=torch.float16) for s in ((3, 1), (3, 1), (4, 3))]
    with pytest.raises(TypeError, match="float32 or float64"):
        ExactChain.from_embeddings(*half)
    with pytest.raises(ValueError, match="a holds 1 NaN"):
        ExactChain.from_embeddings(
            torch.tensor([[torch.nan]]), torch.zeros(1, 1), torch.zeros(4, 1)
        )


def test_an_exact_chain_is_a_chain_of_dense_transitions() -> None:
    made = problem(4, 3)
    by_hand = Chain(Dense((made.a @ made.b.mT)[None]), made.unaries)
    chain = ExactChain(made.a @ made.b.mT, made.unaries)
    path = torch.tensor([1, 0, 3])
    torch.testing.assert_close(chain.log_prob(path), by_hand.log_prob(path))
