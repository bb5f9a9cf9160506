"""Rules: forms that are the same table, and normalisation."""

import math

import pytest
import torch

from bochner.projections import Orthogonal
from bochner.structured.grammars.factors import log_pairwise, relative_variance
from bochner.structured.grammars.pcfg import PCFG
from bochner.structured.grammars.rules import LowRankRules


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rules(seed: int = 0) -> LowRankRules:
    return LowRankRules(*(normal(n, 3, seed=seed + k) for k, n in enumerate((2, 5, 5))))


def test_sizes_and_single_rules() -> None:
    low = rules()
    assert (low.num_nonterminals, low.num_preterminals, low.num_symbols, low.rank) == (2, 3, 5, 3)
    table = low.dense()
    heads, lefts, rights = torch.cartesian_prod(*(torch.arange(n) for n in (2, 5, 5))).T
    torch.testing.assert_close(low.log_rule(heads, lefts, rights), table.flatten())


def test_any_table_has_an_exact_low_rank_form() -> None:
    table = normal(2, 2, 5, 5)
    table[0, 1, 2] = -math.inf
    exact = LowRankRules.from_dense(table)
    assert torch.equal(exact.dense(), table)
    assert exact.rank == 10


def test_normalised_in_the_features_is_normalised() -> None:
    low = rules()
    weights = low.dense().exp()
    proper = weights / weights.sum((-2, -1), keepdim=True)
    torch.testing.assert_close(low.row_normalised().dense().exp(), proper)
    logits = LowRankRules.normalised(low.log_head, low.log_left, low.log_right)
    torch.testing.assert_close(logits.dense().exp().sum((-2, -1)), torch.ones(2).double())


def test_random_features_of_rules_approach_them() -> None:
    parts = [0.5 * normal(n, 3, seed=k) for k, n in enumerate((2, 4, 4))]
    truth, g = log_pairwise(parts), torch.Generator().manual_seed(0)
    words, root = torch.zeros(5, 2).double(), torch.zeros(4).double()
    exact = PCFG(LowRankRules.from_dense(truth), root, words).log_partition
    many = LowRankRules.from_embeddings(
        parts, num_features=30_000, generator=g, projection=Orthogonal()
    )
    # log Z of five words: four rules, each off by about the deviation of one entry
    deviation = 4 * float(relative_variance(parts, 30_000).max()) ** 0.5
    assert deviation < 0.1
    assert float((PCFG(many, root, words).log_partition - exact).abs()) < 3 * deviation


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankRules(*(torch.zeros(n, 2) for n in (2, 4, 5))), "have 2, 4, 5 rows"),
        (lambda: LowRankRules(*(torch.zeros(n, 2) for n in (4, 4, 4))), "have 4, 4, 4 rows"),
        (
            lambda: LowRankRules(torch.full((1, 2), math.inf), *[torch.zeros(2, 2)] * 2),
            "log_head holds 2 entries",
        ),
        (lambda: LowRankRules.from_dense(torch.zeros(2, 3, 4)), "log_rules has shape"),
        (
            lambda: LowRankRules.from_embeddings(
                [torch.zeros(2, 2)] * 2, num_features=2, generator=torch.Generator()
            ),
            "embeddings holds 2",
        ),
        (
            lambda: LowRankRules(
                torch.full((1, 2), -math.inf), *[torch.zeros(2, 2)] * 2
            ).row_normalised(),
            "1 nonterminals have no rule",
        ),
    ],
)
def test_errors_name_the_argument(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_half_precision_is_refused() -> None:
    with pytest.raises(TypeError, match=r"log_head has dtype torch\.float16"):
        LowRankRules(*(torch.zeros(n, 2).half() for n in (1, 2, 2)))
