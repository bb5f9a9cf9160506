"""Streaming = causal = masked dense, for any split into steps."""

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bochner import AttentionState, linear_attention, step
from bochner.feature_map import FeatureMap
from tests.attention.dense import dense
from tests.maps import NAMES, fitted, normal

pytestmark = pytest.mark.filterwarnings("ignore::bochner.attention.DenominatorWarning")

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def stream(
    phi: FeatureMap,
    sizes: Sequence[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
) -> Tensor:
    """The outputs of consecutive steps of these sizes."""
    state, outputs, start = AttentionState(phi), [], 0
    for size in sizes:
        rows = slice(start, start + size)
        mask = None if key_mask is None else key_mask[..., rows]
        out, state = step(state, q[..., rows, :], k[..., rows, :], v[..., rows, :], key_mask=mask)
        outputs.append(out)
        start += size
    assert start == q.shape[-2]
    return torch.cat(outputs, dim=-2)


def splits(max_length: int) -> st.SearchStrategy[list[int]]:
    """Step sizes, among them steps of one token and steps longer than a block."""
    size = st.one_of(st.just(1), st.integers(2, 20), st.integers(60, 70))
    return st.lists(size, min_size=1, max_size=8).filter(lambda sizes: sum(sizes) <= max_length)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes=splits(150), name=st.sampled_from(["positive", "data-aware", "trigonometric"]))
def test_any_split_equals_the_causal_form(sizes: list[int], name: str) -> None:
    phi = fitted(name, dim=3, num_features=8)
    q, k, v = (normal(2, sum(sizes), 3, seed=s, scale=0.4) for s in (1, 2, 3))
    out = stream(phi, sizes, q, k, v)
    torch.testing.assert_close(out, linear_attention(phi, q, k, v, causal=True), **EXACT)
    torch.testing.assert_close(out, dense(phi, q, k, v, causal=True), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_token_by_token(name: str) -> None:
    phi = fitted(name, dim=5, num_features=12)
    q, k, v = (normal(70, 5, seed=s, scale=0.4) for s in (1, 2, 3))
    out = stream(phi, [1] * 70, q, k, v)
    torch.testing.assert_close(out, dense(phi, q, k, v, causal=True), **EXACT)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes=splits(100), data=st.data())
def test_any_split_with_hidden_keys(sizes: list[int], data: st.DataObject) -> None:
    """Steps may consist of padding only; rows before the first visible key are 0."""
    length = sum(sizes)
    bits = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    hidden = data.draw(st.integers(0, length - 1))
    key_mask = torch.tensor(bits)
    key_mask[:hidden], key_mask[hidden] = False, True
    name = data.draw(st.sampled_from(["positive", "trigonometric"]))
    phi = fitted(name, dim=3, num_features=8)
    q, k, v = (normal(length, 3, seed=s, scale=0.4) for s in (1, 2, 3))
    out = stream(phi, sizes, q, k, v, key_mask)
    whole = linear_attention(phi, q, k, v, causal=True, key_mask=key_mask)
    torch.testing.assert_close(out, whole, **EXACT)
    truth = dense(phi, q, k, v, causal=True, key_mask=key_mask)
    torch.testing.assert_close(out[hidden:], truth[hidden:], **EXACT)
    assert torch.equal(out[:hidden], torch.zeros(hidden, 3, dtype=torch.float64))


def test_a_batch_padded_on_the_left_streams_token_by_token() -> None:
    """One sequence of the batch may be padding while another one has begun."""
    phi = fitted("positive", dim=3, num_features=8)
    q, k, v = (normal(2, 12, 3, seed=s) for s in (1, 2, 3))
    key_mask = torch.ones(2, 12, dtype=torch.bool)
    key_mask[0, :5] = False
    out = stream(phi, [1] * 12, q, k, v, key_mask)
    alone = linear_attention(phi, q[0, 5:], k[0, 5:], v[0, 5:], causal=True)
    torch.testing.assert_close(out[0, 5:], alone, **EXACT)
    torch.testing.assert_close(
        out[1], linear_attention(phi, q[1], k[1], v[1], causal=True), **EXACT
    )


def test_a_step_leaves_its_state_as_it_was() -> None:
    """One prompt, two continuations."""
    phi = fitted("positive", dim=3, num_features=8)
    q, k, v = (normal(10, 3, seed=s) for s in (1, 2, 3))
    _, prompt = step(AttentionState(phi), q, k, v)
    before = copy.deepcopy((prompt.reference, prompt.numerator, prompt.denominator))
    a = step(prompt, *(normal(4, 3, seed=s, scale=3.0) for s in (4, 5, 6)))[0]
    b = step(prompt, *(normal(4, 3, seed=s, scale=3.0) for s in (4, 5, 6)))[0]
    assert torch.equal(a, b)
    for kept, now in zip(
        before, (prompt.reference, prompt.numerator, prompt.denominator), strict=True
    ):
        assert torch.equal(kept, now)


def test_a_shared_prompt_continues_in_a_batch() -> None:
    phi = fitted("positive", dim=3, num_features=8)
    prompt = [normal(10, 3, seed=s) for s in (1, 2, 3)]
    more = [normal(4, 5, 3, seed=s) for s in (4, 5, 6)]
    _, state = step(AttentionState(phi), *prompt)
    out, _ = step(state, *more)
    whole = [torch.cat((p.expand(4, 10, 3), m), dim=-2) for p, m in zip(prompt, more, strict=True)]
    truth = linear_attention(phi, *whole, causal=True)[:, 10:]
    torch.testing.assert_close(out, truth, **EXACT)


