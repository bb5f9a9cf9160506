"""One chain in many sizes, for which everything that sums over its paths gives the same number.

    log Z = log sum_{x_1..x_T} prod_t exp(u_t(x_t)) prod_t K(x_t, x_t+1)

    K = A B^T    positive features A, B [X, m] of random embeddings, every row of K adding up to 1
    u            standard normal, other ones at every step

K is a matrix of transition probabilities so that programs for hidden Markov models can take part. Its rank
is m: the low-rank chain is exact for it. For `from_embeddings` there is K = exp(a_x . b_y) besides.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """Sizes that all contestants share; `logit_std` is the standard deviation of a_x . b_y."""

    steps: int = 256
    num_features: int = 256
    dim: int = 64
    logit_std: float = 0.5


class Problem:
    """The tensors of one size: made when first asked for, float32."""

    def __init__(self, setting: Setting, states: int, seed: int = 0) -> None:
        self.setting, self.states, self.seed = setting, states, seed

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    @cached_property
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """a, b [X, n]: a_x . b_y has mean 0 and the setting's standard deviation."""
        scale = math.sqrt(self.setting.logit_std / math.sqrt(self.setting.dim))
        shape = (self.states, self.setting.dim)
        generator = self._generator(1)
        return tuple(scale * torch.randn(shape, generator=generator) for _ in "ab")  # type: ignore

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """log A, log B [X, m]."""
        omega = torch.randn(
            self.setting.num_features, self.setting.dim, generator=self._generator(2)
        )
        left, right = (x @ omega.T - 0.5 * x.square().sum(-1, True) for x in self.embeddings)
        columns = torch.logsumexp(right, dim=0)
        return left - torch.logsumexp(left + columns, dim=-1, keepdim=True), right

    @cached_property
    def unaries(self) -> Tensor:
        """u [T, X]."""
        return torch.randn(self.setting.steps, self.states, generator=self._generator(3))

    def matrix(self) -> Tensor:
        """K [X, X], stored; not kept."""
        left, right = self.features
        top = right.amax(dim=0)
        return torch.exp(left + top) @ torch.exp(right - top).T

    def kernel_rows(self, rows: slice) -> Tensor:
        """Some rows of exp(a_x . b_y), made anew."""
        a, b = self.embeddings
        return (a[rows] @ b.T).exp_()


@functools.cache
def problem(setting: Setting, states: int) -> Problem:
    """The latest problem; contestants share its tensors."""
    return Problem(setting, states)


@dataclass(frozen=True)
class Truth:
    """log Z and the marginals [T, X], in float64."""

    log_partition: float
    marginals: Tensor


def truth(made: Problem) -> Truth:
    """The plain forward-backward algorithm on the stored matrix, in float64: O(T X^2)."""
    matrix = made.matrix().double()
    log_partition, marginals = forward_backward(matrix, made.unaries.double())
    return Truth(log_partition, marginals)


def forward(matrix: Tensor, unaries: Tensor) -> tuple[float, list[Tensor]]:
    """log Z by scaled matrix products, and the messages [X] of every step, each adding up to 1."""
    top = unaries.amax(dim=-1, keepdim=True)
    weights = torch.exp(unaries - top)
    messages = []
    message, log_partition = weights[0], float(top.double().sum())
    for step in range(len(weights)):
        if step:
            message = weights[step] * (message @ matrix)
        total = message.sum()
        message = message / total
        log_partition += math.log(total)
        messages.append(message)
    return log_partition, messages


def forward_backward(matrix: Tensor, unaries: Tensor) -> tuple[float, Tensor]:
    """log Z and the marginals [T, X] by scaled matrix products."""
    log_partition, messages = forward(matrix, unaries)
    weights = torch.exp(unaries - unaries.amax(dim=-1, keepdim=True))
    marginals = torch.empty_like(unaries)
    back = torch.ones_like(weights[0])
    for step in reversed(range(len(weights))):
        product = messages[step] * back
        marginals[step] = product / product.sum()
        back = matrix @ (weights[step] * back)
        back = back / back.sum()
    return log_partition, marginals
