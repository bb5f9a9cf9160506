"""HybridChain: exact between the beams, features elsewhere, without a subtraction."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bochner
from bochner.structured import (
    Chain,
    ExactChain,
    Hybrid,
    HybridChain,
    LogBilinear,
    LogSum,
    LowRank,
    LowRankChain,
    Sum,
)
from bochner.structured.edges.beams import strongest_states
from tests.maps import normal, seeded
from tests.structured import brute
from tests.structured.embedded_problems import Problem, problem, problems


def dense(transitions: Hybrid, made: Problem) -> Tensor:
    """log K of every edge by hand: the features, then the exact block over them. [*b, E, X, X]."""
    batch, steps = made.unaries.shape[:-2], made.unaries.shape[-2]
    features = transitions.features
    table = brute.dense_from_features(features.log_left, features.log_right, steps - 1)
    table = table.expand(*batch, *table.shape[-3:]).clone()
    exact = made.potentials.expand(table.shape)
    beams = transitions.beams.expand(*batch, *transitions.beams.shape[-2:])
    for where in itertools.product(*(range(size) for size in batch)):
        for edge in range(steps - 1):
            rows, columns = beams[where][edge], beams[where][edge + 1]
            for x, y in itertools.product(rows.tolist(), columns.tolist()):
                table[(*where, edge, x, y)] = exact[(*where, edge, x, y)]
    return table


def hybrid(made: Problem, beam: int, *, blocks: int = 1, num_features: int = 6) -> HybridChain:
    return HybridChain.from_embeddings(
        *made.parts,
        num_features=num_features,
        beam=beam,
        blocks=blocks,
        lengths=made.lengths,
        generator=seeded(1),
    )


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 4), st.integers(1, 3))
def test_every_query_sees_the_enumeration_of_its_own_potentials(
    made: Problem, beam: int, blocks: int
) -> None:
    chain = hybrid(made, beam, blocks=blocks)
    table = dense(chain.transitions, made)
    every = brute.enumerate_batch(table, made.unaries, made.lengths)
    shape = chain.batch_shape
    log_z = torch.stack([p.log_partition for p in every]).reshape(shape)
    torch.testing.assert_close(chain.log_partition, log_z, rtol=0, atol=1e-10)
    expected = torch.stack([p.marginals for p in every]).reshape(made.unaries.shape)
    torch.testing.assert_close(chain.marginals, expected, rtol=0, atol=1e-10)
    states = torch.randint(made.a.shape[-2], (3, *shape, chain.num_steps), generator=seeded(2))
    flat = states.reshape(3, -1, chain.num_steps)
    log_prob = torch.stack([p.log_probs[p.index(flat[:, i])] for i, p in enumerate(every)], 1)
    torch.testing.assert_close(
        chain.log_prob(states), log_prob.reshape(3, *shape), rtol=0, atol=1e-10
    )
    for edge in range(chain.num_steps - 1):
        block = chain.transitions.log_block(edge, slice(1, None))
        full = table[..., edge, 1:, :]
        torch.testing.assert_close(block.expand(full.shape), full, rtol=0, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(problems(), st.integers(1, 3), st.booleans())
def test_entropies_pairs_and_modes_are_those_of_the_enumeration(
    made: Problem, beam: int, streamed: bool
) -> None:
    """Of the hybrid, and of exact transitions computed on the fly."""
    exact = ExactChain.from_embeddings(*made.parts, lengths=made.lengths, stored_elements=0)
    chain = exact if streamed else hybrid(made, beam)
    table = made.potentials if streamed else dense(chain.transitions, made)
    every = brute.enumerate_batch(table, made.unaries, made.lengths)
    others = brute.enumerate_batch(made.potentials, made.unaries, made.lengths)

    def check(found: Tensor, values: list[Tensor]) -> None:
        expected = torch.stack(values).reshape(found.shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

    check(chain.entropy(), [p.entropy for p in every])
    check(chain.kl(exact), [p.kl(o) for p, o in zip(every, others, strict=True)])
    check(chain.score(chain.mode().states), [p.mode[1] for p in every])
    check(chain.score(chain.mode_pruned(4).states), [p.mode[1] for p in every])
    vector = normal(made.a.shape[-2], seed=8)
    for edge in range(chain.num_steps - 1):
        check(chain.pairwise.dense(edge), [p.pairwise[edge] for p in every])
        check(chain.pairwise.matvec(edge, vector), [p.pairwise[edge] @ vector for p in every])


@settings(max_examples=25, deadline=None)
@given(problems())
def test_with_beams_of_all_states_it_is_the_exact_chain(made: Problem) -> None:
    chain = hybrid(made, beam=64, num_features=2)
    exact = ExactChain.from_embeddings(*made.parts, lengths=made.lengths)
    assert chain.transitions.beams.shape[-1] == made.a.shape[-2]
    torch.testing.assert_close(chain.log_partition, exact.log_partition, rtol=0, atol=1e-10)
    torch.testing.assert_close(chain.marginals, exact.marginals, rtol=0, atol=1e-10)


def test_rows_and_pairs_of_states() -> None:
    """What sampling and blockwise queries read, for a batch with its own embeddings and without."""
    for own in (False, True):
        made = problem(6, 4, batch=(3,), own=own)
        chain = hybrid(made, beam=2, blocks=2)
        table = dense(chain.transitions, made)
        states, elements = torch.arange(6).repeat(3), torch.arange(3).repeat_interleave(6)
        before, after = torch.randint(6, (2, 3, 4), generator=seeded(3))
        for edge in range(3):
            rows = chain.transitions.log_rows(edge, states, elements)
            torch.testing.assert_close(rows.view(3, 6, 6), table[:, edge])
            pairs = chain.transitions.log_between(edge, before, after)
            expected = torch.stack([table[i, edge][before[i]][:, after[i]] for i in range(3)])
            torch.testing.assert_close(pairs, expected)


@pytest.mark.parametrize("own", [False, True])
def test_draws_follow_the_rows(own: bool) -> None:
    """Every state of one edge drawn from 40,000 times: chi-square below its 1e-7 quantile (4 tests of
    at most 36 cells together: 4e-7)."""
    from scipy.stats import chi2

    made = problem(6, 3, batch=(2,), own=own)
    chain = hybrid(made, beam=3)
    chain.transitions.beams[:] = torch.tensor([[0, 1, 2], [3, 4, 5], [1, 3, 5]])
    table = dense(chain.transitions, made)
    weights = normal(2, 6, seed=5)
    count = 40_000
    states = torch.arange(6).repeat_interleave(count)[:, None].expand(-1, 2)
    drawn = chain.transitions.draw(0, states, weights, generator=seeded(6))
    for i in range(2):
        law = (table[i, 0] + weights[i]).softmax(-1)
        seen = torch.stack([torch.bincount(d, minlength=6) for d in drawn[:, i].view(6, count)])
        statistic = float(((seen - count * law) ** 2 / (count * law)).sum())
        assert statistic < chi2.isf(1e-7, 30)


def test_paths_are_sampled_by_their_probability() -> None:
    """30,000 paths of a chain of lengths 4 and 2: chi-square below its 1e-7 quantile, twice."""
    from scipy.stats import chi2

    made = problem(3, 4, batch=(2,))
    made.lengths[:] = torch.tensor([4, 2])
    chain = hybrid(made, beam=2)
    paths = chain.sample((30_000,), generator=seeded(7))
    for i, law in enumerate(
        brute.enumerate_batch(dense(chain.transitions, made), made.unaries, made.lengths)
    ):
        seen = torch.bincount(law.index(paths[:, i]), minlength=len(law.probs))
        expected = 30_000 * law.probs
        common = expected > 5
        cells = torch.stack([expected[common], seen[common]])
        cells = torch.cat([cells, torch.stack([expected[~common], seen[~common]]).sum(1, True)], 1)
        cells = cells[:, cells[0] > 0]
        statistic = float(((cells[1] - cells[0]) ** 2 / cells[0]).sum())
        assert statistic < chi2.isf(1e-7, cells.shape[1] - 1)


# -- no subtraction -----------------------------------------------------------------------------------
def test_nothing_is_taken_out_again_where_the_features_are_far_too_large() -> None:
    """Estimates of e^40 inside the beam, where K is 1, and of 1 outside: a difference of sums through the
    rank would leave rounding errors of e^40 / 1e16 (float64) or of e^40 / 1e7. Here: all digits."""
    states, huge = 6, 40.0
    log_left, log_right = torch.zeros(1, states, 2), torch.zeros(1, states, 2)
    log_left[0, :, 1] = log_right[0, :, 1] = -math.inf
    inside = torch.tensor([[0, 1]] * 4)
    log_left[0, :2, 1] = log_right[0, :2, 1] = huge / 2  # the second feature: the beam's alone
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        zeros = torch.zeros(states, 1, dtype=dtype)
        k = Hybrid(
            LogBilinear(zeros, zeros), LowRank(log_left.to(dtype), log_right.to(dtype)), inside
        )
        chain = Chain(k, torch.zeros(4, states, dtype=dtype))
        assert abs(float(chain.log_partition) - 4 * math.log(6)) < tolerance * 8
        expected = torch.full((4, states), 1 / 6, dtype=dtype)
        torch.testing.assert_close(chain.marginals, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_message_is_negative_where_the_potentials_are_extreme(dtype: torch.dtype) -> None:
    """Logits up to 100 and unaries of -inf: every log-weight is a number or -inf, marginals add up."""
    made = problem(40, 6, dim=3, scale=4.0, forbidden=0.3).to(dtype)
    chain = HybridChain.from_embeddings(*made.parts, num_features=8, beam=5, generator=seeded(0))
    assert float((made.a @ made.b.mT).max()) > 80
    message = Sum().lift(made.unaries[0])
    for edge in range(5):
        message = chain.transitions.forward(Sum(), message, edge)
        twin = chain.transitions.forward(LogSum(), Sum().lift(made.unaries[edge]), edge)
        assert not bool(torch.isnan(message.log).any() | torch.isnan(twin.log).any())
        message = Sum().settled(Sum().times(message, made.unaries[edge + 1]))
    marginals = chain.marginals
    assert bool((marginals >= 0).all())
    torch.testing.assert_close(marginals.sum(-1), torch.ones(6, dtype=dtype), rtol=0, atol=1e-4)
    recorded = dense(chain.transitions, made)
    exact = Chain(bochner.structured.Dense(recorded), made.unaries.double()).log_partition
    torch.testing.assert_close(chain.log_partition.double(), exact, rtol=1e-6, atol=1e-4)


# -- unbiased edge by edge ----------------------------------------------------------------------------
def nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes of N(0, 1) and their weights."""
    import numpy as np

    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def test_every_entry_has_the_kernel_as_its_mean_and_so_has_z_with_a_draw_an_edge() -> None:
    """d = 1, one feature exp(w x - x^2/2) an edge; the mean over w by quadrature, 40 x 40 nodes for the
    two edges: no noise at all."""
    made = problem(5, 3, dim=1, scale=0.5)
    points, weights = nodes(40)
    a, b, u = made.a, made.b, made.unaries
    beams = strongest_states(a, b, u, torch.tensor(3), beam=2)

    def features(x: Tensor) -> Tensor:  # [nodes, X]
        return points[:, None] * x.squeeze(-1) - 0.5 * x.squeeze(-1).square()

    left, right = (
        torch.stack(torch.broadcast_tensors(f[:, None], f[None]), 2).unsqueeze(-1)
        for f in (features(a), features(b))
    )  # [40, 40, 2 blocks, X, 1]
    chain = Chain(Hybrid(LogBilinear(a, b), LowRank(left, right), beams), u)
    ratio = (chain.log_partition - ExactChain.from_embeddings(a, b, u).log_partition).exp()
    mean = (weights[:, None] * weights * ratio).sum()
    assert abs(float(mean) - 1) < 1e-9
    entries = chain.transitions.log_block(0, slice(None))[:, 0].exp()
    torch.testing.assert_close(
        (weights[:, None, None] * entries).sum(0), (a @ b.T).exp(), rtol=1e-9, atol=0
    )


