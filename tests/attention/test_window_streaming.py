"""Streaming with an exact window = its causal form, for any split into steps; the state never grows."""

import copy
import io
import pickle
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner import AttentionState, linear_attention, step
from bochner.attention import ExactWindow
from bochner.feature_map import FeatureMap
from tests.attention.dense_window import dense_window
from tests.attention.test_state import splits
from tests.maps import fitted, normal

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")

EXACT = {"rtol": 1e-10, "atol": 1e-10}
WINDOWS = [
    ExactWindow(0, 3),
    ExactWindow(1, 0),
    ExactWindow(5, 2),
    ExactWindow(40, 4),
    ExactWindow(200, 90),
]


def stream(
    state: AttentionState,
    sizes: Sequence[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    **per_key: Tensor | None,
) -> tuple[Tensor, AttentionState]:
    """The outputs of consecutive steps of these sizes, and the last state."""
    outputs, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        said = {name: None if x is None else x[..., rows] for name, x in per_key.items()}
        out, state = step(state, q[..., rows, :], k[..., rows, :], v[..., rows, :], **said)
        outputs.append(out)
        start += size
    assert start == q.shape[-2]
    return torch.cat(outputs, dim=-2), state


def sizes_of(state: AttentionState) -> list[tuple[int, ...]]:
    tensors = (state.reference, state.numerator, state.denominator, *state.recent, *state.sinks)
    return [tuple(x.shape) for x in tensors]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=splits(150),
    exact=st.sampled_from(WINDOWS),
    name=st.sampled_from(["positive", "data-aware", "trigonometric"]),
)
def test_any_split_equals_the_causal_form(sizes: list[int], exact: ExactWindow, name: str) -> None:
    phi = fitted(name, dim=3, num_features=8)
    q, k, v = (normal(2, sum(sizes), 3, seed=s, scale=0.4) for s in (1, 2, 3))
    out, _ = stream(AttentionState(phi, exact=exact), sizes, q, k, v)
    whole = linear_attention(phi, q, k, v, causal=True, exact=exact)
    torch.testing.assert_close(out, whole, **EXACT)
    torch.testing.assert_close(out, dense_window(phi, exact, q, k, v, causal=True), **EXACT)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=splits(100), exact=st.sampled_from(WINDOWS), data=st.data())
def test_any_split_with_hidden_keys_and_a_bias(
    sizes: list[int], exact: ExactWindow, data: st.DataObject
) -> None:
    """Each sequence with its own padding; steps may consist of padding only."""
    length = sum(sizes)
    seed = data.draw(st.integers(0, 1000))
    key_mask = normal(3, length, seed=seed) > data.draw(st.sampled_from([-1.0, 0.0, 1.0]))
    first = torch.tensor(data.draw(st.lists(st.integers(0, length - 1), min_size=3, max_size=3)))
    key_mask &= torch.arange(length) >= first.unsqueeze(-1)
    key_mask[torch.arange(3), first] = True
    bias = normal(3, length, seed=seed + 1)
    phi = fitted(data.draw(st.sampled_from(["positive", "trigonometric"])), dim=3, num_features=8)
    q, k, v = (normal(3, length, 3, seed=s, scale=0.4) for s in (1, 2, 3))
    said = {"key_mask": key_mask, "key_bias": bias}
    out, _ = stream(AttentionState(phi, exact=exact), sizes, q, k, v, **said)
    whole = linear_attention(phi, q, k, v, causal=True, exact=exact, **said)
    torch.testing.assert_close(out, whole, **EXACT)
    truth = dense_window(phi, exact, q, k, v, causal=True, **said)
    seen = torch.arange(length) >= first.unsqueeze(-1)
    torch.testing.assert_close(out[seen], truth[seen], **EXACT)
    assert torch.equal(out[~seen], torch.zeros_like(out[~seen]))


@pytest.mark.parametrize("maps", [(), (2,), (6,)])
def test_grouped_queries(maps: tuple[int, ...]) -> None:
    phi, exact = fitted("positive", dim=4, num_features=8, batch_shape=maps), ExactWindow(7, 3)
    q = normal(2, 6, 60, 4, seed=1)
    k, v = (normal(2, 2, 60, 4, seed=s) for s in (2, 3))
    key_mask = torch.arange(60) >= torch.tensor([[[0]], [[20]]])
    out, _ = stream(
        AttentionState(phi, exact=exact), [1] * 5 + [30, 1, 24], q, k, v, key_mask=key_mask
    )
    whole = linear_attention(phi, q, k, v, causal=True, key_mask=key_mask, exact=exact)
    torch.testing.assert_close(out, whole, **EXACT)


