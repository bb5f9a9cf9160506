"""Parses as charts: what is a tree, and its branchings."""

import pytest
import torch

from bochner.structured.grammars.parses import brackets, check_parses, nodes
from tests.structured.brute_grammar import shapes


def chart(spans: tuple[tuple[int, int], ...], size: int, nonterminals: int = 2) -> torch.Tensor:
    out = torch.full((size, size), -1)
    for i, j in spans:
        out[i, j] = nonterminals if i == j else (i + j) % nonterminals
    return out


def test_every_tree_is_one_and_its_branchings_are_found() -> None:
    trees = list(shapes(0, 4))
    charts = torch.stack([chart(tree, 5) for tree in trees])
    check_parses(charts, torch.full((len(trees),), 5), 2, 3)
    found = nodes(charts)
    assert len(found.parse) == 4 * len(trees)
    for p, i, j, left, right in zip(
        found.parse, found.first, found.last, found.left, found.right, strict=True
    ):
        tree = trees[int(p)]
        split = next(k for k in range(i, j) if (i, k) in tree and (k + 1, j) in tree)
        assert left == charts[p, i, split]
        assert right == charts[p, split + 1, j]


@pytest.mark.parametrize("change", range(7))
def test_what_is_no_tree_is_refused(change: int) -> None:
    good = chart(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2)), 4)
    lengths = torch.tensor([3])
    check_parses(good.unsqueeze(0), lengths, 2, 3)
    bad = good.clone()
    if change == 0:
        bad[1, 2] = -1  # a constituent is missing
    elif change == 1:
        bad[0, 1] = 0  # one crosses
    elif change == 2:
        bad[1, 2], bad[0, 3] = -1, 0  # one ends beyond the sentence
    elif change == 3:
        bad[0, 0] = 0  # a word with a nonterminal
    elif change == 4:
        bad[0, 2] = 2  # a span with a preterminal
    elif change == 5:
        bad[3, 0] = -7  # no symbol
    else:
        bad[1, 2], bad[2, 1] = -1, 0  # below the diagonal
    with pytest.raises(ValueError, match="parse 1 .* is not a binary tree"):
        check_parses(torch.stack([good, bad]), lengths.expand(2), 2, 3)


def test_crossing_spans_of_the_right_number_are_refused() -> None:
    bad = chart(((0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (1, 2), (0, 3)), 4)
    with pytest.raises(ValueError, match="is not a binary tree"):
        check_parses(bad.unsqueeze(0), torch.tensor([4]), 2, 3)


def test_text() -> None:
    spans = ((0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (2, 3), (0, 3))
    assert brackets(chart(spans, 5), list("abcd")) == "((a b) (c d))"


def test_brackets_of_what_is_not_one_tree_over_the_words() -> None:
    spans = torch.eye(3, dtype=torch.bool)
    spans[0, 1] = spans[0, 2] = True
    with pytest.raises(ValueError, match=r"expected one chart \[n, n\]"):
        brackets(spans[None], ["a", "b", "c"])
    with pytest.raises(ValueError, match="parse covers 3 words, words holds 4"):
        brackets(spans, ["a", "b", "c", "d"])
