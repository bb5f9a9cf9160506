"""What a span keeps of weights that its dtype's products cannot hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bochner.structured.grammars.passages import RankPassage, SymbolPassage, exact_through
from bochner.structured.grammars.rules import LowRankRules
from bochner.structured.matrix import Matrix
from bochner.structured.semirings import LogSum, Max, Message, Sum


@pytest.mark.parametrize(("dtype", "deep"), [(torch.float32, 130.0), (torch.float64, 900.0)])
def test_an_entry_that_a_product_underflows_is_kept(dtype: torch.dtype, deep: float) -> None:
    message = Message(torch.tensor([[0.0, -deep]], dtype=dtype), torch.zeros(1).double())
    matrix = Matrix(torch.eye(2, dtype=dtype).log())
    assert Sum().through(message, matrix).log[0, 1] == -math.inf  # what the rescue is for
    out = exact_through(Sum(), message, matrix)
    torch.testing.assert_close(out.log[0], torch.tensor([0.0, -deep], dtype=dtype))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 10_000),
    st.sampled_from([1.0, 100.0, 1000.0]),
    st.booleans(),
)
def test_products_are_those_of_logarithms(
    rows: int, columns: int, seed: int, spread: float, batched: bool
) -> None:
    g = torch.Generator().manual_seed(seed)

    def log(*shape: int) -> torch.Tensor:
        x = spread * torch.randn(shape, generator=g, dtype=torch.float64)
        return x.masked_fill(torch.rand(shape, generator=g) < 0.2, -math.inf)

    message = Sum().lift(log(2, 3, rows))
    matrix = Matrix(log(2, 1, rows, columns) if batched else log(rows, columns))
    fast = exact_through(Sum(), message, matrix)
    slow = LogSum().through(message, matrix)
    torch.testing.assert_close(
        fast.log + fast.scale.unsqueeze(-1),
        slow.log + slow.scale.unsqueeze(-1),
        rtol=1e-13,
        atol=1e-11,
    )


@pytest.mark.parametrize("semiring", [Sum(), LogSum(), Max()])
def test_rank_space_is_the_same_in_every_semiring_that_distributes(
    semiring: Sum | LogSum | Max,
) -> None:
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (2, 4, 4)]
    rules = LowRankRules(*parts)
    ranks = semiring.lift(torch.randn(2, 5, 3, generator=g, dtype=torch.float64))
    for one, other in zip(
        SymbolPassage(semiring, rules).span_parts(ranks)[:2],
        RankPassage(semiring, rules).span_parts(ranks)[:2],
        strict=True,
    ):
        torch.testing.assert_close(
            one.log + one.scale.unsqueeze(-1), other.log + other.scale.unsqueeze(-1)
        )
