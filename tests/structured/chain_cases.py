"""Random small chains of every kind, with the dense log-potentials that the oracle enumerates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from bochner.structured import Chain, Dense, LowRank, Transitions
from tests.structured import brute


@dataclass(frozen=True)
class Case:
    """tensors: log_left, log_right [*tb, B, X, m], or one table [*tb, B, X, X]; unaries [*b, T, X]."""

    tensors: tuple[Tensor, ...]
    unaries: Tensor
    lengths: Tensor | None

    @property
    def transitions(self) -> Transitions:
        return LowRank(*self.tensors) if len(self.tensors) == 2 else Dense(*self.tensors)

    @property
    def chain(self) -> Chain:
        return Chain(self.transitions, self.unaries, lengths=self.lengths)

    @property
    def dense(self) -> Tensor:
        """[*b, T-1, X, X] in float64."""
        edges = self.unaries.shape[-2] - 1
        if len(self.tensors) == 2:
            table = brute.dense_from_features(*self.tensors, edges)
        else:
            blocks = self.tensors[0].double()
            table = blocks.index_select(-3, torch.arange(edges) % blocks.shape[-3])
        return table.expand(*self.unaries.shape[:-2], *table.shape[-3:])

    @property
    def paths(self) -> list[brute.Paths]:
        return brute.enumerate_batch(self.dense, self.unaries, self.lengths)

    def of(self, name: str) -> Tensor:
        """A property of `brute.Paths` for the whole batch."""
        found = [torch.as_tensor(getattr(paths, name)) for paths in self.paths]
        return torch.stack(found).reshape((*self.unaries.shape[:-2], *found[0].shape))

    def to(self, dtype: torch.dtype) -> Case:
        tensors = tuple(t.to(dtype) for t in self.tensors)
        return replace(self, tensors=tensors, unaries=self.unaries.to(dtype))

    def detached(self) -> Case:
        """With fresh leaves that are differentiated."""
        tensors = tuple(t.clone().requires_grad_() for t in self.tensors)
        return replace(self, tensors=tensors, unaries=self.unaries.clone().requires_grad_())

    @property
    def leaves(self) -> list[Tensor]:
        return [self.unaries, *self.tensors]

    def nearby(self, size: float = 0.5) -> Case:
        """Another chain over the same steps; what is forbidden stays so."""
        g = torch.Generator().manual_seed(99)
        moved = [t + size * torch.randn(t.shape, generator=g, dtype=t.dtype) for t in self.leaves]
        return replace(self, unaries=moved[0], tensors=tuple(moved[1:]))


BATCHES = [
    ((), ()),
    ((2,), ()),
    ((2,), (2,)),
    ((1,), (1,)),
    ((2, 3), ()),
    ((2, 3), (2, 3)),
    ((2, 3), (1, 3)),
]
"""Leading dimensions of the unaries, and of the transitions."""


def make_case(
    seed: int,
    *,
    size: float = 1.0,
    forbidden: float = 0.0,
    kind: str = "low-rank",
    shape: tuple[int, int, int, int] = (4, 3, 2, 1),
    batches: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> Case:
    """shape = (T, X, m, B); logarithms are normal with this size; a fraction of all is -inf; odd seeds have
    lengths."""
    g = torch.Generator().manual_seed(seed)
    steps, states, rank, blocks = shape
    batch, own = batches

    def numbers(*dims: int) -> Tensor:
        value = size * torch.randn(dims, generator=g, dtype=torch.float64)
        return value.masked_fill(torch.rand(dims, generator=g) < forbidden, -torch.inf)

    if kind == "low-rank":
        tensors = (numbers(*own, blocks, states, rank), numbers(*own, blocks, states, rank))
    else:
        tensors = (numbers(*own, blocks, states, states),)
    unaries = numbers(*batch, steps, states)
    lengths = torch.randint(1, steps + 1, batch, generator=g) if seed % 2 else None
    return Case(tensors, unaries, lengths)


def cases(
    *, sizes: tuple[float, ...] = (0.0, 1.0, 5.0), forbidden: tuple[float, ...] = (0.0, 0.0, 0.2)
) -> st.SearchStrategy[Case]:
    """Chains of 1..4 steps, 1..3 states, ranks 1..3, 1..4 cycled blocks, all batches."""
    return st.builds(
        make_case,
        st.integers(0, 2**31),
        size=st.sampled_from(sizes),
        forbidden=st.sampled_from(forbidden),
        kind=st.sampled_from(["low-rank", "dense"]),
        shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
        batches=st.sampled_from(BATCHES),
    )


def possible(case: Case) -> bool:
    """Whether every sequence of the batch has a path."""
    return bool(torch.isfinite(case.of("log_partition")).all())


def close(found: Tensor, expected: Tensor, *, tolerance: float = 1e-10, unit: float = 1.0) -> None:
    """Equal infinities, else relative to 1, to the expected value, or to the numbers that went in."""
    assert found.shape == expected.shape
    found, expected = found.double(), expected.double()
    scale = torch.where(torch.isfinite(expected), expected.abs(), 0.0).clamp(min=max(1.0, unit))
    ok = (found == expected) | ((found - expected).abs() <= tolerance * scale)
    assert bool(ok.all()), f"{found} is not {expected}"
