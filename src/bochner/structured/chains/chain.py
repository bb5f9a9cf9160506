"""Chains: distributions over sequences of states with weights on states and on neighbours."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

import bochner.structured.chains.decoding as decoding
import bochner.structured.chains.information as information
from bochner.structured.arguments import (
    check_possible,
    checked_lengths,
    checked_states,
    checked_unaries,
    log_probability,
)
from bochner.structured.chains.decoding import Decoding
from bochner.structured.chains.information import Bracket, Estimate
from bochner.structured.chains.pairwise import Pairwise
from bochner.structured.chains.recursion import log_partition
from bochner.structured.chains.sampling import sample
from bochner.structured.edges.transitions import Transitions
from bochner.structured.errors.diagnose import Diagnosis, diagnose
from bochner.structured.leaves import constant, constant_transitions


class Chain:
    """p(x_1, ..., x_T) = exp(sum_t u_t(x_t)) prod_t K_t(x_t, x_{t+1}) / Z.

    A Markov random field, the posterior of a hidden Markov model, a linear-chain conditional random
    field: one recursion, for every kind of `Transitions`.

    Shapes:     unaries u [*b, T, X] (natural logarithms; -inf forbids a state), float32 or float64 (half
                precision is computed in float32); lengths [*b], integers in 1..T (all T by default):
                steps at and after them do not exist.
                The batch of the transitions broadcasts with [*b].
    Raises:     TypeError or ValueError for wrong types and shapes, NaN, +inf, lengths out of range.
    Example:    heads or tails, ten times, where a change costs 1.
        >>> from bochner.structured import Chain, Dense
        >>> coin = Chain(Dense(torch.eye(2).sub(1)[None]), torch.zeros(10, 2))
        >>> round(float(coin.log_partition), 3)                              # log(2 (1 + 1/e)^9)
        3.513
    """

    def __init__(
        self, transitions: Transitions, unaries: Tensor, *, lengths: Tensor | None = None
    ) -> None:
        self.transitions = transitions
        self.unaries = checked_unaries(unaries, transitions)
        self.lengths = checked_lengths(lengths, self.unaries)

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions [*b]."""
        return self.unaries.shape[:-2]

    @property
    def num_steps(self) -> int:
        """T, the length of the longest sequence that fits."""
        return self.unaries.shape[-2]

    @property
    def num_states(self) -> int:
        """|X|."""
        return self.unaries.shape[-1]

    @cached_property
    def there(self) -> Tensor:
        """Which steps exist, bool [*b, T]."""
        steps = torch.arange(self.num_steps, device=self.unaries.device)
        return steps < self.lengths.unsqueeze(-1)

    def flat(self, unaries: Tensor | None = None) -> tuple[Transitions, Tensor, Tensor]:
        """Transitions, unaries [N, T, X] and lengths [N] with one batch dimension."""
        given = self.unaries if unaries is None else unaries
        transitions = self.transitions.flattened(self.batch_shape)
        # with caches of its own: the tensors may have been written to (by an optimiser) since the last time
        transitions = transitions.with_tensors(transitions.tensors())
        return transitions, given.reshape(-1, *given.shape[-2:]), self.lengths.reshape(-1)

    @property
    def log_partition(self) -> Tensor:
        """log Z [*b]; -inf where no path is allowed. Differentiable (twice by the log domain).

        Cost:       O(T) products with the transitions; computed anew each time it is asked for.
        """
        value = log_partition(*self.flat())
        return value.reshape(self.batch_shape).to(self.unaries.dtype)

    @property
    def marginals(self) -> Tensor:
        """p(x_t = x) [*b, T, X]; 0 beyond the lengths. The gradient of log Z by the unaries.

        Differentiable where the unaries or the transitions are, at the price of the log domain; ask
        under torch.no_grad() for the values alone.

        Raises:     ValueError if no path of some sequence is allowed.
        """
        recorded = torch.is_grad_enabled() and (
            self.unaries.requires_grad or any(t.requires_grad for t in self.transitions.tensors())
        )
        with torch.inference_mode(False), torch.enable_grad():
            if recorded:
                unaries, transitions = self.unaries, self.transitions
                if not unaries.requires_grad:
                    unaries = constant(unaries).requires_grad_()
            else:
                unaries = constant(self.unaries).requires_grad_()
                transitions = constant_transitions(self.transitions)
            flat = transitions.flattened(self.batch_shape), unaries.reshape(-1, *unaries.shape[-2:])
            value = log_partition(*flat, constant(self.lengths).reshape(-1))
            check_possible(value)
            (marginals,) = torch.autograd.grad(value.sum(), unaries, create_graph=recorded)
        return marginals

    def score(self, states: Tensor) -> Tensor:
        """log of the weight of a path, before normalisation: states [*s, *b, T] -> [*s, *b].

        Entries beyond the lengths are not read.
        """
        states = checked_states(states, self.there, self.num_states)
        # by index: the gradient of a gather from what is expanded is as large as [*s, *b, T, X]
        steps = torch.meshgrid(
            *(torch.arange(n, device=states.device) for n in self.there.shape), indexing="ij"
        )
        found = self.unaries[(*steps, states)]
        total = torch.where(self.there, found, 0.0).double().sum(-1)
        if self.num_steps > 1:
            pairs = self.transitions.log_potential(states[..., :-1], states[..., 1:])
            total = total + torch.where(self.there[..., 1:], pairs, 0.0).double().sum(-1)
        return total

    def log_prob(self, states: Tensor) -> Tensor:
        """log p(states) <= 0: states [*s, *b, T] -> [*s, *b].

        Numerics:   where rounding puts the score of a nearly certain path above log Z, 0 is returned,
                    with the gradient that it has.
        Raises:     ValueError if no path of some sequence is allowed.
        """
        value = log_partition(*self.flat()).reshape(self.batch_shape)
        check_possible(value)
        return log_probability(self.score(states), value).to(self.unaries.dtype)

    # -- more questions, each answered in a file of its own ------------------------------------------
    @property
    def pairwise(self) -> Pairwise:
        """p(x_t, x_{t+1}) without a table: rows, products with vectors, expectations."""
        return Pairwise(self)

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Exact, independent samples, [*sample_shape, *b, T] int64; 0 at steps that do not exist."""
        return sample(self, tuple(sample_shape), generator=generator)

    def entropy(self) -> Tensor:
        """Entropy in nats, [*b], exactly: O(T X^2) time, a block of rows of memory. No gradient."""
        return information.entropy(self)

    def entropy_sampled(self, num_samples: int, *, generator: torch.Generator) -> Estimate:
        """Entropy from samples, with its interval: O(T (X + m)) a sample."""
        return information.entropy_sampled(self, num_samples, generator=generator)

    def entropy_bracket(self) -> Bracket:
        """Bounds on the entropy, (T - 1) log m apart, from the hidden indices: O(T X m)."""
        return information.entropy_bracket(self)

    def cross_entropy(self, other: Chain) -> Tensor:
        """-E[log p_other] under this chain, [*b], exactly: O(T X^2) time. No gradient."""
        return information.cross_entropy(self, other)

    def cross_entropy_sampled(
        self, other: Chain, num_samples: int, *, generator: torch.Generator
    ) -> Estimate:
        """-E[log p_other] from samples of this chain, with its interval."""
        return information.cross_entropy_sampled(self, other, num_samples, generator=generator)

    def kl(self, other: Chain) -> Tensor:
        """KL(this || other) in nats, [*b], exactly: O(T X^2) time. No gradient."""
        return information.kl(self, other)

    def kl_sampled(self, other: Chain, num_samples: int, *, generator: torch.Generator) -> Estimate:
        """KL(this || other) from samples of this chain, with its interval."""
        return information.kl_sampled(self, other, num_samples, generator=generator)

    def posterior_decode(self) -> Decoding:
        """The likeliest state of every step: the most states right in expectation. O(T X m)."""
        return decoding.posterior_decode(self)

    def mode(self) -> Decoding:
        """A heaviest path, exactly: O(T X^2) time, a block of rows of memory."""
        return decoding.mode(self)

    def mode_pruned(self, beam: int) -> Decoding:
        """A heaviest path among the `beam` likeliest states of every step; gap 0 certifies a mode."""
        return decoding.mode_pruned(self, beam)

    def mode_augmented(self) -> Decoding:
        """The states of a heaviest (states, hidden indices), within (T - 1) log m of a mode. O(T X m)."""
        return decoding.mode_augmented(self)

    def diagnose(
        self, *, num_paths: int = 64, generator: torch.Generator | None = None
    ) -> Diagnosis:
        """Whether log Z can be trusted, its predicted error, and what else could be done."""
        return diagnose(self, num_paths=num_paths, generator=generator)
