"""Semi-Markov chains: segments of one label, with a weight for how long they last."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bochner.structured.arguments import (
    check_possible,
    checked_lengths,
    checked_states,
    checked_unaries,
    log_probability,
)
from bochner.structured.chains.information import Estimate
from bochner.structured.edges.transitions import Transitions
from bochner.structured.escalation import escalated, in_dtype
from bochner.structured.graphs.blockwise import Blockwise
from bochner.structured.graphs.edge_marginal import EdgeMarginal
from bochner.structured.graphs.segment_walks import SegmentWalk
from bochner.structured.graphs.semi_markov_marginals import BothWays, both_ways
from bochner.structured.graphs.semi_markov_recursion import Backwards, Weights, backwards, forwards
from bochner.structured.graphs.walks import Choice, Drawn, Heaviest
from bochner.structured.semirings import Max, Semiring
from bochner.validation import check_count


class Segmentation(NamedTuple):
    """Labelled segments, step by step.

    Shapes:     labels [*s, *b, T], integers; begins [*s, *b, T], bool: a segment begins at this step.
                Two segments of one label may follow each other. Nothing is read beyond the lengths.
    """

    labels: Tensor
    begins: Tensor


class SemiMarkov:
    """Labelled segmentations, p = prod_i L(x_i, k_i) w_i(x_i) prod_i K(x_{i-1}, x_i) / Z over segments i.

    L weighs how long a label lasts, w_i is the product of exp(unaries) over the steps of a segment, which
    all have its label. Segments of 1 to K steps follow each other without gaps, the first from step 0,
    the last up to the length. The boundary behind step t has the transitions of edge t, as in a `Chain`,
    which this is for K = 1 and log_durations of 0. The first label's weight belongs into unaries 0.

    Shapes:     unaries [*b, T, X], -inf forbids; log_durations [*b, X, K] (or [X, K]): k steps are column
                k-1, -inf forbids; lengths [*b], 1..T.
    Numerics:   as `Tree`: float32 (or the dtype of the unaries), again in float64 or by logsumexp where
                that may lose mass. Every step's largest unary is taken out before anything is added.
    Error:      none, for transitions that are the model.
    Cost:       O(T X (m + K)) time and O((T + K) X) memory for log Z and for all marginals; a gradient
                keeps about five tensors of [*b, T, X]: what is laid out for K durations is made again.
    Raises:     TypeError or ValueError for wrong types and shapes.
    Reference:  docs/theory.md 16.
    Example:    one label: a step is cut off from the next or not.
        >>> from bochner.structured import Dense, SemiMarkov
        >>> cuts = SemiMarkov(
        ...     Dense(torch.zeros(1, 1, 1)), torch.zeros(5, 1), log_durations=torch.zeros(1, 5)
        ... )
        >>> round(float(cuts.log_partition.exp()), 4)                     # 2^4 ways
        16.0
        >>> cuts.begins.squeeze(-1)
        tensor([1.0000, 0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        transitions: Transitions,
        unaries: Tensor,
        *,
        log_durations: Tensor,
        lengths: Tensor | None = None,
    ) -> None:
        self.transitions = transitions
        unaries = checked_unaries(unaries, transitions)
        batch = _checked_durations(log_durations, unaries)
        self.unaries = unaries.expand(*batch, *unaries.shape[-2:])
        self.log_durations = log_durations.to(self.unaries.dtype)
        self.lengths = checked_lengths(lengths, self.unaries)

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions [*b]."""
        return self.unaries.shape[:-2]

    @property
    def num_states(self) -> int:
        """|X|, the number of labels."""
        return self.unaries.shape[-1]

    @property
    def longest(self) -> int:
        """K, the longest duration."""
        return self.log_durations.shape[-1]

    @cached_property
    def there(self) -> Tensor:
        """Which steps exist, bool [*b, T]."""
        steps = torch.arange(self.unaries.shape[-2], device=self.unaries.device)
        return steps < self.lengths.unsqueeze(-1)

    # -- sums over all segmentations ------------------------------------------------------------------
    @property
    def log_partition(self) -> Tensor:
        """log Z [*b], -inf where nothing is allowed. Differentiable; computed anew each time."""
        return self._log_partition().to(self.unaries.dtype)

    @property
    def marginals(self) -> Tensor:
        """p(step t has label x) [*b, T, X], 0 beyond the lengths; constants to autograd.

        Raises:     ValueError if no segmentation of some element is allowed.
        """
        return self._shaped(self._messages.marginals.labels)

    @property
    def begins(self) -> Tensor:
        """p(a segment of label x begins at step t) [*b, T, X]."""
        return self._shaped(self._messages.marginals.begins)

    @property
    def ends(self) -> Tensor:
        """p(a segment of label x has step t as its last) [*b, T, X]."""
        return self._shaped(self._messages.marginals.ends)

    @property
    def durations(self) -> Tensor:
        """Expected number of segments of label x and k steps, [*b, X, K]: column k-1."""
        return self._shaped(self._messages.marginals.durations)

    def entropy(self) -> Tensor:
        """-E log p [*b], exactly: log Z - E[score], dense blocks of K made one after another.

        Numerics:   in float64: log Z and the expected score are large and nearly equal.
        Cost:       O(T X^2 m) time, O(T X) memory.
        """
        if self.unaries.dtype != torch.float64:
            return self._double().entropy().to(self.unaries.dtype)
        score = _expected(self.marginals, self.unaries)
        score = score + _expected(self.durations, self.log_durations)
        found, shape = self._messages, (*self.batch_shape, self.num_states)
        opening = self.begins.double().sum(dim=-1)
        for step in range(1, self.unaries.shape[-2]):
            close, head = found.forwards.closes[step], found.backwards.heads[step]
            edge = EdgeMarginal(
                self.transitions, step - 1, close.log.reshape(shape), head.log.reshape(shape)
            )
            here = opening[..., step]
            each = torch.where(here > 0, edge.expected_log_potential(), 0.0)
            score = score + here * each
        return self._log_partition().detach() - score

    def entropy_sampled(self, num_samples: int, *, generator: torch.Generator) -> Estimate:
        """-E log p from exact samples, unbiased, with a 95 % interval: [*b]."""
        drawn = self.sample((check_count("num_samples", num_samples),), generator=generator)
        with torch.no_grad():
            return Estimate.over(-self.log_prob(drawn))

    # -- single segmentations -------------------------------------------------------------------------
    def score(self, segmentation: Segmentation) -> Tensor:
        """Logarithm of the weight before normalisation, [*s, *b] in float64; -inf for a segment longer
        than K."""
        labels, begins = self._checked(segmentation)
        weights = self.unaries.expand(*labels.shape, self.num_states)
        steps = weights.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        total = torch.where(self.there, steps, 0.0).double().sum(dim=-1)
        duration = self._durations_from(begins)
        table = self.log_durations.unsqueeze(-3)  # [*b, 1, X, K]
        table = table.expand(*labels.shape, *table.shape[-2:])
        row = labels[..., None, None].expand(*labels.shape, 1, self.longest)
        column = (duration.clamp(1, self.longest) - 1).unsqueeze(-1)
        lasting = table.gather(-2, row).squeeze(-2).gather(-1, column).squeeze(-1)
        lasting = torch.where(duration > self.longest, -torch.inf, lasting)
        total = total + torch.where(begins, lasting, 0.0).double().sum(dim=-1)
        if labels.shape[-1] > 1:
            pairs = self.transitions.log_potential(labels[..., :-1], labels[..., 1:])
            total = total + torch.where(begins[..., 1:], pairs, 0.0).double().sum(dim=-1)
        return total

    def log_prob(self, segmentation: Segmentation) -> Tensor:
        """log p <= 0: [*s, *b].

        Raises:     ValueError if no segmentation of some element is allowed.
        """
        value = self._log_partition()
        check_possible(value)
        return log_probability(self.score(segmentation), value).to(self.unaries.dtype)

    def sample(
        self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator
    ) -> Segmentation:
        """Exact draws, from the first segment on: [*sample_shape, *b, T].

        Cost:       one pass of messages, and O(T (m + X + K)) a draw (less where draws share states).
        """
        return self._walk(Drawn(generator), self._messages.backwards, torch.Size(sample_shape))

    def posterior_decode(self) -> Tensor:
        """The most probable label of every step by itself, [*b, T]."""
        return torch.where(self.there, self.marginals.argmax(dim=-1), 0)

    def mode(self) -> tuple[Segmentation, Tensor]:
        """A heaviest segmentation, exactly, and its score [*b]: K is read in dense blocks.

        Cost:       O(T X (X m + K)) time, O(T X) memory.
        """
        with torch.no_grad():
            transitions, weights = self._weights()
            back = backwards(Max(), Blockwise(transitions), weights)
            check_possible(back.log_partition)
            best = self._walk(Heaviest(), back, torch.Size())
            return best, self.score(best).to(self.unaries.dtype)

    # -- behind them ----------------------------------------------------------------------------------
    def _double(self) -> SemiMarkov:
        return SemiMarkov(
            self.transitions.double(),
            self.unaries.detach().double(),
            log_durations=self.log_durations.detach().double(),
            lengths=self.lengths,
        )

    def _weights(
        self, transitions: Transitions | None = None, unaries: Tensor | None = None
    ) -> tuple[Transitions, Weights]:
        """Flattened batch, in the dtype of the unaries."""
        transitions = self.transitions if transitions is None else transitions
        unaries = self.unaries if unaries is None else unaries
        durations = self.log_durations.to(unaries.dtype)
        if durations.ndim > 2:
            durations = durations.expand(*self.batch_shape, *durations.shape[-2:])
        flat = Weights.of(
            unaries.reshape(-1, *unaries.shape[-2:]),
            durations.reshape(-1, *durations.shape[-2:]),
            self.lengths.reshape(-1),
        )
        return transitions.flattened(self.batch_shape), flat

    def _log_partition(self) -> Tensor:
        def run(
            semiring: Semiring, transitions: Transitions, unaries: Tensor
        ) -> tuple[Tensor, Tensor | None]:
            found = forwards(semiring, *self._weights(transitions, unaries))
            return found.log_partition, found.lost

        return escalated(run, self.transitions, self.unaries).reshape(self.batch_shape)

    @cached_property
    def _messages(self) -> BothWays:
        def run(
            semiring: Semiring, transitions: Transitions, unaries: Tensor
        ) -> tuple[BothWays, Tensor | None]:
            found = both_ways(semiring, *self._weights(transitions, unaries))
            return found, found.lost

        with torch.no_grad():
            found = escalated(run, self.transitions, self.unaries)
        check_possible(found.forwards.log_partition)
        return found

    def _shaped(self, counts: Tensor) -> Tensor:
        return counts.reshape(*self.batch_shape, *counts.shape[1:]).to(self.unaries.dtype)

    def _walk(self, choice: Choice, back: Backwards, sample_shape: torch.Size) -> Segmentation:
        """Segments chosen from the first on."""
        with torch.no_grad():
            transitions, weights = self._weights()
            transitions = in_dtype(transitions, back.heads[0].log.dtype)
            walk = SegmentWalk(choice, transitions, weights, back)
            labels, begins = walk.all(sample_shape.numel())
        shape = (*sample_shape, *self.batch_shape, -1)
        return Segmentation(
            labels.movedim(0, -1).reshape(shape), begins.movedim(0, -1).reshape(shape)
        )

    def _durations_from(self, begins: Tensor) -> Tensor:
        """For every step: how long a segment that begins there lasts, [*s, *b, T]."""
        count = begins.shape[-1]
        steps = torch.arange(count, device=begins.device)
        lengths = self.lengths.unsqueeze(-1)
        at = torch.where(begins, steps, lengths)
        following = torch.cat([at[..., 1:], lengths.expand(*at.shape[:-1], 1)], dim=-1)
        return following.flip(-1).cummin(dim=-1).values.flip(-1) - steps

    def _checked(self, segmentation: Segmentation) -> tuple[Tensor, Tensor]:
        labels, begins = segmentation
        labels = checked_states(labels, self.there, self.num_states, name="labels")
        if not isinstance(begins, Tensor) or begins.dtype != torch.bool:
            raise TypeError("begins must be a bool torch.Tensor: True where a segment begins.")
        if begins.shape != labels.shape:
            raise ValueError(
                f"begins has shape {list(begins.shape)}, labels {list(labels.shape)}; expected the same."
            )
        begins = begins & self.there
        if not bool(begins[..., 0].all()):
            raise ValueError("begins must be True at step 0: the first segment begins there.")
        changed = (labels[..., 1:] != labels[..., :-1]) & self.there[..., 1:] & ~begins[..., 1:]
        if bool(changed.any()):
            step = int(changed.reshape(-1, changed.shape[-1]).any(dim=0).nonzero()[0, 0]) + 1
            raise ValueError(
                f"labels change at step {step} where begins is False: a segment has one label."
            )
        return labels, begins


def _expected(counts: Tensor, log_weights: Tensor) -> Tensor:
    """sum counts * log_weights over the last two dimensions, 0 * -inf being 0; float64."""
    allowed = torch.where(counts > 0, log_weights, 0.0)
    return (counts.double() * allowed.double()).sum(dim=(-1, -2)).detach()


def _checked_durations(log_durations: Tensor, unaries: Tensor) -> torch.Size:
    if not isinstance(log_durations, Tensor) or not log_durations.is_floating_point():
        raise TypeError(
            "log_durations must be a floating-point torch.Tensor [*batch, X, K], got"
            f" {log_durations.dtype if isinstance(log_durations, Tensor) else type(log_durations).__name__}."
        )
    states = unaries.shape[-1]
    if log_durations.ndim < 2 or log_durations.shape[-2] != states or not log_durations.numel():
        raise ValueError(
            f"log_durations has shape {list(log_durations.shape)}; expected [*batch, {states}, K] with"
            " K >= 1: a row for every state, column k-1 for k steps."
        )
    if not bool((log_durations.detach() < torch.inf).all()):
        raise ValueError("log_durations holds NaN or +inf; expected logarithms, or -inf to forbid.")
    try:
        return torch.broadcast_shapes(unaries.shape[:-2], log_durations.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"log_durations has leading dimensions {list(log_durations.shape[:-2])}, unaries has"
            f" {list(unaries.shape[:-2])}: they do not broadcast."
        ) from None
