"""Trees against enumeration of every configuration, and against chains."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.structured import Chain, Dense, LogBilinear, LowRank, LowRankTransitions, Tree
from tests.structured.brute_graphs import Graph, tree_graph
from tests.structured.graph_cases import (
    forbidding,
    in_single,
    kinds,
    normal,
    potentials_of,
    precisions,
    random_parents,
    seeded,
    seeds,
    spreads,
    transitions_of,
)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=False
    )


def check_against(tree: Tree, graph: Graph, tolerance: float = 1e-10) -> None:
    close(tree.log_partition, graph.log_partition, tolerance)
    close(tree.marginals, graph.marginals, tolerance)
    close(tree.entropy(), graph.entropy, tolerance)
    close(tree.log_prob(graph.configurations), graph.scores - graph.log_partition, tolerance)
    best = tree.mode()
    close(best.log_score, graph.best, tolerance)
    close(graph.score(best.states), graph.best, tolerance)
    likely = tree.posterior_decode()
    picked = graph.marginals.gather(-1, likely.states.unsqueeze(-1)).squeeze(-1)
    close(picked, graph.marginals.amax(-1), tolerance)
    # inf where the likeliest states are no configuration that is allowed
    reach = likely.gap + tolerance * (1 + abs(graph.best))
    assert float(graph.best - likely.log_score) <= float(reach)
    assert bool(torch.isfinite(likely.log_score)) == bool(torch.isfinite(likely.gap))
    for parent, child in graph.edges:
        pair, joint = tree.pairwise(child), graph.pair(parent, child)
        close(pair.dense(), joint, tolerance)
        vector = torch.linspace(-1, 2, joint.shape[1], dtype=tree.unaries.dtype)
        close(pair.matvec(vector), joint @ vector.double(), tolerance)
        close(
            pair.expectation(vector, vector), vector.double() @ joint @ vector.double(), tolerance
        )
        close(pair.row(torch.tensor(0)), joint[0], tolerance)


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    kinds,
    spreads,
    st.integers(1, 6),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([0.0, 0.4]),
    precisions,
)
def test_every_query_against_enumeration(
    seed, kind, spread, nodes, states, ordered, gone, dtype
) -> None:
    g = seeded(seed)
    parents = random_parents(nodes, g, ordered=ordered)
    edges = sum(parent >= 0 for parent in parents)
    transitions = transitions_of(kind, states, edges, g, spread=spread)
    unaries = forbidding(normal(nodes, states, generator=g, spread=2.0), g, gone)
    tolerance = 1e-10
    if dtype == torch.float32:
        transitions, unaries, tolerance = in_single(transitions), unaries.float(), 1e-4
    graph = tree_graph(unaries, parents, potentials_of(transitions, edges))
    check_against(Tree(transitions, unaries, parents=parents), graph, tolerance)


@pytest.mark.parametrize("kind", ["dense", "dense per edge", "low rank, two blocks"])
def test_lengths_and_batches_against_single_trees(kind: str) -> None:
    g = seeded(1)
    parents, sizes = [-1, 0, 0, 1, -1, 4], torch.tensor([[6, 1, 4], [3, 5, 2]])
    transitions = transitions_of(kind, 3, 5, g)
    unaries = normal(2, 3, 6, 3, generator=g)
    unaries[0, 2, 4:] = -math.inf  # beyond its length: not read
    tree = Tree(transitions, unaries, parents=parents, lengths=sizes)
    states = torch.randint(0, 3, (4, 2, 3, 6), generator=g)
    best, drawn = tree.mode(), tree.sample((5,), generator=g)
    assert drawn.shape == (5, 2, 3, 6)
    for b in [(i, j) for i in range(2) for j in range(3)]:
        n = int(sizes[b])
        one = Tree(transitions, unaries[b][:n], parents=parents[:n])
        close(tree.log_partition[b], one.log_partition)
        close(tree.marginals[b][:n], one.marginals)
        assert not tree.marginals[b][n:].any()
        assert not drawn[(slice(None), *b)][:, n:].any()
        close(tree.entropy()[b], one.entropy())
        close(
            tree.log_prob(states)[(slice(None), *b)], one.log_prob(states[(slice(None), *b)][:, :n])
        )
        close(best.log_score[b], one.mode().log_score)
        if n > 1:
            close(tree.pairwise(1).dense()[b], one.pairwise(1).dense())


def test_batched_transitions_and_row_by_state() -> None:
    g = seeded(2)
    parents = [-1, 0, 0, 2]
    left, right = normal(2, 3, 1, 4, 2, generator=g)
    unaries = normal(3, 4, 4, generator=g)
    tree = Tree(LowRank(left, right), unaries, parents=parents)
    states = torch.tensor([[0, 1, 2], [3, 3, 0]])
    rows = tree.pairwise(3).row(states)
    drawn = tree.sample((2,), generator=g)
    assert drawn.shape == (2, 3, 4)
    for b in range(3):
        one = Tree(LowRank(left[b], right[b]), unaries[b], parents=parents)
        close(tree.log_partition[b], one.log_partition)
        close(tree.mode().log_score[b], one.mode().log_score)
        close(rows[:, b], one.pairwise(3).dense()[states[:, b]])


def test_a_path_is_a_chain() -> None:
    g = seeded(3)
    transitions = transitions_of("low rank, two blocks", 5, 7, g)
    unaries, lengths = normal(2, 8, 5, generator=g), torch.tensor([8, 5])
    tree = Tree(transitions, unaries, parents=range(-1, 7), lengths=lengths)
    chain = Chain(transitions, unaries, lengths=lengths)
    close(tree.log_partition, chain.log_partition)
    close(tree.marginals, chain.marginals)
    states = torch.randint(0, 5, (3, 2, 8), generator=g)
    close(tree.log_prob(states), chain.log_prob(states))


def test_a_forest_is_its_trees() -> None:
    g = seeded(4)
    transitions, unaries = transitions_of("low rank", 3, 3, g), normal(5, 3, generator=g)
    both = Tree(transitions, unaries, parents=[-1, 0, -1, 2, 2])
    one = Tree(transitions, unaries[:2], parents=[-1, 0])
    two = Tree(transitions, unaries[2:], parents=[-1, 0, 0])
    close(both.log_partitions, torch.stack([one.log_partition, two.log_partition]))


def test_gradients_are_marginals_and_differentiable() -> None:
    g = seeded(5)
    left, right = normal(2, 1, 3, 2, generator=g)
    unaries = normal(4, 3, generator=g).requires_grad_()
    left.requires_grad_()
    tree = Tree(LowRank(left, right), unaries, parents=[-1, 0, 0, 1])
    (gradient,) = torch.autograd.grad(tree.log_partition, unaries)
    close(gradient, tree.marginals)

    def value(u: Tensor, features: Tensor) -> Tensor:
        return Tree(LowRank(features, right), u, parents=[-1, 0, 0, 1]).log_partition

    assert torch.autograd.gradcheck(value, (unaries, left))
    assert torch.autograd.gradgradcheck(value, (unaries, left))


def test_samples_follow_the_model() -> None:
    g = seeded(6)
    parents = [-1, 0, 0, 1]
    transitions = transitions_of("low rank", 3, 3, g)
    unaries = normal(4, 3, generator=g)
    graph = tree_graph(unaries, parents, potentials_of(transitions, 3))
    tree = Tree(transitions, unaries, parents=parents)
    count = 4000
    drawn = tree.sample((count,), generator=g)
    place = (drawn * 3 ** torch.arange(3, -1, -1)).sum(-1)
    seen = torch.bincount(place, minlength=81).double()
    expected = count * graph.probabilities
    # chi-squared with 80 degrees of freedom: above 168 with probability 3e-8
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert statistic < 168
    found = tree.entropy_sampled(count, generator=g)
    # the interval is +-1.96 standard errors: three times it is missed with probability 4e-9
    assert abs(float(found.value - graph.entropy)) < 3 * float(found.high - found.value)


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_float32_and_extreme_ranges(kind: str) -> None:
    g = seeded(7)
    parents = [-1, 0, 0, 1, 1]
    unaries = normal(5, 3, generator=g, spread=30.0).float()
    transitions = in_single(transitions_of(kind, 3, 4, g, spread=40.0))
    graph = tree_graph(unaries, parents, potentials_of(transitions, 4))
    check_against(Tree(transitions, unaries, parents=parents), graph, 1e-4)


def test_what_float32_cannot_hold_is_run_again() -> None:
    # the leaf prefers state 1 by exp(-200), the other leaf makes up for it
    same = torch.full((1, 2, 2), -150.0)
    same[0].fill_diagonal_(0.0)
    unaries = torch.tensor([[0.0, 0.0], [0.0, -120.0], [0.0, -120.0], [-300.0, 0.0]])
    parents = [-1, 0, 0, 0]
    tree = Tree(Dense(same), unaries, parents=parents)
    graph = tree_graph(unaries, parents, same.expand(3, 2, 2))
    check_against(tree, graph, 1e-4)


def test_messages_that_do_not_meet_in_float32() -> None:
    # what comes from below and from above a node favours different states by exp(120) each
    same = torch.full((1, 2, 2), -400.0)
    same[0].fill_diagonal_(0.0)
    unaries = torch.tensor([[0.0, -120.0], [0.0, 0.0], [-121.0, 0.0]])
    parents = [-1, 0, 1]
    graph = tree_graph(unaries, parents, same.expand(2, 2, 2))
    check_against(Tree(Dense(same), unaries, parents=parents), graph, 1e-4)


def test_nothing_allowed() -> None:
    unaries = torch.zeros(2, 3, 2)
    unaries[1, 2] = -math.inf
    tree = Tree(Dense(torch.zeros(1, 2, 2)), unaries, parents=[-1, 0, 0])
    assert tree.log_partition.tolist() == [pytest.approx(math.log(8)), -math.inf]
    for query in (
        lambda: tree.marginals,
        tree.mode,
        lambda: tree.log_prob(torch.zeros(2, 3).long()),
    ):
        with pytest.raises(ValueError, match="1 of 2 elements of the batch allow nothing"):
            query()


@pytest.mark.parametrize(
    ("parents", "lengths", "message"),
    [
        ([-1, 0], None, "parents has 2 nodes, unaries has 3"),
        ([1, 2, 0], None, "parents has a circle through node"),
        ([-1, 0, 3], None, r"parents\[2\]=3 is no node"),
        ([2, 0, -1], torch.tensor(2), "lengths keeps node 0 and drops its parent 2"),
        ([-1, 0, 0], torch.tensor(4), "expected 1..3"),
        (torch.zeros(3), None, "expected integers"),
    ],
)
def test_errors(parents, lengths, message) -> None:
    with pytest.raises(ValueError, match=message):
        Tree(Dense(torch.zeros(1, 2, 2)), torch.zeros(3, 2), parents=parents, lengths=lengths)


def test_errors_of_queries() -> None:
    tree = Tree(Dense(torch.zeros(1, 2, 2)), torch.zeros(3, 2), parents=[-1, 0, 0])
    with pytest.raises(ValueError, match="child=0 has no edge to a parent"):
        tree.pairwise(0)
    with pytest.raises(ValueError, match="expected 0..1"):
        tree.log_prob(torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="states must be a torch.Tensor of integers"):
        tree.log_prob(torch.zeros(3))


def test_a_bush_of_many_leaves_is_as_exact_as_a_small_one() -> None:
    g = seeded(8)
    transitions = transitions_of("low rank", 4, 1, g)
    leaf = normal(1, 4, generator=g)
    root = normal(1, 4, generator=g)
    count = 500
    unaries = torch.cat([root, leaf.expand(count, 4)])
    tree = Tree(transitions, unaries, parents=[-1, *[0] * count])
    up = torch.logsumexp(potentials_of(transitions, 1)[0] + leaf, -1)
    close(tree.log_partition, torch.logsumexp(root[0] + count * up, 0))
    close(tree.marginals[0], torch.softmax(root[0] + count * up, 0))


def test_embeddings_on_the_fly_are_the_dense_table() -> None:
    g = seeded(9)
    a, b = normal(2, 6, 2, generator=g)
    unaries, parents = normal(2, 5, 6, generator=g), [-1, 0, 0, 1, 1]
    fly = Tree(LogBilinear(a, b), unaries, parents=parents)
    table = Tree(Dense((a @ b.T)[None]), unaries, parents=parents)
    close(fly.log_partition, table.log_partition)
    close(fly.marginals, table.marginals)
    close(fly.mode().log_score, table.mode().log_score)
    close(fly.pairwise(3).dense(), table.pairwise(3).dense())
    assert fly.sample((3,), generator=g).shape == (3, 2, 5)


def test_no_probability_exceeds_one() -> None:
    # one state: every score is log Z, up to the rounding of two different sums
    g = seeded(12)
    states = torch.zeros(4, dtype=torch.long)
    for _ in range(40):
        tree = Tree(
            Dense(normal(1, 1, 1, generator=g)), normal(4, 1, generator=g), parents=[-1, 0, 0, 2]
        )
        assert tree.log_prob(states) <= 0
        assert tree.log_prob(states) > -1e-12


def test_transitions_are_read_anew() -> None:
    # as after an optimiser's step, and differentiated a second time
    left = normal(1, 3, 2, generator=seeded(13)).requires_grad_()
    transitions, unaries = LowRank(left, left), normal(4, 3, generator=seeded(14))

    def value() -> Tensor:
        return Tree(transitions, unaries, parents=[-1, 0, 0, 1]).log_partition

    before = value()
    before.backward()
    with torch.no_grad():
        left += 1.0
    after = value()
    after.backward()
    close(after - before, torch.tensor(6.0))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 2), LowRankTransitions(2, 1)])
def test_what_is_no_transitions(wrong) -> None:
    with pytest.raises(TypeError, match=r"expected Transitions: Dense\(log_potentials\)"):
        Tree(wrong, torch.zeros(3, 2), parents=[-1, 0, 0])
    with pytest.raises(TypeError, match="parents holds None"):
        Tree(Dense(torch.zeros(1, 2, 2)), torch.zeros(3, 2), parents=[None, 0, 0])
