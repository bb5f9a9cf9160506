"""Small chains over embeddings for the enumeration, of any shape: lengths, batches, forbidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.maps import seeded


@dataclass(frozen=True)
class Problem:
    """a, b [*c, X, n], unaries [*b, T, X] with -inf, lengths [*b]; float64."""

    a: Tensor
    b: Tensor
    unaries: Tensor
    lengths: Tensor

    @property
    def potentials(self) -> Tensor:
        """log K on every edge, [*c, E, X, X]."""
        one = (self.a @ self.b.mT).unsqueeze(-3)
        return one.expand(*one.shape[:-3], self.unaries.shape[-2] - 1, -1, -1)

    def to(self, dtype: torch.dtype) -> Problem:
        return Problem(self.a.to(dtype), self.b.to(dtype), self.unaries.to(dtype), self.lengths)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.a, self.b, self.unaries


def problem(
    states: int,
    steps: int,
    *,
    dim: int = 2,
    batch: tuple[int, ...] = (),
    own: bool = False,
    forbidden: float = 0.0,
    scale: float = 0.7,
    seed: int = 0,
) -> Problem:
    """own: embeddings for every element of the batch; state 0 is never forbidden."""
    g = seeded(seed)
    lead = batch if own else ()
    a, b = (
        scale * torch.randn(*lead, states, dim, generator=g, dtype=torch.float64) + 0.3
        for _ in "ab"
    )
    unaries = 2.0 * torch.randn(*batch, steps, states, generator=g, dtype=torch.float64)
    gone = torch.rand(unaries.shape, generator=g) < forbidden
    gone[..., 0] = False
    lengths = torch.randint(1, steps + 1, batch, generator=g)
    return Problem(a, b, unaries.masked_fill(gone, -torch.inf), lengths)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """X <= 4, T <= 4, up to two batch dimensions; |X| = 1 and T = 1 among them."""
    batch = draw(st.sampled_from([(), (), (2,), (3,), (2, 2)]))
    return problem(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        dim=draw(st.integers(1, 3)),
        batch=batch,
        own=bool(batch) and draw(st.booleans()),
        forbidden=draw(st.sampled_from([0.0, 0.4])),
        seed=draw(st.integers(0, 10_000)),
    )
