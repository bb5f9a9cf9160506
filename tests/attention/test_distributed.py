"""A sequence spread over processes = the same sequence in one: outputs, gradients, errors, no hang."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import bochner
from bochner import linear_attention
from bochner.attention import sequence_parallel_attention
from bochner.feature_map import FeatureMap
from tests.attention.processes import Raised, Ranks
from tests.maps import fitted, normal, on_sphere, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning"),
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
]

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SLICES = {2: (131, 40), 3: (5, 1, 130)}  # one is longer than a block, one is a single token


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def three() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    ranks.close()


@pytest.fixture(params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    return request.getfixturevalue({2: "two", 3: "three"}[request.param])


def attend(
    rank: int,
    phi: FeatureMap,
    points: Sequence[Tensor],
    causal: bool = False,
    key_mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """On one rank: the output, and the gradients of (out * weight).sum() in q, k, v and parameters."""
    leaves = [x.requires_grad_(weight is not None) for x in points]
    out = sequence_parallel_attention(phi, *leaves, causal=causal, key_mask=key_mask)
    if weight is None:
        return out, []
    leaves += list(phi.parameters())
    return out.detach(), list(torch.autograd.grad((out * weight).sum(), leaves))


def cut(x: Tensor | None, sizes: Sequence[int], dim: int) -> list[Any]:
    """The slices of consecutive ranks."""
    return [None] * len(sizes) if x is None else [part.clone() for part in x.split(sizes, dim)]


def arguments(
    phi: FeatureMap,
    points: Sequence[Tensor],
    sizes: Sequence[int],
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> list[tuple[Any, ...]]:
    """What `attend` takes, rank by rank."""
    slices = zip(*(cut(x, sizes, -2) for x in points), strict=True)
    masks, weights = cut(key_mask, sizes, -1), cut(weight, sizes, -2)
    return [
        (phi, own, causal, mask, w) for own, mask, w in zip(slices, masks, weights, strict=True)
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["positive", "trigonometric", "dark"])
def test_equals_one_process(ranks: Ranks, name: str, causal: bool, masked: bool) -> None:
    sizes = SLICES[ranks.size]
    length = sum(sizes)
    phi = fitted(name, dim=4, num_features=8, batch_shape=(3,))
    points = [normal(2, 3, length, 4, seed=s, scale=0.4) for s in (1, 2, 3)]
    weight = normal(2, 3, length, 4, seed=4)
    key_mask = None
    if masked:
        key_mask = torch.rand(2, 1, length, generator=seeded(5)) < 0.7
        key_mask[1, :, : sizes[0]] = (
            False  # the second sequence: the first rank has hidden keys only
        )
    found = ranks.run(
        attend, arguments(phi, points, sizes, causal=causal, key_mask=key_mask, weight=weight)
    )
    whole = [x.clone().requires_grad_() for x in points]
    out = linear_attention(phi, *whole, causal=causal, key_mask=key_mask)
    truth = torch.autograd.grad((out * weight).sum(), [*whole, *phi.parameters()])
    torch.testing.assert_close(torch.cat([o for o, _ in found], dim=-2), out.detach(), **EXACT)
    gradients = [list(g) for g in zip(*(g for _, g in found), strict=True)]
    for number, expected in enumerate(truth):
        whole_gradient = (
            torch.cat(gradients[number], dim=-2) if number < 3 else sum(gradients[number])
        )
        torch.testing.assert_close(whole_gradient, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("positive", torch.float32, 1e-3), ("angular", torch.float64, 1e-8)],
)
def test_norm_30(
    three: Ranks, name: str, dtype: torch.dtype, tolerance: float, causal: bool
) -> None:
    """Logits up to 900: no state leaves its range, whichever rank has the largest key.

    exp(900) has no float64 either; a float32 logit of 900 is right to 1e-4. Denominators of the signed
    map nearly cancel, so that its rows are compared in float64.
    """
    phi = fitted(name, dim=4, num_features=16, dtype=dtype)
    points = [on_sphere(60, 4, norm=30, seed=s).to(dtype) for s in (1, 2)]
    points[1][20:40] *= 0.01  # the middle rank's keys are small
    points.append(normal(60, 4, seed=3, dtype=dtype))
    found = three.run(attend, arguments(phi, points, (20, 20, 20), causal=causal))
    out = torch.cat([o for o, _ in found], dim=-2)
    expected = linear_attention(phi, *points, causal=causal)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_no_future_leak(three: Ranks) -> None:
    """Scaling the last rank's keys by 6 moves no bit of earlier rows."""
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    points = [normal(30, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3)]
    before = three.run(attend, arguments(phi, points, (10, 10, 10), causal=True))
    points[1][20:] *= 6
    after = three.run(attend, arguments(phi, points, (10, 10, 10), causal=True))
    for rank in (0, 1):
        assert torch.equal(before[rank][0], after[rank][0])
    assert not torch.equal(before[2][0], after[2][0])


