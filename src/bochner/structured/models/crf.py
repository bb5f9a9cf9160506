"""A linear-chain CRF as a layer: emissions and tags in, log-likelihood and tags out."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bochner.feature_map import compute_dtype
from bochner.request import fresh_generator
from bochner.structured.arguments import full_precision
from bochner.structured.chains.chain import Chain
from bochner.structured.edges.transitions import Dense
from bochner.structured.models.emissions import check_integers
from bochner.structured.models.learned import LearnedTransitions
from bochner.validation import check_count

REDUCTIONS = ("none", "sum", "mean", "token_mean")


class CRF(nn.Module):
    """p(tags | emissions) = exp(start + emissions + transitions + end of the tags) / Z.

    Calls, parameter names and state_dict are those of pytorch-crf, so that `from torchcrf import CRF` can
    become `from bochner.structured import CRF`. `transitions` takes other transitions than a table.

    Shapes:     emissions [T, b, C] of any floating dtype, tags and mask [T, b]; with batch_first
                emissions [b, T, C], tags and mask [b, T].
    Arguments:  num_tags: C; transitions: None for a learned table [C, C], or learned transitions over C
                states: `LowRankTransitions`, of O(C m), and `HybridTransitions` are for thousands of tags;
                generator: of the initial values, uniform in -0.1..0.1.
    Numerics:   float16 and bfloat16 emissions are computed in float32, autocast is off inside. The
                normaliser is summed in float64 and its gradient is exact; no log-likelihood exceeds 0 by
                more than a rounding error.
    Cost:       table O(b T C^2) time, no memory of [b, C, C]; low rank O(b T C m).
    Raises:     ValueError or TypeError, naming the argument, for shapes, tags, masks that do not fit.
    Differs:    from pytorch-crf 0.7.2: a mask must be True up to a length and False after it (there,
                positions in the middle could be left out); tags that the mask hides may hold anything,
                emissions there anything but NaN and +inf;
                `decode` of two equally good paths may return the other one; emissions in half precision
                are not added up in half precision. More: `marginals`, `posterior_decode`, `chain`.
    Example:
        >>> crf = CRF(5, batch_first=True, generator=torch.Generator().manual_seed(0))
        >>> emissions, tags = torch.zeros(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
        >>> loss = -crf(emissions, tags, reduction="mean")
        >>> f"{loss.item():.2f}, {3 * torch.tensor(5.0).log().item():.2f}"                # about uniform
        '4.80, 4.83'
        >>> [len(path) for path in crf.decode(emissions)]
        [3, 3]
    """

    def __init__(
        self,
        num_tags: int,
        batch_first: bool = False,
        *,
        transitions: LearnedTransitions | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_tags = check_count("num_tags", num_tags)
        self.batch_first = batch_first
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions: nn.Parameter | LearnedTransitions
        if transitions is None:
            self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        else:
            self.transitions = self._checked(transitions)
        self.reset_parameters(generator=generator)

    def _checked(self, transitions: LearnedTransitions) -> LearnedTransitions:
        if not isinstance(transitions, LearnedTransitions):
            raise TypeError(
                f"transitions is {type(transitions).__name__}; expected None (a learned table) or a"
                " LearnedTransitions, for example LowRankTransitions(num_tags, 64)."
            )
        if transitions.num_states != self.num_tags:
            raise ValueError(
                f"transitions have num_states={transitions.num_states}; expected num_tags="
                f"{self.num_tags}."
            )
        return transitions

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Start, end and the table uniform in -0.1..0.1, as pytorch-crf begins; learned transitions that
        were given stay as they are."""
        generator = fresh_generator() if generator is None else generator
        own = [self.start_transitions, self.end_transitions, self.transitions]
        with torch.no_grad():
            for parameter in own:
                if isinstance(parameter, nn.Parameter):
                    drawn = torch.rand(
                        parameter.shape, generator=generator, device=generator.device
                    )
                    parameter.copy_(0.2 * drawn - 0.1)

    def forward(
        self,
        emissions: Float[Tensor, "..."],
        tags: Int[Tensor, "..."],
        mask: Tensor | None = None,
        reduction: str = "sum",
    ) -> Tensor:
        """The log-likelihood of the tags: to be maximised.

        reduction: "none" gives one value for each sequence, "sum" their sum, "mean" their mean,
        "token_mean" their sum divided by the number of tags.
        """
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction={reduction!r}; expected one of {', '.join(REDUCTIONS)}.")
        with full_precision(emissions):
            chain, shown = self._chain(emissions, mask)
            found = chain.log_prob(self._checked_tags(tags, emissions, shown))
        if reduction == "none":
            return found
        if reduction == "mean":
            return found.mean()
        return found.sum() / shown.sum() if reduction == "token_mean" else found.sum()

    def decode(
        self, emissions: Float[Tensor, "..."], mask: Tensor | None = None
    ) -> list[list[int]]:
        """The best path of every sequence (Viterbi), O(T C^2) time whatever the transitions are.

        For thousands of tags: `posterior_decode`, or `chain(emissions, mask).mode_pruned(beam)`.
        """
        with torch.no_grad(), full_precision(emissions):
            chain, shown = self._chain(emissions, mask)
            return _lists(chain.mode().states, shown)

    def posterior_decode(
        self, emissions: Float[Tensor, "..."], mask: Tensor | None = None
    ) -> list[list[int]]:
        """The most probable tag at every step: the fewest wrong tags to be expected. O(T C m) time."""
        with torch.no_grad(), full_precision(emissions):
            chain, shown = self._chain(emissions, mask)
            return _lists(chain.posterior_decode().states, shown)

    def marginals(
        self, emissions: Float[Tensor, "..."], mask: Tensor | None = None
    ) -> Float[Tensor, "..."]:
        """p(tag at step t | emissions), in the shape of the emissions; 0 where the mask is False."""
        with full_precision(emissions):
            found = self._chain(emissions, mask)[0].marginals
        return found if self.batch_first else found.transpose(0, 1)

    def chain(self, emissions: Float[Tensor, "..."], mask: Tensor | None = None) -> Chain:
        """The law of the tags [b, T], batch first: entropy, samples, pairwise marginals, diagnosis."""
        with full_precision(emissions):
            return self._chain(emissions, mask)[0]

    def _chain(self, emissions: Tensor, mask: Tensor | None) -> tuple[Chain, Bool[Tensor, "b t"]]:
        """The chain and which steps exist, both batch first."""
        self._check_emissions(emissions)
        if not self.batch_first:
            emissions = emissions.transpose(0, 1)
        shown = self._shown(mask, emissions)
        lengths = shown.sum(dim=-1)
        dtype = torch.promote_types(compute_dtype(emissions), self.start_transitions.dtype)
        unaries = emissions.to(dtype, copy=True)
        unaries[:, 0] += self.start_transitions.to(dtype)
        rows = torch.arange(len(lengths), device=lengths.device)
        unaries[rows, lengths - 1] += self.end_transitions.to(dtype)
        if isinstance(self.transitions, LearnedTransitions):
            return self.transitions.chain(unaries, lengths=lengths), shown
        table = Dense(self.transitions.to(dtype).unsqueeze(0))
        return Chain(table, unaries, lengths=lengths), shown

    def _check_emissions(self, emissions: Tensor) -> None:
        steps = "batch, steps" if self.batch_first else "steps, batch"
        if not isinstance(emissions, Tensor) or not emissions.is_floating_point():
            kind = emissions.dtype if isinstance(emissions, Tensor) else type(emissions).__name__
            raise TypeError(
                f"emissions is {kind}; expected a floating-point tensor [{steps}, tags]."
            )
        shape = list(emissions.shape)
        if emissions.ndim != 3 or shape[-1] != self.num_tags or 0 in shape:
            raise ValueError(
                f"emissions has shape {shape}; expected [{steps}, {self.num_tags}]"
                f" (batch_first={self.batch_first}), nothing empty."
            )
        if not bool((emissions.detach() < torch.inf).all()):
            raise ValueError(
                "emissions holds NaN or +inf; expected finite numbers, or -inf to forbid a tag."
            )

    def _shown(self, mask: Tensor | None, emissions: Tensor) -> Bool[Tensor, "b t"]:
        """The mask, batch first, checked; emissions are batch first already."""
        batch, steps = emissions.shape[:2]
        if mask is None:
            return torch.ones(batch, steps, dtype=torch.bool, device=emissions.device)
        wanted = (batch, steps) if self.batch_first else (steps, batch)
        if not isinstance(mask, Tensor) or tuple(mask.shape) != wanted:
            found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask is {found}; expected a tensor of shape {list(wanted)}.")
        shown = (mask if self.batch_first else mask.transpose(0, 1)) != 0
        prefix = torch.arange(steps, device=shown.device) < shown.sum(dim=-1, keepdim=True)
        wrong = ((shown != prefix).any(dim=-1) | ~shown[:, 0]).nonzero().flatten()
        if len(wrong):
            raise ValueError(
                f"mask of sequence {int(wrong[0])} is {shown[wrong[0]].int().tolist()}; expected ones up"
                " to a length of at least 1, then zeros: pad sequences on the right, and take what is to"
                " be left out of the middle out of the emissions."
            )
        return shown

    def _checked_tags(
        self, tags: Tensor, emissions: Tensor, shown: Bool[Tensor, "b t"]
    ) -> Int[Tensor, "b t"]:
        """The tags, batch first, 0 where they are hidden."""
        wanted = emissions.shape[:2]
        if not isinstance(tags, Tensor) or tags.shape != wanted:
            found = list(tags.shape) if isinstance(tags, Tensor) else type(tags).__name__
            raise ValueError(f"tags is {found}; expected a tensor of shape {list(wanted)}.")
        tags = tags if self.batch_first else tags.transpose(0, 1)
        tags = tags.masked_fill(~shown, 0)
        check_integers("tags", tags, self.num_tags, limit="mask")
        return tags.long()

    def extra_repr(self) -> str:
        """Sizes."""
        return f"num_tags={self.num_tags}, batch_first={self.batch_first}"


def _lists(states: Tensor, shown: Tensor) -> list[list[int]]:
    """The rows of states [b, T] up to their lengths."""
    pairs = zip(states.tolist(), shown.sum(dim=-1).tolist(), strict=True)
    return [row[:length] for row, length in pairs]
