"""Factors of several variables: the identity, its error, and what is exact."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bochner.projections import IID, Antithetic, Orthogonal, Projection, Sobol
from bochner.structured.grammars.factors import (
    Factor,
    log_pairwise,
    relative_covariance,
    relative_variance,
)
from tests.naive import covariance_is, hermite, mean_is, variance_is


def embeddings(
    count: int, dim: int = 2, *, scale: float = 0.4, offset: float = 0.0
) -> list[Tensor]:
    g = torch.Generator().manual_seed(count)
    return [
        scale * torch.randn(3, dim, generator=g, dtype=torch.float64) + offset * k
        for k in range(count)
    ]


@dataclass(frozen=True)
class Repeated(Projection):
    """Independent draws of another projection, one after the other."""

    base: Projection
    repeats: int

    def sample(
        self, shape: tuple[int, ...], num_projections: int, dim: int, generator: torch.Generator
    ) -> Tensor:
        rows = num_projections // self.repeats
        return self.base.sample((*shape, self.repeats), rows, dim, generator).flatten(-3, -2)


def replicates(a: list[Tensor], repeats: int, num_features: int, projection: Projection) -> Tensor:
    """exp(estimate - truth) over independent draws, [repeats, n_1, ..., n_k]."""
    g = torch.Generator().manual_seed(7)
    together = Factor.from_embeddings(
        a,
        num_features=repeats * num_features,
        generator=g,
        projection=Repeated(projection, repeats),
    )
    # each of the matrices holds its share of the mean over all columns; here it is over its own
    share = math.log(repeats) / len(a)
    apart = [
        f.unflatten(-1, (repeats, num_features)).movedim(-2, 0) + share
        for f in together.log_factors
    ]
    return torch.exp(Factor(apart).dense() - log_pairwise(a))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_identity_by_quadrature(count: int) -> None:
    a = embeddings(count)
    points, weights = hermite(30, dim=2)
    features = [torch.exp(x @ points.T - 0.5 * x.square().sum(-1, keepdim=True)) for x in a]
    letters = "abcd"[:count]
    terms = ",".join(f"{c}r" for c in letters)
    total = torch.einsum(f"{terms},r->{letters}", *features, weights)
    truth = torch.zeros(total.shape, dtype=torch.float64)
    for index in torch.cartesian_prod(*[torch.arange(3)] * count):
        chosen = [a[k][i] for k, i in enumerate(index.tolist())]
        pairs = [float(x @ y) for k, x in enumerate(chosen) for y in chosen[:k]]
        truth[tuple(index.tolist())] = math.exp(math.fsum(pairs))
    torch.testing.assert_close(total, truth)
    torch.testing.assert_close(log_pairwise(a).exp(), truth)


@pytest.mark.parametrize("projection", [IID(), Orthogonal(), Antithetic(IID())], ids=repr)
def test_three_way_estimates_are_unbiased_with_the_stated_variance(projection: Projection) -> None:
    a = embeddings(3, offset=0.3)
    drawn = replicates(a, 5000, 4, projection)
    predicted = relative_variance(a, 4, projection)
    for index in ((0, 0, 0), (1, 2, 0)):
        sample = drawn[(slice(None), *index)]
        mean_is(sample, 1.0, see=0.1)
        variance_is(sample, float(predicted[index]), see=0.9)


def test_two_entries_covary_as_stated() -> None:
    a = embeddings(3, offset=0.3)
    drawn = replicates(a, 10_000, 1, IID())
    first, second = (0, 0, 0), (1, 2, 0)
    centred = [x - x.mean(0) for x in a]
    rows = [[c[i] for c, i in zip(centred, index, strict=True)] for index in (first, second)]
    truth = float(relative_covariance(*rows, 1))
    pair = [drawn[(slice(None), *index)] for index in (first, second)]
    covariance_is(*pair, truth, see=0.3)


def test_an_offset_of_all_states_costs_nothing() -> None:
    a = embeddings(3)
    moved = [x + shift for x, shift in zip(a, (5.0, -3.0, 20.0), strict=True)]
    one, other = (
        Factor.from_embeddings(x, num_features=8, generator=torch.Generator().manual_seed(0))
        for x in (a, moved)
    )
    torch.testing.assert_close(
        one.dense() - log_pairwise(a), other.dense() - log_pairwise(moved), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(relative_variance(a, 8), relative_variance(moved, 8))


def test_a_pair_that_shares_no_coordinates_does_not_interact() -> None:
    u, w, v, x = (torch.randn(3, 2, generator=torch.Generator().manual_seed(k)) for k in range(4))
    none = torch.zeros(3, 2)
    a = [torch.cat(p, -1) for p in ((u, w), (v, none), (none, x))]
    truth = (u @ v.T).unsqueeze(-1) + (w @ x.T).unsqueeze(-2)
    torch.testing.assert_close(log_pairwise(a), truth)


def test_values_tables_and_batches_agree() -> None:
    g = torch.Generator().manual_seed(0)
    logs = [torch.randn(2, n, 5, generator=g, dtype=torch.float64) for n in (2, 3, 4)]
    logs[1] = logs[1][:1]
    logs[2][0, 1, :] = -math.inf
    factor = Factor(logs)
    assert (factor.rank, factor.sizes, factor.batch_shape) == (5, (2, 3, 4), (2,))
    naive = torch.einsum("zar,zbr,zcr->zabc", *(x.exp().expand(2, -1, -1) for x in logs)).log()
    torch.testing.assert_close(factor.dense(), naive)
    states = torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 4)))
    values = factor.log_value(states.unsqueeze(1))
    torch.testing.assert_close(values, naive.flatten(1).T)
    unbatched = Factor([x[0] for x in logs])
    torch.testing.assert_close(unbatched.log_value(states), naive[0].flatten())


def test_tables_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = Factor(
        [torch.randn(4, 9, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    )
    whole = factor.dense()
    monkeypatch.setattr("bochner.structured.grammars.factors.MAX_ENTRIES", 128)
    torch.testing.assert_close(factor.dense(), whole)
    monkeypatch.setattr("bochner.structured.grammars.factors.MAX_ENTRIES", 63)
    with pytest.raises(ValueError, match="a table of 64 entries"):
        factor.dense()


def test_gradients_reach_embeddings() -> None:
    a = [x.requires_grad_() for x in embeddings(3)]

    def table(*parts: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(0)
        return Factor.from_embeddings(parts, num_features=4, generator=g).dense()

    assert torch.autograd.gradcheck(table, a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Factor([torch.zeros(2, 3)]), "holds 1 matrices"),
        (lambda: Factor([torch.zeros(2, 3), torch.zeros(2, 4)]), r"log_factors\[1\] has last"),
        (lambda: Factor([torch.zeros(2, 2, 3), torch.zeros(3, 2, 3)]), "must broadcast"),
        (lambda: Factor([torch.zeros(2, 3), torch.zeros(2, 3).double()]), "cast one"),
        (lambda: Factor([torch.zeros(2, 3)] * 2).log_value(torch.zeros(3).long()), "joins 2"),
        (lambda: relative_variance(embeddings(3), 4, Sobol()), "no closed form"),
        (lambda: log_pairwise([torch.full((2, 2), math.nan)] * 2), r"embeddings\[0\] holds"),
        (
            lambda: Factor.from_embeddings(
                embeddings(3), num_features=0, generator=torch.Generator()
            ),
            "num_features=0",
        ),
    ],
)
def test_errors_name_the_argument(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