@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_the_state_does_not_grow(name: str) -> None:
    phi = fitted(name, dim=3, num_features=8)
    state, sizes = AttentionState(phi), []
    for seed in range(3):
        q, k, v = (normal(2, 65, 3, seed=10 * seed + s, scale=0.3) for s in range(3))
        _, state = step(state, q, k, v)
        sizes.append((state.reference.shape, state.numerator.shape, state.denominator.shape))
    columns = 8 if phi.positive else 1
    assert sizes == [((2, 1, columns), (2, 8, 3), (2, 8))] * 3


def test_a_state_survives_pickle() -> None:
    phi = fitted("data-aware", dim=3, num_features=8)
    q, k, v = (normal(10, 3, seed=s) for s in (1, 2, 3))
    _, state = step(AttentionState(phi), q, k, v)
    more = [normal(4, 3, seed=s) for s in (4, 5, 6)]
    out, _ = step(pickle.loads(pickle.dumps(state)), *more)
    assert torch.equal(out, step(state, *more)[0])


def test_gradients_flow_through_the_state() -> None:
    phi = fitted("positive", dim=3, num_features=6)
    inputs = [normal(20, 3, seed=s).requires_grad_() for s in (1, 2, 3)]
    grads = [
        torch.autograd.grad(out.square().sum(), inputs)
        for out in (
            stream(phi, [7, 1, 12], *inputs),
            linear_attention(phi, *inputs, causal=True),
            dense(phi, *inputs, causal=True),
        )
    ]
    for streamed, causal, truth in zip(*grads, strict=True):
        torch.testing.assert_close(streamed, truth, **EXACT)
        torch.testing.assert_close(causal, truth, **EXACT)


def test_precision_may_change_between_steps() -> None:
    """A float64 prompt, then float32 tokens, and the other way round."""
    phi = fitted("positive", dim=3, num_features=6)
    inputs = [normal(30, 3, seed=s) for s in (1, 2, 3)]
    truth = linear_attention(phi, *inputs, causal=True)
    for first, second in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        _, state = step(AttentionState(phi), *(x[:20].to(first) for x in inputs))
        out, _ = step(state, *(x[20:].to(second) for x in inputs))
        assert out.dtype == second
        torch.testing.assert_close(out.double(), truth[20:], rtol=1e-5, atol=1e-5)


# -- a state as tensors --------------------------------------------------------------------------------------
def _prompted(name: str, *batch: int) -> AttentionState:
    phi = fitted(name, dim=3, num_features=8)
    inputs = [normal(*batch, 90, 3, seed=s, scale=0.4) for s in (1, 2, 3)]
    return step(AttentionState(phi), *inputs)[1]


def _continued(state: AttentionState, *batch: int) -> Tensor:
    return step(state, *(normal(*batch, 4, 3, seed=s, scale=0.4) for s in (4, 5, 6)))[0]


@pytest.mark.parametrize("name", ["positive", "trigonometric"])
def test_a_state_goes_through_tensors_and_a_file(name: str, tmp_path: Path) -> None:
    state = _prompted(name, 2)
    torch.save(state.tensors(), tmp_path / "state.pt")
    tensors = torch.load(tmp_path / "state.pt", weights_only=True)
    again = AttentionState.from_tensors(state.feature_map, tensors)
    assert torch.equal(_continued(again, 2), _continued(state, 2))
    assert AttentionState(state.feature_map).tensors() == {}
    empty = AttentionState.from_tensors(state.feature_map, {})
    assert torch.equal(_continued(empty, 2), _continued(AttentionState(state.feature_map), 2))


def test_tensors_are_copies() -> None:
    state = _prompted("positive")
    before = _continued(state)
    for x in state.tensors().values():
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
        x.zero_()
    assert torch.equal(_continued(state), before)


def test_tensors_of_something_else() -> None:
    state = _prompted("positive")
    tensors = state.tensors()
    del tensors["numerator"]
    message = (
        r"tensors has \['denominator', 'reference'\]; expected \['denominator', 'numerator', 'ref"
    )
    with pytest.raises(ValueError, match=message):
        AttentionState.from_tensors(state.feature_map, tensors)
    with pytest.raises(ValueError, match=r"tensors has .*'other'"):
        AttentionState.from_tensors(state.feature_map, state.tensors() | {"other": torch.ones(1)})


def test_beams_are_reordered() -> None:
    state, indices = _prompted("positive", 3, 2), torch.tensor([2, 0, 0, 1])
    chosen = state.index_select(indices)
    more = [normal(4, 2, 5, 3, seed=s) for s in (4, 5, 6)]
    out, _ = step(chosen, *more)
    for row, index in enumerate(indices.tolist()):
        alone = state.index_select(torch.tensor([index]))
        assert torch.equal(out[row], step(alone, *(x[row : row + 1] for x in more))[0][0])
    nothing = AttentionState(state.feature_map)
    assert nothing.index_select(indices) == nothing
    with pytest.raises(ValueError, match=r"the state holds one sequence, numerator \[8, 3\]"):
        _prompted("positive").index_select(indices)


def test_a_state_moves_with_its_map() -> None:
    state = _prompted("positive", 2)
    assert state.to("cpu").feature_map is state.feature_map
    assert torch.equal(_continued(state.to("cpu"), 2), _continued(state, 2))
    moved = state.to("meta")
    assert {x.device.type for x in moved.tensors().values()} == {"meta"}
    assert {x.device.type for x in moved.feature_map.buffers()} == {"meta"}
    assert {x.device.type for x in state.feature_map.buffers()} == {"cpu"}


def test_a_state_does_not_keep_its_block_alive() -> None:
    """Numerator and denominator are views of one small tensor, not of features."""
    state = _prompted("positive", 2)
    sizes = {x.untyped_storage().nbytes() for x in (state.numerator, state.denominator)}
    assert max(sizes) <= 2 * 8 * 4 * 8
