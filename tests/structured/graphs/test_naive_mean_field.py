"""Mean field: a bound that never exceeds log Z, that no sweep lowers, and the fixed point itself."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bochner.structured import NotConvergedWarning, PairwiseGraph, Sweeps, mean_field
from tests.structured.brute_graphs import Graph
from tests.structured.graph_cases import forbidding, normal, seeded, seeds


def brute(graph: PairwiseGraph, unaries, a, b) -> Graph:
    edges = [tuple(edge) for edge in graph.edges.tolist()]
    table = (a @ b.T).expand(len(edges), len(a), len(a))
    return Graph(unaries, edges, table)


def gap(graph: Graph, q) -> float:
    """KL(q | p) by enumeration."""
    picked = torch.stack([q[i, graph.configurations[:, i]] for i in range(len(q))])
    weight = picked.prod(0)
    seen = weight > 0
    log_p = graph.scores - graph.log_partition
    return float((weight[seen] * (weight[seen].log() - log_p[seen])).sum())


def graph_of(seed: int, nodes: int) -> PairwiseGraph:
    g = seeded(seed)
    pairs = [(i, j) for j in range(nodes) for i in range(j)]
    chosen = [pair for pair in pairs if torch.rand((), generator=g) < 0.6]
    return PairwiseGraph(nodes, [p if i % 2 else p[::-1] for i, p in enumerate(chosen)])


@settings(max_examples=30, deadline=None)
@given(
    seeds,
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([0.0, 0.5]),
)
def test_the_bound_is_log_z_minus_the_divergence(
    seed, nodes, states, spread, gone, damping
) -> None:
    g = seeded(seed)
    graph = graph_of(seed, nodes)
    unaries = forbidding(normal(nodes, states, generator=g, spread=2.0), g, gone)
    a, b = normal(2, states, 2, generator=g, spread=spread)
    sweeps = Sweeps(limit=1000, tolerance=1e-9, damping=damping)
    found = mean_field(graph, unaries, embeddings=(a, b), sweeps=sweeps)
    every = brute(graph, unaries, a, b)
    assert bool(found.converged)
    bound = float(found.log_partition_bound)
    assert bound == pytest.approx(
        float(every.log_partition) - gap(every, found.marginals), abs=1e-10
    )
    assert bound <= float(every.log_partition) + 1e-10
    torch.testing.assert_close(found.marginals.sum(-1), torch.ones(nodes).double())
    if graph.num_edges == 0:
        assert bound == pytest.approx(float(every.log_partition), abs=1e-10)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_no_sweep_lowers_the_bound(damping: float) -> None:
    g = seeded(1)
    graph = graph_of(5, 6)
    unaries, (a, b) = normal(6, 3, generator=g), normal(2, 3, 2, generator=g, spread=1.5)
    start = torch.softmax(normal(6, 3, generator=g, spread=3.0), -1)
    bounds = []
    for limit in range(1, 12):
        sweeps = Sweeps(limit=limit, tolerance=1e-300, damping=damping)
        with pytest.warns(NotConvergedWarning):
            found = mean_field(graph, unaries, embeddings=(a, b), start=start, sweeps=sweeps)
        bounds.append(float(found.log_partition_bound))
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(bounds))
    assert bounds[-1] > bounds[0] + 1e-3


def test_the_fixed_point_satisfies_its_equations() -> None:
    g = seeded(2)
    graph = PairwiseGraph.grid(2, 3)
    unaries, (a, b) = normal(2, 6, 4, generator=g), normal(2, 4, 3, generator=g, spread=0.7)
    found = mean_field(graph, unaries, embeddings=(a, b), sweeps=Sweeps(tolerance=1e-13))
    q, logits = found.marginals, unaries.clone()
    for i, j in graph.edges.tolist():
        logits[:, i] += (q[:, j] @ b) @ a.T
        logits[:, j] += (q[:, i] @ a) @ b.T
    torch.testing.assert_close(q, torch.softmax(logits, -1), rtol=0, atol=1e-11)
    assert found.residual.shape == found.converged.shape == (2,)


def test_the_bounds_gradient_is_the_marginals() -> None:
    g = seeded(3)
    graph = PairwiseGraph.grid(2, 2)
    unaries = normal(4, 3, generator=g).requires_grad_()
    a, b = normal(2, 3, 2, generator=g, spread=0.5)
    a.requires_grad_()
    sweeps = Sweeps(tolerance=1e-13)

    def value(u, left):
        return mean_field(graph, u, embeddings=(left, b), sweeps=sweeps).log_partition_bound

    found = mean_field(graph, unaries, embeddings=(a, b), sweeps=sweeps)
    (gradient,) = torch.autograd.grad(value(unaries, a), unaries)
    torch.testing.assert_close(gradient, found.marginals)
    assert torch.autograd.gradcheck(value, (unaries, a))


def test_a_better_start_finds_a_better_bound() -> None:
    # two states that attract: q = 1/2 is a saddle point, and the default start
    graph = PairwiseGraph.grid(2, 2)
    a = 2.0 * torch.tensor([[1.0], [-1.0]])
    saddle = mean_field(graph, torch.zeros(4, 2), embeddings=(a, a))
    start = torch.tensor([0.6, 0.4]).expand(4, 2)
    found = mean_field(graph, torch.zeros(4, 2), embeddings=(a, a), start=start)
    assert float(saddle.log_partition_bound) == pytest.approx(4 * math.log(2), abs=1e-5)
    assert float(found.log_partition_bound) == pytest.approx(16.0, abs=1e-2)


def test_float32_and_extreme_logits() -> None:
    g = seeded(4)
    graph = PairwiseGraph.grid(2, 2)
    unaries = normal(4, 3, generator=g, spread=200.0).float()
    a, b = normal(2, 3, 2, generator=g, spread=5.0).float()
    found = mean_field(graph, unaries, embeddings=(a, b))
    every = brute(graph, unaries, a, b)
    assert math.isfinite(float(found.log_partition_bound))
    assert float(found.log_partition_bound) <= float(every.log_partition) * (1 + 1e-4) + 1e-3


def test_errors() -> None:
    graph, u, a = PairwiseGraph.grid(2, 2), torch.zeros(4, 3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"expected \[\*b, 4, X\]"):
        mean_field(graph, u[:3], embeddings=(a, a))
    with pytest.raises(ValueError, match="b has shape"):
        mean_field(graph, u, embeddings=(a, a[:2]))
    with pytest.raises(ValueError, match="a has 2 columns, b has 1"):
        mean_field(graph, u, embeddings=(a, a[:, :1]))
    gone = u.clone()
    gone[2] = -math.inf
    with pytest.raises(ValueError, match="forbids every state of node 2"):
        mean_field(graph, gone, embeddings=(a, a))
    with pytest.raises(ValueError, match="start must hold probabilities"):
        mean_field(graph, u, embeddings=(a, a), start=torch.ones(4, 3))
    with pytest.raises(ValueError, match="start has shape"):
        mean_field(graph, u, embeddings=(a, a), start=torch.ones(3, 3))
    with pytest.raises(TypeError, match="embeddings: a has dtype torch.float64"):
        mean_field(graph, u, embeddings=(a.double(), a))
    with pytest.raises(TypeError, match="unaries has dtype torch.int64"):
        mean_field(graph, u.long(), embeddings=(a, a))
    with pytest.raises(ValueError, match="embeddings: b holds NaN"):
        mean_field(graph, u, embeddings=(a, a * math.nan))


def test_damping_does_not_hide_that_it_stands_far_from_the_optimum() -> None:
    # old^damping new^(1 - damping) stays where the old is 0, and moves little where damping is near 1
    graph, a = PairwiseGraph.grid(2, 2), torch.zeros(2, 1)
    unaries = torch.tensor([0.0, 3.0]).expand(4, 2)
    stuck = torch.tensor([1.0, 0.0]).expand(4, 2)
    for sweeps, start in (
        (Sweeps(damping=0.5), stuck),
        (Sweeps(damping=1 - 1e-6), torch.full((4, 2), 0.5)),
    ):
        with pytest.warns(NotConvergedWarning):
            found = mean_field(graph, unaries, embeddings=(a, a), start=start, sweeps=sweeps)
        assert not bool(found.converged)
