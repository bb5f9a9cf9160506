"""Every query of a grammar against the enumeration of all trees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner.structured.grammars.pcfg import PCFG
from bochner.structured.grammars.rules import LowRankRules
from tests.structured.brute_grammar import Forest


def weights(*shape: int, seed: int, spread: float = 1.0, zeros: float = 0.0) -> Tensor:
    """Normal log-weights, a share of them -inf; float64."""
    g = torch.Generator().manual_seed(seed)
    log = spread * torch.randn(shape, generator=g, dtype=torch.float64)
    return log.masked_fill(torch.rand(shape, generator=g) < zeros, -math.inf)


def grammar(
    nonterminals: int,
    preterminals: int,
    rank: int,
    *,
    seed: int = 0,
    spread: float = 1.0,
    zeros: float = 0.0,
    batch: tuple[int, ...] = (),
) -> tuple[LowRankRules, Tensor]:
    symbols = nonterminals + preterminals
    rows = (nonterminals, symbols, symbols)
    parts = [
        weights(*batch, n, rank, seed=seed + 10 * k, spread=spread, zeros=zeros)
        for k, n in enumerate(rows)
    ]
    return LowRankRules(*parts), weights(*batch, symbols, seed=seed + 50, spread=spread)


def agree(trees: PCFG, forest: Forest, *, atol: float = 1e-10) -> None:
    """All queries of one sentence without padding."""
    scale = max(1.0, abs(forest.log_partition)) if math.isfinite(forest.log_partition) else 1.0
    truth = torch.tensor(forest.log_partition, dtype=torch.float64)
    torch.testing.assert_close(trees.log_partition.double(), truth, rtol=0, atol=atol * scale)
    if forest.log_partition == -math.inf:
        for query in ("span_marginals", "label_marginals"):
            with pytest.raises(ValueError, match="allow nothing"):
                getattr(trees, query)
        return
    near = {"rtol": 0.0, "atol": atol * scale, "check_dtype": False}
    labels = forest.label_marginals()
    torch.testing.assert_close(trees.label_marginals, labels, **near)
    torch.testing.assert_close(trees.span_marginals, labels.sum(-1), **near)
    charts = torch.stack([forest.chart(nodes) for nodes in forest.weight])
    log_weights = torch.tensor(list(forest.weight.values()), dtype=torch.float64)
    torch.testing.assert_close(trees.score(charts), log_weights, **near)
    assert bool((trees.log_prob(charts) <= atol * scale).all())
    total = torch.logsumexp(trees.log_prob(charts).double(), 0)
    assert float(total) == pytest.approx(0.0, abs=atol * scale)
    best = float(log_weights.max())
    assert float(trees.score(trees.mode())) == pytest.approx(best, abs=atol * scale)
    spans = trees.mbr_spans()
    assert float((labels.sum(-1) * spans).sum()) == pytest.approx(
        forest.expected_spans(), abs=1e-4 if atol > 1e-6 else 1e-9
    )
    parse = trees.mbr_labels()
    chosen = labels.gather(-1, parse.clamp_min(0).unsqueeze(-1)).squeeze(-1) * (parse >= 0)
    assert float(chosen.sum()) == pytest.approx(
        forest.expected_labels(), abs=1e-4 if atol > 1e-6 else 1e-9
    )
    drawn = trees.sample((4,), generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(trees.log_prob(drawn)).all())


sizes = {
    "length": st.integers(1, 5),
    "nonterminals": st.integers(1, 2),
    "preterminals": st.integers(1, 2),
    "rank": st.integers(1, 4),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(**sizes, zeros=st.sampled_from([0.0, 0.2, 0.5]), spread=st.sampled_from([1.0, 5.0]))
def test_every_query_is_the_enumeration(
    length: int,
    nonterminals: int,
    preterminals: int,
    rank: int,
    seed: int,
    zeros: float,
    spread: float,
) -> None:
    rules, root = grammar(nonterminals, preterminals, rank, seed=seed, spread=spread, zeros=zeros)
    words = weights(length, preterminals, seed=seed + 99, spread=spread, zeros=zeros / 2)
    forest = Forest(rules.dense(), root, words)
    agree(PCFG(rules, root, words), forest)
    agree(PCFG(rules.in_rank_space(), root, words), forest)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(**sizes, spread=st.sampled_from([50.0, 300.0]))
def test_weights_of_any_range(
    length: int, nonterminals: int, preterminals: int, rank: int, seed: int, spread: float
) -> None:
    rules, root = grammar(nonterminals, preterminals, rank, seed=seed, spread=spread, zeros=0.1)
    words = weights(length, preterminals, seed=seed + 99, spread=spread)
    forest = Forest(rules.dense(), root, words)
    agree(PCFG(rules, root, words), forest)
    agree(PCFG(rules.in_rank_space(), root, words), forest)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(**{**sizes, "length": st.integers(1, 4)}, spread=st.sampled_from([1.0, 20.0]))
def test_float32_to_four_digits(
    length: int, nonterminals: int, preterminals: int, rank: int, seed: int, spread: float
) -> None:
    rules, root = grammar(nonterminals, preterminals, rank, seed=seed, spread=spread)
    words = weights(length, preterminals, seed=seed + 99, spread=spread)
    # the same rounded weights on both sides: the recursion is tested, not the rounding of its input
    half = LowRankRules(rules.log_head.float(), rules.log_left.float(), rules.log_right.float())
    same = LowRankRules(half.log_head.double(), half.log_left.double(), half.log_right.double())
    forest = Forest(same.dense(), root.float(), words.float())
    for form in (half, half.in_rank_space()):
        trees = PCFG(form, root.float(), words.float())
        assert trees.log_partition.dtype == torch.float32
        agree(trees, forest, atol=1e-4)


def test_batches_of_sentences_of_different_lengths_and_what_lies_beyond_them() -> None:
    rules, root = grammar(2, 2, 3)
    words = weights(5, 5, 2, seed=1)
    lengths = torch.tensor([1, 2, 3, 4, 5])
    spans = weights(5, 5, 5, seed=2)
    beyond = torch.arange(5) >= lengths.unsqueeze(-1)
    words = torch.where(beyond.unsqueeze(-1), 1e5, words).requires_grad_()
    spans = torch.where(beyond.unsqueeze(-2), -math.inf, spans).requires_grad_()
    trees = PCFG(rules, root, words, lengths=lengths, log_spans=spans)
    drawn = trees.sample((2,), generator=torch.Generator().manual_seed(0))
    for k, length in enumerate(lengths.tolist()):
        alone = PCFG(rules, root, words[k, :length], log_spans=spans[k, :length, :length])
        inside = (slice(length), slice(length))
        torch.testing.assert_close(trees.log_partition[k], alone.log_partition)
        torch.testing.assert_close(trees.span_marginals[k][inside], alone.span_marginals)
        torch.testing.assert_close(trees.label_marginals[k][inside], alone.label_marginals)
        assert trees.span_marginals[k].detach().sum().item() == pytest.approx(2 * length - 1)
        for name in ("mode", "mbr_spans", "mbr_labels"):
            whole, part = getattr(trees, name)()[k], getattr(alone, name)()
            assert torch.equal(whole[inside], part), name
            assert int((whole >= (1 if whole.dtype == torch.bool else 0)).sum()) == 2 * length - 1
        torch.testing.assert_close(
            trees.score(drawn)[:, k], alone.score(drawn[:, k, :length, :length])
        )
    trees.log_partition.sum().backward()
    assert words.grad is not None
    assert spans.grad is not None
    assert float(words.grad[beyond].abs().max()) == 0.0
    assert bool(torch.isfinite(spans.grad).all())


def test_a_weight_for_every_span_is_part_of_the_model() -> None:
    rules, root = grammar(1, 1, 1)
    words = torch.zeros(3, 1, dtype=torch.float64)
    spans = torch.zeros(3, 3, dtype=torch.float64)
    spans[0, 1] = -math.inf
    trees = PCFG(rules, root, words, log_spans=spans)
    assert trees.span_marginals[0, 1] == 0
    assert trees.span_marginals[1, 2] == 1


def test_a_grammar_for_each_sentence_and_batches_that_broadcast() -> None:
    rules, root = grammar(2, 2, 3, batch=(3, 1))
    words = weights(2, 4, 2, seed=5)
    lengths = torch.tensor([[4, 3]] * 3)
    trees = PCFG(rules, root, words, lengths=lengths)
    assert trees.batch_shape == (3, 2)
    rank = PCFG(rules.in_rank_space(), root, words, lengths=lengths)
    torch.testing.assert_close(rank.log_partition, trees.log_partition)
    torch.testing.assert_close(rank.span_marginals, trees.span_marginals)
    modes = trees.mode()
    drawn = trees.sample((5,), generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 3, 2, 4, 4)
    for i in range(3):
        own = LowRankRules(*(f[i, 0] for f in rules.factor.log_factors))
        for k in range(2):
            length = int(lengths[i, k])
            alone = PCFG(own, root[i, 0], words[k, :length])
            assert torch.equal(modes[i, k, :length, :length], alone.mode())
            torch.testing.assert_close(trees.log_partition[i, k], alone.log_partition)
            torch.testing.assert_close(
                trees.label_marginals[i, k, :length, :length], alone.label_marginals
            )
            torch.testing.assert_close(
                trees.log_prob(drawn)[:, i, k], alone.log_prob(drawn[:, i, k, :length, :length])
            )


@pytest.mark.parametrize("ranked", [False, True])
def test_gradients_once_and_twice_also_through_marginals_and_zeros(ranked: bool) -> None:
    rules, root = grammar(1, 2, 2)
    log_head = rules.log_head.clone()
    log_head[0, 0] = -math.inf
    words = weights(3, 2, seed=3)
    words[1, 0] = -math.inf
    inputs = [log_head, rules.log_left, rules.log_right, root, words]
    lengths = torch.tensor([3, 2])

    def build(shift: Tensor) -> PCFG:
        # a shift of every tensor: -inf + shift is -inf, whose gradient must be 0
        sizes = [x.numel() for x in inputs]
        parts = [x + s.view(x.shape) for x, s in zip(inputs, shift.split(sizes), strict=True)]
        own = LowRankRules(*parts[:3])
        return PCFG(
            own.in_rank_space() if ranked else own,
            parts[3],
            parts[4].expand(2, -1, -1),
            lengths=lengths,
        )

    shift = torch.zeros(sum(x.numel() for x in inputs), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: build(s).log_partition, shift)
    assert torch.autograd.gradgradcheck(lambda s: build(s).log_partition, shift)
    assert torch.autograd.gradcheck(lambda s: build(s).span_marginals, shift)
    parses = build(shift).sample(generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda s: build(s).log_prob(parses), shift)


def test_one_rules_object_serves_several_backward_passes() -> None:
    rules, root = grammar(2, 2, 3)
    leaves = [f.clone().requires_grad_() for f in rules.factor.log_factors]
    shared = LowRankRules(*leaves)
    for form in (shared, shared, shared.in_rank_space()):
        trees = PCFG(form, root, weights(4, 2, seed=1))
        trees.mode(), trees.mbr_spans(), trees.entropy_sampled(2, generator=torch.Generator())
        assert trees.span_marginals.requires_grad
        with torch.no_grad():
            assert not trees.span_marginals.requires_grad
        trees.log_partition.backward()
    assert leaves[0].grad is not None


def test_samples_have_the_distribution_of_the_trees() -> None:
    from scipy import stats

    rules, root = grammar(2, 2, 3, seed=4)
    words = weights(3, 2, seed=4)
    forest = Forest(rules.dense(), root, words)
    trees = PCFG(rules.in_rank_space(), root, words)
    count = 40_000
    drawn = trees.sample((count,), generator=torch.Generator().manual_seed(1))
    charts = torch.stack([forest.chart(nodes) for nodes in forest.weight])
    key = 5 ** torch.arange(9)
    place = {int(((c + 1).flatten() * key).sum()): i for i, c in enumerate(charts)}
    seen = torch.zeros(len(charts), dtype=torch.float64)
    keys, times = ((drawn + 1).flatten(-2) * key).sum(-1).unique(return_counts=True)
    seen[[place[k] for k in keys.tolist()]] = times.double()
    expected = count * trees.log_prob(charts).exp()
    often = expected >= 10  # cells for which the statistic is chi-squared
    assert int(often.sum()) > 30
    pooled = [torch.cat([x[often], x[~often].sum().reshape(1)]) for x in (seen, expected)]
    statistic = ((pooled[0] - pooled[1]).square() / pooled[1]).sum()
    assert stats.chi2.sf(float(statistic), len(pooled[0]) - 1) > 1e-6


def test_entropy_from_samples() -> None:
    rules, root = grammar(2, 2, 3, seed=4)
    words = weights(4, 2, seed=4)
    forest = Forest(rules.dense(), root, words)
    logs = torch.tensor(list(forest.weight.values())) - forest.log_partition
    truth = -float((logs.exp() * logs).sum())
    trees = PCFG(rules, root, words)
    found = trees.entropy_sampled(20_000, generator=torch.Generator().manual_seed(0))
    stderr = float(found.high - found.value) / 1.96
    assert stderr < 0.01 * truth
    assert abs(float(found.value) - truth) < 5.5 * stderr  # normal: 4e-8 by chance


def test_a_proper_grammar_gives_all_sentences_of_a_length_the_probability_of_that_length() -> None:
    rules, root = grammar(3, 2, 4)
    rules = LowRankRules.normalised(rules.log_head, rules.log_left, rules.log_right)
    root = torch.log_softmax(root, -1)
    table, top = rules.dense().exp(), root.exp()
    longest = 8
    # length of what each symbol yields, by convolution: preterminals yield one word
    yields = torch.zeros(longest + 1, 5, dtype=torch.float64)
    yields[1, 3:] = 1.0
    for length in range(2, longest + 1):
        for k in range(1, length):
            yields[length, :3] += torch.einsum("abc,b,c->a", table, yields[k], yields[length - k])
    lengths = torch.arange(1, longest + 1)
    words = torch.zeros(
        longest, longest, 2, dtype=torch.float64
    )  # every word: probabilities sum to 1
    found = PCFG(rules, root, words, lengths=lengths).log_partition.exp()
    torch.testing.assert_close(found, yields[1:] @ top)
    assert float(found.sum()) < 1


def test_long_sentences_stay_exact() -> None:
    rules, root = grammar(4, 4, 6, spread=3.0)
    words = weights(60, 4, seed=7, spread=30.0)
    exact = PCFG(rules, root, words).log_partition
    half = LowRankRules(*(f.float() for f in rules.factor.log_factors))
    rough = PCFG(half, root.float(), words.float()).log_partition
    assert float((rough - exact).abs() / exact.abs()) < 1e-6
    ranked = PCFG(rules.in_rank_space(), root, words).log_partition
    torch.testing.assert_close(ranked, exact, rtol=1e-13, atol=0)
    zeros = torch.zeros(60, 1, dtype=torch.float64)
    flat = [torch.zeros(n, 1, dtype=torch.float64) for n in (1, 2, 2)]
    catalan = math.lgamma(119) - math.lgamma(61) - math.lgamma(60)
    count = PCFG(LowRankRules(*flat), torch.zeros(2, dtype=torch.float64), zeros).log_partition
    assert float(count) == pytest.approx(catalan, rel=1e-13)


def test_ties_give_one_tree() -> None:
    flat = [torch.zeros(n, 2) for n in (2, 4, 4)]
    trees = PCFG(LowRankRules(*flat), torch.zeros(4), torch.zeros(6, 2))
    trees.score(trees.mode())  # raises for what is no tree
    assert int(trees.mbr_spans().sum()) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_root": torch.zeros(3)}, "log_root has 3 entries"),
        ({"unaries": torch.zeros(4, 3)}, "unaries has last dimension 3"),
        ({"unaries": torch.full((4, 2), math.nan)}, "unaries holds 8 entries"),
        ({"unaries": torch.zeros(4, 2).double()}, "unaries has dtype torch.float64"),
        ({"lengths": torch.tensor(5)}, "lengths goes from 5 to 5"),
        ({"lengths": torch.tensor([3])}, "lengths has shape"),
        ({"lengths": torch.tensor(2.0)}, "lengths must be a"),
        ({"log_spans": torch.zeros(3, 3)}, "log_spans has shape"),
        ({"unaries": torch.zeros(2, 4, 2), "log_root": torch.zeros(3, 4)}, "must broadcast"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Tensor], message: str) -> None:
    rules = LowRankRules(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 3))
    given_ = {"log_root": torch.zeros(4), "unaries": torch.zeros(4, 2), **change}
    with pytest.raises((ValueError, TypeError), match=message):
        PCFG(rules, given_.pop("log_root"), given_.pop("unaries"), **given_)


def test_sentences_without_a_parse_say_so() -> None:
    rules, _ = grammar(2, 2, 3)
    root = torch.tensor([0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64)
    trees = PCFG(rules, root, weights(2, 4, 2, seed=0), lengths=torch.tensor([1, 4]))
    assert trees.log_partition[0] == -math.inf
    assert bool(torch.isfinite(trees.log_partition[1]))
    for ask in (
        lambda: trees.span_marginals,
        trees.mode,
        trees.mbr_spans,
        lambda: trees.sample(generator=torch.Generator()),
        lambda: trees.log_prob(torch.full((2, 4, 4), -1)),
    ):
        with pytest.raises(ValueError, match="1 of 2 elements of the batch allow nothing"):
            ask()


def test_the_gradient_of_a_sentence_without_a_parse_is_zero() -> None:
    rules, root = grammar(2, 2, 3)
    words = torch.full((3, 2), -math.inf, dtype=torch.float64, requires_grad=True)
    total = PCFG(rules, root, words).log_partition
    assert total == -math.inf
    total.backward()
    assert torch.equal(words.grad, torch.zeros_like(words))


def test_no_probability_exceeds_one() -> None:
    # one symbol of each kind and two words: one parse, whose score is log Z up to rounding
    parse = torch.tensor([[1, 0], [-1, 1]])
    for seed in range(40):
        rules = LowRankRules(*(weights(k, 3, seed=seed + 100 * k) for k in (1, 2, 2)))
        trees = PCFG(rules, weights(2, seed=seed), weights(2, 1, seed=seed + 1000))
        assert trees.log_prob(parse) <= 0
        assert trees.log_prob(parse) > -1e-12


def test_a_mode_of_many_rules_says_what_to_do_instead() -> None:
    rules = LowRankRules(torch.zeros(300, 1), torch.zeros(600, 1), torch.zeros(600, 1))
    with pytest.raises(ValueError, match=r"108000000 rules.*mbr_spans"):
        PCFG(rules, torch.zeros(600), torch.zeros(3, 300)).mode()


def test_inference_mode_is_named() -> None:
    trees = PCFG(
        LowRankRules(*(torch.zeros(k, 1) for k in (1, 2, 2))), torch.zeros(2), torch.zeros(3, 1)
    )
    with torch.inference_mode():
        assert float(trees.log_partition.exp()) == pytest.approx(2.0)
        with pytest.raises(RuntimeError, match=r"use torch\.no_grad\(\)"):
            trees.mbr_spans()