def test_cross_attention_and_half_precision(two: Ranks) -> None:
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    q, k, v = (normal(n, 4, seed=n, dtype=torch.bfloat16) for n in (17, 30, 31))
    v = v[:30]
    slices = zip(q.split((4, 13)), k.split((20, 10)), v.split((20, 10)), strict=True)
    found = two.run(attend, [(phi, [x.clone() for x in own]) for own in slices])
    out = torch.cat([o for o, _ in found])
    assert out.dtype == torch.bfloat16
    expected = linear_attention(phi, q, k, v)
    torch.testing.assert_close(out, expected, rtol=0.01, atol=0.01)  # one rounding to bfloat16


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries(two: Ranks, causal: bool) -> None:
    phi = fitted("positive", dim=4, num_features=8, batch_shape=(2,))
    points = [normal(3, heads, 30, 4, seed=heads) for heads in (6, 2, 2)]
    found = two.run(attend, arguments(phi, points, (20, 10), causal=causal))
    out = torch.cat([o for o, _ in found], dim=-2)
    torch.testing.assert_close(out, linear_attention(phi, *points, causal=causal), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_a_rank_with_hidden_keys_only(two: Ranks, causal: bool) -> None:
    """Also the way in which a rank without tokens takes part."""
    phi = fitted("positive", dim=4, num_features=8)
    points = [normal(12, 4, seed=s) for s in (1, 2, 3)]
    for hidden in (slice(0, 6), slice(6, 12)):
        key_mask = torch.ones(12, dtype=torch.bool)
        key_mask[hidden] = False
        given = arguments(phi, points, (6, 6), causal=causal, key_mask=key_mask)
        out = torch.cat([o for o, _ in two.run(attend, given)], dim=-2)
        expected = linear_attention(phi, *points, causal=causal, key_mask=key_mask)
        torch.testing.assert_close(out, expected, **EXACT)


# -- errors: on every rank, and none waits for another ---------------------------------------------------
def kinds(answers: Sequence[Any]) -> list[str]:
    return [a.kind if isinstance(a, Raised) else "" for a in answers]


def test_a_wrong_rank_is_an_error_on_all(two: Ranks) -> None:
    phi = fitted("positive", dim=4, num_features=8, dtype=torch.float32)
    points = [normal(6, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3)]
    good = arguments(phi, points, (3, 3))
    nan, huge = torch.full((3, 4), torch.nan), torch.full((3, 4), 1e30)
    short, empty, other = torch.ones(2, 4), torch.ones(0, 4), torch.ones(3, 5)
    q, k, v = good[1][1]
    for wrong in (
        (nan, k, v),
        (q, nan, v),
        (q, k, nan),
        (huge, k, v),
        (q, k, short),
        (q, empty, empty),
        (other, k, v),
        (q.double(), k, v),
    ):
        answers = two.answers(attend, [good[0], (phi, list(wrong))])
        assert kinds(answers) == ["RuntimeError", "ValueError"], wrong
        assert "rank(s) [1]" in answers[0].message
    assert kinds(two.answers(attend, good)) == ["", ""]  # and the next call works


def test_ranks_that_disagree(two: Ranks) -> None:
    phi, same, other = (
        bochner.make("positive", dim=4, num_features=8, generator=seeded(s)) for s in (0, 0, 1)
    )
    points = [normal(6, 4, seed=s, dtype=torch.float32) for s in (1, 2, 3)]
    first, second = (list(a) for a in arguments(phi, points, (3, 3)))
    assert kinds(two.answers(attend, [tuple(first), (same, *second[1:])])) == ["", ""]
    larger = bochner.make("positive", dim=4, num_features=16, generator=seeded(0))
    slices = second[1]
    for changed, said in (
        ((other, slices), "checksum of the feature map"),
        ((larger, slices), "checksum of the feature map"),
        ((phi, slices, True), "causal"),
        ((phi, [x.double() for x in slices]), "dtype"),
        ((phi, slices, False, None, torch.ones(3, 4)), "gradients wanted"),
        ((phi, [*slices[:2], torch.ones(3, 5)]), "sizes of k and v"),
        ((phi, [x.expand(2, 3, 4).clone() for x in slices]), "sizes of k and v"),
    ):
        answers = two.answers(attend, [tuple(first), changed])
        assert kinds(answers) == ["ValueError"] * 2, (said, answers)
        assert all(said in a.message for a in answers), answers[0].message


def test_no_visible_key_anywhere(two: Ranks) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    points = [normal(2, 6, 4, seed=s) for s in (1, 2, 3)]
    key_mask = torch.ones(2, 6, dtype=torch.bool)
    key_mask[1] = False
    answers = two.answers(attend, arguments(phi, points, (3, 3), key_mask=key_mask))
    assert kinds(answers) == ["ValueError"] * 2
    assert "hides every key of 1 sequence(s) on every rank" in answers[0].message


def in_a_group(rank: int, phi: FeatureMap, points: Sequence[Tensor]) -> Tensor:
    group = dist.new_group([0, 2])
    return sequence_parallel_attention(phi, *points, causal=True, group=group)


def test_group_of_some_ranks(three: Ranks) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    points = [normal(9, 4, seed=s) for s in (1, 2, 3)]
    given = [(phi, [x[rows].clone() for x in points]) for rows in (slice(0, 4), slice(4, 9))]
    answers = three.answers(in_a_group, [given[0], given[0], given[1]])
    assert kinds(answers) == ["", "ValueError", ""]
    assert "not in `group`" in answers[1].message
    out = torch.cat([answers[0], answers[2]])
    torch.testing.assert_close(out, linear_attention(phi, *points, causal=True), **EXACT)


def second_derivatives(
    rank: int, phi: FeatureMap, points: Sequence[Tensor], weight: Tensor, parallel: bool
) -> list[Tensor]:
    """Of (out * weight).sum(): the gradient of the sum of its squared gradients, in q, k, v."""
    q, k, v = (x.requires_grad_() for x in points)
    form = sequence_parallel_attention if parallel else linear_attention
    out = form(phi, q, k, v, causal=True)
    first = torch.autograd.grad((out * weight).sum(), (q, k, v), create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), (q, k, v)))


