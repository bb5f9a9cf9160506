"""The exact chain: every weight as it is, O(X^2) time a step. What the others are compared with."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from bochner.structured.chains.chain import Chain
from bochner.structured.edges.embedded import check_embeddings
from bochner.structured.edges.log_bilinear import LogBilinear
from bochner.structured.edges.transitions import Dense, Transitions

STORED_ELEMENTS = 1 << 26
"""Largest K that is stored: 256 MB in float32, 8,192 states."""


class ExactChain(Chain):
    """A chain with given log-potentials, by matrix products of scaled probabilities.

    Shapes:     log_potentials [*b, X, X], row the state before, for every edge; unaries [*b, T, X];
                lengths [*b] (see `Chain`). For edges that differ use Chain(Dense(log_potentials), ...)
                with [*b, T-1, X, X].
    Cost:       log Z in O(T X^2) time and O(X^2) memory; from embeddings that do not fit, O(X) memory.
    Raises:     ValueError for log-potentials that are not square, NaN or +inf.
    Example:
        >>> import torch
        >>> from bochner.structured import ExactChain
        >>> chain = ExactChain(torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), torch.zeros(10, 2))
        >>> round(float(chain.log_partition), 3)                             # log(2 (1 + 1/e)^9)
        3.513
    """

    def __init__(
        self, log_potentials: Tensor, unaries: Tensor, *, lengths: Tensor | None = None
    ) -> None:
        if not isinstance(log_potentials, Tensor) or log_potentials.ndim < 2:
            raise ValueError("log_potentials must be a tensor [*batch, X, X].")
        if not bool((log_potentials.detach() < torch.inf).all()):
            raise ValueError(
                "log_potentials holds NaN or +inf; expected finite logarithms, or -inf to forbid."
            )
        super().__init__(Dense(log_potentials.unsqueeze(-3)), unaries, lengths=lengths)

    @classmethod
    def from_embeddings(
        cls,
        a: Tensor,
        b: Tensor,
        unaries: Tensor,
        *,
        lengths: Tensor | None = None,
        stored_elements: int = STORED_ELEMENTS,
    ) -> Self:
        """log K(x, y) = a_x . b_y, exactly.

        Shapes:     a, b [*b, X, n]; unaries [*b, T, X]; lengths [*b].
        Arguments:  stored_elements: K is stored (`Dense` transitions) if it has no more elements, which
                    is the faster way; else its rows are computed on the fly (`LogBilinear`) at every
                    step, in O(X n) memory. `chain.transitions` tells which.
        Example:
            >>> import torch
            >>> from bochner.structured import ExactChain
            >>> a, b = torch.eye(2), torch.zeros(2, 2)
            >>> stored = ExactChain.from_embeddings(a, b, torch.zeros(3, 2))
            >>> streamed = ExactChain.from_embeddings(a, b, torch.zeros(3, 2), stored_elements=0)
            >>> round(float(stored.log_partition), 4), round(float(streamed.log_partition), 4)
            (2.0794, 2.0794)
        """
        check_embeddings(a, b, unaries)
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        transitions: Transitions
        if batch.numel() * a.shape[-2] ** 2 <= stored_elements:
            transitions = Dense((a @ b.transpose(-1, -2)).unsqueeze(-3))
        else:
            transitions = LogBilinear(a, b)
        chain = cls.__new__(cls)
        Chain.__init__(chain, transitions, unaries, lengths=lengths)
        return chain
