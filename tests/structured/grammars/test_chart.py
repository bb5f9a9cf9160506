"""The recursion itself: its numerics, and what it does in other semirings."""

import math

import torch

from bochner.structured.grammars.chart import inside
from bochner.structured.grammars.pcfg import PCFG
from bochner.structured.grammars.rules import LowRankRules
from bochner.structured.semirings import LogSum, Max, Sum


def test_a_split_whose_parts_never_meet_does_not_cost_the_others_their_digits() -> None:
    # in (ab)c the left child weighs e^20001, but in rank 1, where the right one has nothing
    zero = -math.inf
    log_head = torch.tensor([[0.0, 0.0]])
    log_left = torch.tensor([[zero, 20000.0], [0.0, zero], [zero, zero]])
    log_right = torch.tensor([[0.123456, zero], [0.0, zero], [0.0, zero]])
    rules = LowRankRules(log_head, log_left, log_right)
    words = torch.tensor([[0.3, zero], [0.7, zero], [1.1, 1.0]])
    exact = LowRankRules(log_head.double(), log_left.double(), log_right.double())
    root = torch.zeros(3)
    found = PCFG(rules, root, words).log_partition
    truth = PCFG(exact, root.double(), words.double()).log_partition
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=1e-6)


def test_all_sums_agree_and_the_heaviest_derivation_is_below_them() -> None:
    g = torch.Generator().manual_seed(0)
    rules = LowRankRules(*(torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (2, 4, 4)))
    root, words = torch.randn(4, generator=g).double(), torch.randn(2, 6, 2, generator=g).double()
    totals = {
        semiring: torch.stack(inside(rules.passage(semiring), words, log_root=root).totals)
        for semiring in (Sum(), LogSum(), Max())
    }
    by_sum, by_logs, by_max = totals.values()
    torch.testing.assert_close(by_sum, by_logs, rtol=1e-13, atol=1e-13)
    assert bool((by_max < by_sum).all())