def test_second_derivatives(ranks: Ranks) -> None:
    phi = fitted("positive", dim=4, num_features=8)
    sizes = SLICES[ranks.size]
    points = [normal(sum(sizes), 4, seed=s, scale=0.5) for s in (1, 2, 3)]
    weight = normal(sum(sizes), 4, seed=4)
    slices = zip(*(cut(x, sizes, -2) for x in points), cut(weight, sizes, -2), strict=True)
    found = ranks.run(second_derivatives, [(phi, own[:3], own[3], True) for own in slices])
    truth = second_derivatives(0, phi, [x.clone() for x in points], weight, False)
    for parts, expected in zip(zip(*found, strict=True), truth, strict=True):
        torch.testing.assert_close(torch.cat(parts, dim=-2), expected, rtol=1e-9, atol=1e-9)


def steps_of_training(rank: int, phi: FeatureMap, points: Sequence[Tensor]) -> Tensor:
    """Three steps on dark's matrix, its gradient summed over the ranks by hand."""
    optimizer = torch.optim.SGD(phi.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sequence_parallel_attention(phi, *points, causal=True).square().sum().backward()
        for parameter in phi.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
    return next(phi.parameters()).detach()


def test_training_stays_in_step(two: Ranks) -> None:
    phi = fitted("dark", dim=4, num_features=8)
    points = [normal(12, 4, seed=s, scale=0.4) for s in (1, 2, 3)]
    given = [(phi, [x[rows].clone() for x in points]) for rows in (slice(0, 5), slice(5, 12))]
    first, second = two.run(steps_of_training, given)
    assert torch.equal(first, second)
    optimizer = torch.optim.SGD(phi.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        linear_attention(phi, *points, causal=True).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(first, next(phi.parameters()).detach(), rtol=1e-10, atol=1e-10)


def test_without_an_initialised_group() -> None:
    phi = fitted("positive", dim=4, num_features=8)
    x = normal(5, 4)
    with pytest.raises(RuntimeError, match="torch.distributed is not initialised: call"):
        sequence_parallel_attention(phi, x, x, x)
