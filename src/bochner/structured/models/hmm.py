"""Hidden Markov models with many states, trained by any torch optimiser on the exact evidence."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bochner.feature_map import compute_dtype
from bochner.structured.arguments import full_precision
from bochner.structured.chains.chain import Chain
from bochner.structured.models.emissions import Emissions
from bochner.structured.models.learned import LearnedTransitions
from bochner.validation import check_count


class HMM(nn.Module):
    """p(v_1 .. v_T) = sum over x of start(x_1) prod_t K(x_t, x_{t+1}) prod_t p(v_t | x_t).

    Shapes:     observations [*b, T], or [*b, T, ...] where an observation is not one number; lengths [*b]
                or None: what is at and after a length is not read.
    Arguments:  transitions: `SoftmaxTransitions` (exact, O(X^2)) or `FeatureTransitions` (rank m, O(X m)),
                or a `LearnedTransitions` of your own whose rows sum to one; emissions: of as many states,
                `CategoricalEmissions` or `Emissions` of your own.
                start is a softmax over free logits, 0 at first.
    Numerics:   transitions, start and emissions are computed in the dtype of the parameters, the evidence
                summed in float64 (from float32 where parameters are in half precision); autocast is off
                inside.
    Cost:       for one evaluation and its gradient O(b T X m) time and O(b T X) memory: the log-emissions
                and their gradient. 16,384 states need few sequences at a time.
    Raises:     ValueError for parts that do not fit, TypeError for what is no such part.
    Differs:    from hmmlearn: no EM; gradients of the evidence instead. One model for all sequences of a
                batch, which need not be concatenated.
    Example:
        >>> from bochner.structured import CategoricalEmissions, FeatureTransitions
        >>> g = torch.Generator().manual_seed(0)
        >>> hmm = HMM(FeatureTransitions(500, 8, generator=g), CategoricalEmissions(500, 6, generator=g))
        >>> every = torch.cartesian_prod(torch.arange(6), torch.arange(6))       # all words of two letters
        >>> round(hmm.log_prob(every).exp().sum().item(), 4)
        1.0
    """

    def __init__(self, transitions: LearnedTransitions, emissions: Emissions) -> None:
        super().__init__()
        _check_part("transitions", transitions, LearnedTransitions)
        _check_part("emissions", emissions, Emissions)
        if not transitions.stochastic:
            raise ValueError(
                f"transitions={type(transitions).__name__} has rows that do not sum to one; an HMM needs"
                " FeatureTransitions or SoftmaxTransitions (a CRF takes any)."
            )
        if transitions.num_states != emissions.num_states:
            raise ValueError(
                f"transitions have num_states={transitions.num_states}, emissions"
                f" {emissions.num_states}; expected the same."
            )
        self.transitions, self.emissions = transitions, emissions
        some = next(transitions.parameters())
        self.start_logits = nn.Parameter(some.new_zeros(transitions.num_states))

    @property
    def num_states(self) -> int:
        """X."""
        return self.transitions.num_states

    def log_start(self) -> Float[Tensor, " x"]:
        """log start(x)."""
        return torch.log_softmax(self.start_logits, dim=-1)

    def chain(self, observations: Tensor, *, lengths: Int[Tensor, "*b"] | None = None) -> Chain:
        """The posterior over hidden states: its log_partition is the evidence log p(observations).

        `.marginals`, `.posterior_decode()`, `.mode()`, `.sample(...)` and `.entropy()` are what they are
        for any chain.
        """
        with full_precision(self.start_logits):
            return self.transitions.chain(self._unaries(observations, lengths), lengths=lengths)

    def prior(self, num_steps: int) -> Chain:
        """The law of the hidden states alone, a chain whose log_partition is 0."""
        check_count("num_steps", num_steps)
        with full_precision(self.start_logits):
            later = self.start_logits.new_zeros(num_steps - 1, self.num_states)
            return self.transitions.chain(torch.cat((self.log_start().unsqueeze(0), later)))

    def log_prob(
        self, observations: Tensor, *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Float[Tensor, "*b"]:
        """log p(observations), [*b]: the objective to maximise."""
        with full_precision(self.start_logits):
            return self.chain(observations, lengths=lengths).log_partition

    def forward(
        self, observations: Tensor, *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Float[Tensor, "*b"]:
        """The same as `log_prob`."""
        return self.log_prob(observations, lengths=lengths)

    def perplexity(
        self, observations: Tensor, *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Float[Tensor, ""]:
        """exp(-log-probability per observation), over the whole batch."""
        log_prob = self.log_prob(observations, lengths=lengths)
        steps = observations.shape[log_prob.ndim]
        count = steps * log_prob.numel() if lengths is None else lengths.sum()
        return torch.exp(-log_prob.double().sum() / count)

    def sample(
        self, num_steps: int, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator
    ) -> tuple[Int[Tensor, "*s t"], Tensor]:
        """Hidden states and observations, drawn from the model."""
        with torch.no_grad():
            states = self.prior(num_steps).sample(sample_shape, generator=generator)
            return states, self.emissions.sample(states, generator=generator)

    def _unaries(self, observations: Tensor, lengths: Tensor | None) -> Float[Tensor, "*b t x"]:
        """log p(v_t | x), and log start(x) at the first step."""
        if not isinstance(observations, Tensor) or observations.ndim == 0:
            kind = type(observations).__name__
            raise TypeError(f"observations is {kind}; expected a tensor [*b, T] or [*b, T, ...].")
        if lengths is not None:
            observations = _without_padding(observations, lengths)
        found = self.emissions.log_prob(observations)
        # not in place: emissions may keep what they return, or need it for their own gradient
        start = self.log_start().unsqueeze(0)
        unaries = found + nn.functional.pad(start, (0, 0, 0, found.shape[-2] - 1))
        return unaries.to(compute_dtype(unaries))


def _without_padding(observations: Tensor, lengths: Tensor) -> Tensor:
    """The observations, 0 beyond the lengths."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths is {type(lengths).__name__}; expected a tensor of integers.")
    batch = observations.shape[: lengths.ndim]
    if lengths.shape != batch or observations.ndim == lengths.ndim:
        raise ValueError(
            f"lengths has shape {list(lengths.shape)}, observations {list(observations.shape)}; expected"
            " [*b] and [*b, T] or [*b, T, ...]."
        )
    steps = torch.arange(observations.shape[lengths.ndim], device=observations.device)
    beyond = steps >= lengths.to(observations.device).unsqueeze(-1)
    trailing = observations.ndim - beyond.ndim
    return observations.masked_fill(beyond.reshape(*beyond.shape, *[1] * trailing), 0)


def _check_part(name: str, part: object, kind: type) -> None:
    if not isinstance(part, kind):
        raise TypeError(
            f"{name} is {type(part).__name__}; expected a {kind.__name__}, as in"
            " HMM(FeatureTransitions(num_states, rank), CategoricalEmissions(num_states, num_words))."
        )