def test_the_beams_know_nothing_of_the_draw() -> None:
    """Another generator, other features: the same beams. (Beams of the features' own marginals prefer
    what the draw overestimates, and bias every edge.)"""
    made = problem(30, 5, dim=3)
    chains = [
        HybridChain.from_embeddings(*made.parts, num_features=8, beam=4, generator=seeded(s))
        for s in (0, 1)
    ]
    assert torch.equal(chains[0].transitions.beams, chains[1].transitions.beams)
    assert not torch.equal(*(c.transitions.features.log_left for c in chains))


# -- gradients, dtypes, batches -----------------------------------------------------------------------
def test_gradients_are_those_of_the_dense_chain() -> None:
    """By embeddings and unaries, with embeddings that all sentences share and a draw for every edge."""
    made = problem(6, 5, batch=(3,), forbidden=0.2)
    found = []
    for exact in (False, True):
        a, b, u = (t.clone().requires_grad_() for t in made.parts)
        chain = HybridChain.from_embeddings(
            a, b, u, num_features=4, beam=3, blocks=4, lengths=made.lengths, generator=seeded(1)
        )
        if exact:
            features, beams = chain.transitions.features, chain.transitions.beams
            logs = features.log_left.unsqueeze(-2) + features.log_right.unsqueeze(-3)
            table = logs.logsumexp(-1)[torch.arange(4) % 4].expand(3, 4, 6, 6)
            hot = torch.zeros(3, 5, 6, dtype=torch.bool).scatter(-1, beams, True)
            block = hot[:, :-1, :, None] & hot[:, 1:, None, :]
            table = torch.where(block, a @ b.mT, table)
            value = brute.log_partition(table, u, made.lengths)
        else:
            value = chain.log_partition
        found.append(torch.autograd.grad((value * normal(3, seed=4)).sum(), (a, b, u)))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_bilinear_forms_are_those_of_the_dense_chain() -> None:
    """What the gradient by the parameters is made of, from any first edge on. (A wrong one would be
    noticed by the recursion and silently made good in the log domain.)"""
    made = problem(6, 6, batch=(2,))
    chain = hybrid(made, beam=3, blocks=2)
    table = dense(chain.transitions, made)
    for first, count in ((0, 5), (1, 3), (4, 1)):
        left, right = normal(2, 2, count, 6, seed=first)
        values, shifts = chain.transitions.bilinear(left, right, first=first)
        edges = table[:, first : first + count]
        both = left.unsqueeze(-1) + edges + right.unsqueeze(-2)
        expected = both.flatten(-2).logsumexp(-1)
        torch.testing.assert_close(values.log() + shifts, expected, rtol=0, atol=1e-12)


