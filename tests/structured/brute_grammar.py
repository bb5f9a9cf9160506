"""Oracle for grammars: every labelled binary tree, one by one, from dense rules in float64."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

Nodes = tuple[tuple[int, int], ...]
"""The constituents (first word, last word) of a tree, parents before their children."""


def shapes(first: int, last: int) -> Iterator[Nodes]:
    """All binary trees over the words first .. last."""
    if first == last:
        yield ((first, first),)
    for split in range(first, last):
        for left in shapes(first, split):
            for right in shapes(split + 1, last):
                yield ((first, last), *left, *right)


class Forest:
    """All labelled trees of one sentence, with the logarithms of their weights.

    log_rules [N, S, S], log_root [S], words [n, S - N]; a tree is a chart [n, n] of symbols, -1 where it
    has no constituent.
    """

    def __init__(self, log_rules: Tensor, log_root: Tensor, words: Tensor) -> None:
        rules, root, unary = (x.double().tolist() for x in (log_rules, log_root, words))
        self.heads, self.symbols, self.length = len(rules), len(root), len(unary)
        self.weight: dict[tuple[tuple[int, int, int], ...], float] = {}
        for nodes in shapes(0, self.length - 1):
            kinds = [
                range(self.heads, self.symbols) if i == j else range(self.heads) for i, j in nodes
            ]
            for labels in itertools.product(*kinds):
                of = dict(zip(nodes, labels, strict=True))
                logs = [root[labels[0]]]
                for i, j in nodes:
                    if i == j:
                        logs.append(unary[i][of[i, i] - self.heads])
                        continue
                    split = next(k for k in range(i, j) if (i, k) in of and (k + 1, j) in of)
                    logs.append(rules[of[i, j]][of[i, split]][of[split + 1, j]])
                weight = -math.inf if -math.inf in logs else math.fsum(logs)
                self.weight[tuple((i, j, of[i, j]) for i, j in nodes)] = weight

    @property
    def log_partition(self) -> float:
        top = max(self.weight.values())
        if top == -math.inf:
            return top
        return top + math.log(math.fsum(math.exp(w - top) for w in self.weight.values()))

    def label_marginals(self) -> Tensor:
        """[n, n, S]."""
        total = self.log_partition
        out = torch.zeros(self.length, self.length, self.symbols, dtype=torch.float64)
        for nodes, weight in self.weight.items():
            for i, j, label in nodes:
                out[i, j, label] += math.exp(weight - total)
        return out

    def span_marginals(self) -> Tensor:
        """[n, n]."""
        return self.label_marginals().sum(-1)

    def chart(self, nodes: tuple[tuple[int, int, int], ...]) -> Tensor:
        """A tree as a chart [n, n]."""
        out = torch.full((self.length, self.length), -1)
        for i, j, label in nodes:
            out[i, j] = label
        return out

    def expected_spans(self) -> float:
        """The largest sum of span marginals of any tree."""
        spans = self.span_marginals()
        trees = shapes(0, self.length - 1)
        return max(math.fsum(float(spans[i, j]) for i, j in tree) for tree in trees)

    def expected_labels(self) -> float:
        """The largest sum of label marginals of any labelled tree."""
        best = self.label_marginals().amax(-1)
        trees = shapes(0, self.length - 1)
        return max(math.fsum(float(best[i, j]) for i, j in tree) for tree in trees)
