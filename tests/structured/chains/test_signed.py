"""SignedChain: log |Z| and its sign; everything else says which maps work."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bochner
from bochner.features import Features
from bochner.structured import Chain, ExactChain, LowRankChain, SignedChain, SignedFeatures
from tests.maps import NAMES, budget, fitted, normal, seeded
from tests.structured.embedded_problems import Problem, problem, problems

SIGNED = [n for n in NAMES if not bochner.spec(n).positive]


def by_hand(chain: SignedChain) -> Tensor:
    """Z [*b] by dense matrices that are multiplied as they are, float64."""
    k = chain.transitions
    tables = [
        left.materialise().double() @ right.materialise().double().mT
        for left, right in zip(k.left, k.right, strict=True)
    ]
    unaries = chain.unaries.double().exp()
    v = unaries[..., 0, :]
    for step in range(1, chain.num_steps):
        moved = (v.unsqueeze(-2) @ tables[(step - 1) % len(tables)]).squeeze(-2)
        v = torch.where((chain.lengths > step)[..., None], moved * unaries[..., step, :], v)
    return v.sum(-1)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 3))
def test_sign_and_size_are_those_of_the_product_of_matrices(made: Problem, blocks: int) -> None:
    chain = SignedChain.from_embeddings(
        *made.parts, num_features=4, blocks=blocks, lengths=made.lengths, generator=seeded(3)
    )
    found, expected = chain.log_partition, by_hand(chain)
    assert torch.equal(found.sign, expected.sign())
    # what cancels is lost to either way of computing
    torch.testing.assert_close(found.value(), expected, rtol=1e-10, atol=1e-10)
    assert bool((chain.cancellation >= -1e-12).all())


def test_both_signs_occur() -> None:
    """Points far apart, two columns: the same draws give negative sums and positive ones."""
    made = problem(4, 3, dim=2, batch=(20,), scale=2.0)
    chain = SignedChain.from_embeddings(*made.parts, num_features=2, generator=seeded(3))
    assert set(chain.log_partition.sign.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("name", SIGNED)
def test_every_signed_map_of_the_catalogue(name: str) -> None:
    made = problem(40, 5, dim=4, scale=0.4)
    columns = budget(name, 16)
    chain = SignedChain.from_embeddings(
        *made.parts, feature_map=name, num_features=columns, generator=seeded(0)
    )
    torch.testing.assert_close(chain.log_partition.value(), by_hand(chain), rtol=1e-8, atol=0)
    exact = ExactChain.from_embeddings(*made.parts).log_partition
    assert abs(float(chain.log_partition.log_abs - exact)) < 5 * 0.35


def test_positive_features_give_what_the_low_rank_chain_gives() -> None:
    made = problem(30, 8, dim=3, batch=(2,), forbidden=0.3)
    parts = {"feature_map": "positive", "num_features": 16, "blocks": 3, "lengths": made.lengths}
    signed, low = (
        cls.from_embeddings(*made.parts, **parts, generator=seeded(0))
        for cls in (SignedChain, LowRankChain)
    )
    torch.testing.assert_close(signed.log_partition.log_abs, low.log_partition)
    assert bool((signed.log_partition.sign == 1).all())
    torch.testing.assert_close(signed.cancellation, torch.zeros(2, dtype=torch.float64))


def test_tied_trigonometric_features_succeed_where_positive_ones_fail() -> None:
    """a = b with |a|^2 about 6: one state likes to repeat, where cosines are exact (x = y)."""
    a = 0.87 * normal(300, 8, seed=1)
    unaries = torch.zeros(20, 300, dtype=torch.float64)
    exact = ExactChain.from_embeddings(a, a, unaries).log_partition
    signed = SignedChain.from_embeddings(a, a, unaries, num_features=512, generator=seeded(0))
    positive = LowRankChain.from_embeddings(a, a, unaries, num_features=512, generator=seeded(0))
    value = signed.log_partition
    assert float(value.sign) == 1
    assert abs(value.log_abs - exact) < 2 < 0.2 * abs(positive.log_partition - exact)


def test_any_range_of_unaries() -> None:
    """Unaries of +-500 a step: no overflow, the same Z as with the constant taken out."""
    made = problem(6, 30, dim=2)
    shift = 500.0 * normal(30, 1, seed=2)
    chains = [
        SignedChain.from_embeddings(
            made.a, made.b, made.unaries + s, num_features=8, generator=seeded(0)
        ).log_partition
        for s in (0.0, shift)
    ]
    torch.testing.assert_close(chains[0].log_abs, chains[1].log_abs - shift.sum())
    assert chains[0].sign == chains[1].sign


def test_a_chain_without_any_path_is_zero() -> None:
    made = problem(3, 3)
    made.unaries[1] = -torch.inf
    value = SignedChain.from_embeddings(*made.parts, num_features=8).log_partition
    assert float(value.log_abs) == -torch.inf
    assert float(value.sign) == 0


def test_gradients_are_differences() -> None:
    made = problem(4, 3)
    phi = fitted("trigonometric", dim=2, num_features=8)

    def value(*parts: Tensor) -> Tensor:
        chain = SignedChain.from_embeddings(*parts, feature_map=phi)
        return chain.log_partition.log_abs

    assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in made.parts])


def test_float32_agrees() -> None:
    made = problem(50, 10, dim=3, scale=0.5)
    phi = fitted("trigonometric", dim=3, num_features=64)
    exact, rounded = (
        SignedChain.from_embeddings(*p.parts, feature_map=phi).log_partition
        for p in (made, made.to(torch.float32))
    )
    assert rounded.log_abs.dtype == torch.float32
    torch.testing.assert_close(rounded.log_abs.double(), exact.log_abs, rtol=0, atol=1e-4)


def test_cancellation_counts_the_digits_that_are_lost() -> None:
    """Z = (1 + 1e-9) - 1: log(2 / 1e-9) nats cancel."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    left = Features(torch.tensor([[1.0 + 1e-9, 1.0]], dtype=torch.float64), zero)
    right = Features(torch.tensor([[1.0, -1.0]], dtype=torch.float64), zero)
    chain = SignedChain(SignedFeatures([left], [right]), torch.zeros(2, 1).double())
    torch.testing.assert_close(
        chain.cancellation, torch.tensor(2e9).double().log(), rtol=0, atol=1e-6
    )


