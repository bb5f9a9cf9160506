"""Hidden Markov models in the space of ranks: the number of states costs nothing in the recursion."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bochner.feature_map import compute_dtype
from bochner.request import fresh_generator
from bochner.structured.chains.chain import Chain
from bochner.structured.chains.homogeneous import log_matmul
from bochner.structured.edges.transitions import Dense
from bochner.structured.models.emissions import Emissions
from bochner.structured.models.hmm import HMM
from bochner.structured.models.learned import LearnedTransitions, normal
from bochner.validation import check_count


class RankTransitions(LearnedTransitions):
    """R(j, k) = sum_y B(j, y) A(y, k): ranks that succeed each other, the X states between summed out.

        A = softmax_k(left), [X, r];    B = softmax_y(right), [r, X];    both have rows that sum to one

    Arguments:  rank: r, the states of the chain (`num_states`); num_hidden: X; generator: of the initial
                logits.
    Cost:       O(X r^2) time once, then O(r^2) for a step; O(X r) memory.
    Example:
        >>> k = RankTransitions(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> round(k.chain(torch.zeros(9, 4)).log_partition.exp().item(), 4)     # rows of R sum to 1
        4.0
    """

    stochastic = True

    def __init__(
        self, rank: int, num_hidden: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(check_count("rank", rank))
        self.num_hidden = check_count("num_hidden", num_hidden)
        generator = fresh_generator() if generator is None else generator
        self.left = normal(num_hidden, rank, generator=generator)
        self.right = normal(rank, num_hidden, generator=generator)

    def log_emitted(self) -> Float[Tensor, "x r"]:
        """log A: the probabilities of the ranks that leave each state."""
        return self.left.log_softmax(dim=-1)

    def chain(
        self, unaries: Float[Tensor, "*b t r"], *, lengths: Int[Tensor, "*b"] | None = None
    ) -> Chain:
        """A chain over ranks, with the exact table R."""
        table = log_matmul(self.right.log_softmax(dim=-1), self.log_emitted())
        table = table.to(compute_dtype(unaries))
        return Chain(Dense(table.unsqueeze(0)), unaries, lengths=lengths)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"rank={self.num_states}, num_hidden={self.num_hidden}"


class RankHMM(HMM):
    """An HMM whose observations hang on the ranks of its transitions instead of its states.

        x_0 ~ start,  then for every t:  j_t ~ A(x_{t-1}, .),   v_t ~ p(. | j_t),   x_t ~ B(j_t, .)

    The states x between the ranks sum out: what remains is a chain over r ranks with R = B A, of which R
    is all that ever sees X. It is another model than the `HMM` of low rank, where v_t hangs on x_t.

    Shapes:     observations [*b, T]; chains and samples are over ranks, 0..r-1.
    Arguments:  num_hidden: X; emissions: of the r ranks (emissions.num_states is r); generator: of the
                initial logits. start is a softmax over X free logits.
    Cost:       O(X r^2) time for each evaluation, then O(b T r^2), whatever X is.
    Reference:  Yang, Liu and Tu, Dynamic Programming in Rank Space: Scaling Structured Inference with
                Low-Rank HMMs and PCFGs, 2022.
    Example:
        >>> from bochner.structured import CategoricalEmissions
        >>> g = torch.Generator().manual_seed(0)
        >>> hmm = RankHMM(1000, CategoricalEmissions(4, 6, generator=g), generator=g)
        >>> every = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        >>> round(hmm.log_prob(every).exp().sum().item(), 4)
        1.0
    """

    transitions: RankTransitions

    def __init__(
        self,
        num_hidden: int,
        emissions: Emissions,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(emissions, Emissions):
            raise TypeError(f"emissions is {type(emissions).__name__}; expected an Emissions.")
        transitions = RankTransitions(emissions.num_states, num_hidden, generator=generator)
        super().__init__(transitions, emissions)
        self.start_logits = nn.Parameter(self.start_logits.new_zeros(num_hidden))

    def log_start(self) -> Float[Tensor, " r"]:
        """Of the first rank: the first state is summed out as well."""
        start = self.start_logits.log_softmax(dim=-1).unsqueeze(0)
        return log_matmul(start, self.transitions.log_emitted()).squeeze(0)
