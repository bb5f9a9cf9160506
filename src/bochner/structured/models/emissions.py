"""What the hidden states of an HMM emit."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bochner.request import fresh_generator
from bochner.structured.models.learned import normal
from bochner.validation import check_count

_ELEMENTS = 1 << 22  # logits of states and words that exist at one time: 16 MB in float32


class Emissions(nn.Module, ABC):
    """p(observation | state) for `num_states` states.

    Subclasses: set `num_states`, give `log_prob` and `sample`.
    Example:    Gaussians around a mean for each state, of variance 1.
        >>> class Gaussians(Emissions):
        ...     def __init__(self, num_states, dim):
        ...         super().__init__()
        ...         self.num_states = num_states
        ...         self.mean = nn.Parameter(torch.zeros(num_states, dim))
        ...
        ...     def log_prob(self, observations):  # [*b, T, dim] -> [*b, T, X]
        ...         normal = torch.distributions.Normal(self.mean, 1.0)
        ...         return normal.log_prob(observations.unsqueeze(-2)).sum(-1)
        ...
        ...     def sample(self, states, *, generator):
        ...         mean = self.mean[states]
        ...         return mean + torch.randn(mean.shape, generator=generator)
        >>> from bochner.structured import HMM, FeatureTransitions
        >>> hmm = HMM(FeatureTransitions(100, 4), Gaussians(100, dim=3))
        >>> log_prob = hmm.log_prob(torch.zeros(2, 5, 3), lengths=torch.tensor([5, 1]))
        >>> [f"{value:.3f}" for value in log_prob.tolist()]              # -1.5 log(2 pi), 5 times and once
        ['-13.784', '-2.757']
    """

    num_states: int

    @abstractmethod
    def log_prob(self, observations: Tensor) -> Float[Tensor, "*b t x"]:
        """log p(observations[*b, t] | x) for all states x, of observations [*b, T] or [*b, T, ...]; what is
        beyond a length is 0 there, and what is said of it is not read."""

    @abstractmethod
    def sample(self, states: Int[Tensor, "*b"], *, generator: torch.Generator) -> Tensor:
        """An observation for each of the states."""


class CategoricalEmissions(Emissions):
    """Words from an exact softmax: log p(v | x) = s_x . w_v / sqrt(dim) + c_v - log sum_v' (the same).

    Shapes:     observations [*b, T], integers in 0..num_words-1.
    Arguments:  dim: of the embeddings of states and words; generator: of their initial values.
    Numerics:   nothing of size [*b, T, X, V] exists. The normaliser of every state is summed over all
                words in blocks of states, which are made again for the gradient; beyond that only
                words that occur are looked at: O(U X) for U different words, then a gather.
    Cost:       O(X V dim) time for the normaliser, however long the observations.
    Raises:     ValueError or TypeError for observations that are no words.
    Example:
        >>> e = CategoricalEmissions(4, 10, dim=3, generator=torch.Generator().manual_seed(0))
        >>> every = e.log_prob(torch.arange(10))                         # [10 words, 4 states]
        >>> every.shape, [f"{p:.4f}" for p in every.exp().sum(0)]
        (torch.Size([10, 4]), ['1.0000', '1.0000', '1.0000', '1.0000'])
    """

    def __init__(
        self,
        num_states: int,
        num_words: int,
        *,
        dim: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_states = check_count("num_states", num_states)
        self.num_words = check_count("num_words", num_words)
        generator = fresh_generator() if generator is None else generator
        self.states = normal(num_states, check_count("dim", dim), generator=generator)
        self.words = normal(num_words, dim, generator=generator)
        self.bias = nn.Parameter(torch.zeros(num_words, device=generator.device))

    def log_prob(self, observations: Tensor) -> Float[Tensor, "*b t x"]:
        """log p(word | x) of the words observed."""
        check_integers("observations", observations, self.num_words)
        found, place = observations.long().unique(return_inverse=True)
        logits = self.logits(self.words[found], self.states, self.bias[found].unsqueeze(-1))
        return nn.functional.embedding(place, logits - self.log_normaliser())

    def log_normaliser(self) -> Float[Tensor, " x"]:
        """log sum_v exp(logit of x and v), block of states by block of states."""
        blocks = self.states.split(max(1, _ELEMENTS // self.num_words))
        if not torch.is_grad_enabled() or len(blocks) == 1:
            return torch.cat([self._block_normaliser(b, self.words, self.bias) for b in blocks])
        parts = [
            checkpoint(self._block_normaliser, b, self.words, self.bias, use_reentrant=False)
            for b in blocks
        ]
        return torch.cat(parts)

    def sample(self, states: Int[Tensor, "*b"], *, generator: torch.Generator) -> Tensor:
        """A word for each of the states."""
        words = torch.empty_like(states, memory_format=torch.contiguous_format)
        flat, found = words.view(-1), states.reshape(-1)
        for rows in torch.arange(len(found)).split(max(1, _ELEMENTS // self.num_words)):
            logits = self.logits(self.states[found[rows]], self.words, self.bias).detach()
            flat[rows] = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        return words

    def _block_normaliser(self, states: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        return torch.logsumexp(self.logits(states, words, bias), dim=-1)

    @staticmethod
    def logits(rows: Tensor, columns: Tensor, bias: Tensor) -> Tensor:
        """Of all pairs, scaled by 1/sqrt(dim)."""
        return torch.addmm(bias, rows / rows.shape[-1] ** 0.5, columns.T)

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"num_states={self.num_states}, num_words={self.num_words}, dim={self.words.shape[-1]}"
        )


def check_integers(name: str, values: Tensor, count: int, *, limit: str = "lengths") -> None:
    """Raise unless `values` are integers in 0..count-1, at least one; `limit` is what ends sequences."""
    if not isinstance(values, Tensor) or values.is_floating_point() or values.is_complex():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} is {kind}; expected a tensor of integers in 0..{count - 1}.")
    if values.numel() == 0:
        raise ValueError(f"{name} has shape {list(values.shape)}: it is empty.")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"{name} holds {low if low < 0 else high}; expected integers in 0..{count - 1}"
            f" (padding is not read: give `{limit}`)."
        )