def _needs(function: object) -> dict[str, object]:
    """Arguments for a query of a chain of 3 states and 4 steps, by the names of its parameters."""
    values = {
        "states": torch.zeros(4, dtype=torch.long),
        "other": ExactChain(torch.zeros(3, 3), torch.zeros(4, 3)),
        "num_samples": 2,
        "beam": 2,
        "generator": seeded(0),
    }
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: values[p.name] for p in parameters if p.default is p.empty}


QUERIES = sorted(
    name
    for name, value in inspect.getmembers(Chain)
    if not name.startswith("_")
    and (inspect.isfunction(value) or isinstance(value, property))
    and name not in ("log_partition", "diagnose", "batch_shape", "num_steps", "num_states")
)


@pytest.mark.parametrize("name", QUERIES)
def test_everything_else_names_the_maps_that_work(name: str) -> None:
    """Whatever `Chain` has or will have, but for what is about log |Z|."""
    made = problem(3, 4)
    chain = SignedChain.from_embeddings(*made.parts, num_features=4)

    def ask() -> None:
        result = getattr(chain, name)
        if callable(result):
            result(**_needs(getattr(Chain, name)))
        else:
            result.dense(0)

    with pytest.raises(ValueError, match=r"Positive maps of exp\(a\.b\): aderf, .*positive") as e:
        ask()
    assert "trigonometric" not in str(e.value)


def test_errors() -> None:
    one = Features(torch.ones(3, 2), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="left has 1 blocks, right 2"):
        SignedFeatures([one], [one, one])
    with pytest.raises(ValueError, match="blocks=2.*draws no random directions"):
        SignedChain.from_embeddings(
            *problem(40, 4).parts, feature_map="calibrated", num_features=8, blocks=2
        )