def test_padding_on_the_left_is_as_if_it_were_not_there() -> None:
    """Sinks are the first keys that are visible, sequence by sequence."""
    phi, exact = fitted("positive", dim=3, num_features=8), ExactWindow(4, 3)
    q, k, v = (normal(2, 40, 3, seed=s) for s in (1, 2, 3))
    key_mask = torch.ones(2, 40, dtype=torch.bool)
    key_mask[0, :15] = False
    out, _ = stream(AttentionState(phi, exact=exact), [1] * 40, q, k, v, key_mask=key_mask)
    alone = linear_attention(phi, q[0, 15:], k[0, 15:], v[0, 15:], causal=True, exact=exact)
    torch.testing.assert_close(out[0, 15:], alone, **EXACT)
    other = linear_attention(phi, q[1], k[1], v[1], causal=True, exact=exact)
    torch.testing.assert_close(out[1], other, **EXACT)


def test_the_state_is_of_constant_size_and_holds_no_more_memory() -> None:
    """From the first token on; also in storage, which a view would keep."""
    phi, exact = fitted("positive", dim=3, num_features=8), ExactWindow(5, 2)
    q, k, v = (normal(2, 400, 3, seed=s) for s in (1, 2, 3))
    start = AttentionState(phi, exact=exact)
    _, one = stream(start, [1], q[:, :1], k[:, :1], v[:, :1])
    _, many = stream(start, [1, 399], q, k, v)
    assert sizes_of(one) == sizes_of(many)
    assert many.recent.k.shape[-2] == 5
    for x in (*many.recent, *many.sinks):
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_a_step_leaves_its_state_as_it_was() -> None:
    phi, exact = fitted("positive", dim=3, num_features=8), ExactWindow(4, 12)
    prompt = [normal(10, 3, seed=s) for s in (1, 2, 3)]
    more = [normal(4, 3, seed=s, scale=3.0) for s in (4, 5, 6)]
    _, state = step(AttentionState(phi, exact=exact), *prompt)
    before = copy.deepcopy((*state.recent, *state.sinks, state.numerator))
    assert torch.equal(step(state, *more)[0], step(state, *more)[0])
    for kept, now in zip(before, (*state.recent, *state.sinks, state.numerator), strict=True):
        assert torch.equal(kept, now)


def test_a_shared_prompt_continues_in_a_batch() -> None:
    phi, exact = fitted("positive", dim=3, num_features=8), ExactWindow(4, 12)
    prompt = [normal(10, 3, seed=s) for s in (1, 2, 3)]
    more = [normal(4, 5, 3, seed=s) for s in (4, 5, 6)]
    _, state = step(AttentionState(phi, exact=exact), *prompt)
    out, _ = step(state, *more)
    whole = [torch.cat((x.expand(4, -1, -1), y), dim=-2) for x, y in zip(prompt, more, strict=True)]
    truth = linear_attention(phi, *whole, causal=True, exact=exact)[:, 10:]
    torch.testing.assert_close(out, truth, **EXACT)


def test_a_state_travels() -> None:
    phi, exact = fitted("positive", dim=3, num_features=8), ExactWindow(4, 3, 0.0)
    prompt = [normal(10, 3, seed=s) for s in (1, 2, 3)]
    more = [normal(4, 3, seed=s) for s in (4, 5, 6)]
    _, state = step(AttentionState(phi, exact=exact), *prompt)
    truth = step(state, *more)[0]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    for arrived in (pickle.loads(pickle.dumps(state)), torch.load(file, weights_only=False)):
        assert arrived.exact == exact
        assert torch.equal(step(arrived, *more)[0], truth)
    arrived = AttentionState.from_tensors(phi, state.tensors(), exact=exact)
    assert torch.equal(step(arrived, *more)[0], truth)


def test_beams_are_reordered() -> None:
    phi, exact = fitted("positive", dim=3, num_features=8), ExactWindow(4, 3)
    prompt = [normal(4, 10, 3, seed=s) for s in (1, 2, 3)]
    more = [normal(3, 5, 3, seed=s) for s in (4, 5, 6)]
    order = torch.tensor([2, 0, 2])
    _, state = step(AttentionState(phi, exact=exact), *prompt)
    out = step(state.index_select(order), *more)[0]
    _, direct = step(AttentionState(phi, exact=exact), *(x[order] for x in prompt))
    torch.testing.assert_close(out, step(direct, *more)[0], **EXACT)


def test_dtypes_may_change_between_steps() -> None:
    phi: FeatureMap = fitted("positive", dim=3, num_features=8, dtype=torch.float32)
    exact = ExactWindow(4, 3)
    q, k, v = (normal(20, 3, seed=s, dtype=torch.float32) for s in (1, 2, 3))
    whole = linear_attention(phi, q, k, v, causal=True, exact=exact)
    _, state = step(AttentionState(phi, exact=exact), q[:9], k[:9], v[:9])
    assert {x.dtype for x in (*state.recent, *state.sinks)} == {torch.float32}
    out, state = step(state, *(x[9:].double() for x in (q, k, v)))
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, whole[9:].double(), rtol=1e-5, atol=1e-5)
    out, _ = step(state, *(x[:5].half() for x in (q, k, v)))
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()