def test_second_derivatives() -> None:
    made = problem(4, 3)

    def value(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
        k = Hybrid(LogBilinear(a, b), features, beams)
        return Chain(k, u).log_partition

    chain = hybrid(made, beam=2)
    features, beams = chain.transitions.features, chain.transitions.beams
    assert torch.autograd.gradgradcheck(value, [t.requires_grad_() for t in made.parts])


def test_float32_agrees_and_rescued_elements_have_their_gradients() -> None:
    """Unaries of a range that float32 cannot multiply, in one sentence of three."""
    made = problem(20, 8, dim=3, batch=(3,), scale=0.5)
    made.unaries[1] *= 60.0
    small = made.to(torch.float32)
    found = []
    for case in (made, small):
        a, b, u = (t.clone().requires_grad_() for t in case.parts)
        k = LogBilinear(a, b)
        log_left, log_right = (normal(2, 20, 5, seed=s).to(a.dtype) for s in (1, 2))
        beams = strongest_states(a, b, u, case.lengths, beam=6)
        chain = HybridChain(Hybrid(k, LowRank(log_left, log_right), beams), u, lengths=case.lengths)
        value = chain.log_partition
        found.append((value, *torch.autograd.grad(value.sum(), (a, b, u))))
    for exact, rounded in zip(*found, strict=True):
        torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_rescued_gradient_adds_to_what_all_sentences_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recursion told to distrust one sentence of three: the same gradients."""
    from bochner.structured.chains.recursion import _Task

    made = problem(7, 5, batch=(3,))

    def gradients() -> tuple[Tensor, ...]:
        parts = [t.clone().requires_grad_() for t in made.parts]
        chain = HybridChain.from_embeddings(
            *parts, num_features=4, beam=3, lengths=made.lengths, generator=seeded(1)
        )
        return torch.autograd.grad(chain.log_partition.sum(), parts)

    expected = gradients()
    one = torch.tensor([False, True, False])
    monkeypatch.setattr(_Task, "_disagree", lambda *_: one)
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_sentences_share_one_set_of_features() -> None:
    """Embeddings without a batch: the features are [B, X, m], whatever the batch of the unaries."""
    made = problem(50, 6, dim=3, batch=(2, 3))
    chain = hybrid(made, beam=8, blocks=2)
    assert chain.transitions.features.log_left.shape == (2, 50, 6)
    assert chain.transitions.beams.shape == (2, 3, 6, 8)
    alone = Problem(made.a, made.b, made.unaries[1, 2], made.lengths[1, 2])
    torch.testing.assert_close(chain.log_partition[1, 2], hybrid(alone, 8, blocks=2).log_partition)


def test_peaked_unaries_leave_a_fraction_of_either_parents_error() -> None:
    """X = 400, T = 20, m = 64, unaries of standard deviation 4, mean over 6 draws of the squared error
    against features alone and against the beam alone (a lower bound)."""
    made = problem(400, 20, dim=8, scale=0.35)
    made = Problem(made.a, made.b, 2.0 * made.unaries, made.lengths)
    exact = ExactChain.from_embeddings(*made.parts).log_partition
    beams = strongest_states(*made.parts, torch.tensor(20), beam=32)
    inside = torch.zeros_like(made.unaries, dtype=torch.bool).scatter(-1, beams, True)
    pruned = made.unaries.masked_fill(~inside, -torch.inf)
    beam_alone = ExactChain.from_embeddings(made.a, made.b, pruned).log_partition - exact
    errors = {
        cls: torch.stack(
            [
                cls.from_embeddings(
                    *made.parts, num_features=64, generator=seeded(s), **more
                ).log_partition
                - exact
                for s in range(6)
            ]
        )
        .square()
        .mean()
        .sqrt()
        for cls, more in ((LowRankChain, {}), (HybridChain, {"beam": 32}))
    }
    assert errors[HybridChain] < 0.2 * errors[LowRankChain]
    assert errors[HybridChain] < 0.5 * beam_alone.abs()


# -- errors -------------------------------------------------------------------------------------------
def test_signed_maps_are_refused_with_the_names_of_those_that_work() -> None:
    made = problem(5, 3, dim=2)
    for cls in (HybridChain, LowRankChain):
        for name, spec in bochner.specs().items():
            if spec.positive:
                continue
            with pytest.raises(ValueError, match=f"{cls.__name__} with feature_map='{name}'") as e:
                cls.from_embeddings(*made.parts, feature_map=name, num_features=16)
            works = str(e.value).split("Positive maps of exp(a.b): ")[1].split(". ")[0].split(", ")
            assert works == [
                n for n, s in bochner.specs().items() if s.positive and not s.changes_kernel
            ]
            phi = bochner.make(name, dim=2, num_features=bochner.spec(name).smallest_budget() * 2)
            with pytest.raises(ValueError, match="never negative"):
                cls.from_embeddings(*made.parts, feature_map=phi)


def test_errors() -> None:
    made = problem(5, 3, dim=2)
    with pytest.raises(ValueError, match="beam=0"):
        hybrid(made, beam=0)
    features, exact = LowRank(*torch.zeros(2, 1, 5, 2)), LogBilinear(*torch.zeros(2, 5, 1))
    with pytest.raises(ValueError, match="a state twice"):
        Hybrid(exact, features, torch.tensor([[0, 0], [1, 2]]))
    with pytest.raises(ValueError, match=r"0\.\.4"):
        Hybrid(exact, features, torch.tensor([[0, 5], [1, 2]]))
    with pytest.raises(ValueError, match="torch.long"):
        Hybrid(exact, features, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="must agree"):
        Hybrid(LogBilinear(*torch.zeros(2, 4, 1)), features, torch.tensor([[0], [1]]))
    with pytest.raises(ValueError, match="beams for 2 steps, unaries have T=3"):
        HybridChain(Hybrid(exact, features, torch.tensor([[0], [1]])), torch.zeros(3, 5))
