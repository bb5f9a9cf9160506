"""The forms in which padding and causality reach a layer, and what a layer makes of them."""

import pytest
import torch
from torch import nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from bochner.transformers.masks import mask_for_exact, padding_mask, visible

PADDING = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()
CAUSAL, FREE = nn.Module(), nn.Module()
FREE.is_causal = False


def mask(n, function, attention_mask=PADDING, s=5, offset=None):
    return padding_mask(
        batch_size=2,
        q_length=n,
        kv_length=s,
        q_offset=s - n if offset is None else offset,
        mask_function=function,
        attention_mask=attention_mask,
        device="cpu",
        dtype=torch.float32,
    )


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("function", [causal_mask_function, bidirectional_mask_function])
def test_exact_layers_get_the_mask_of_sdpa(function, n):
    q, k = torch.zeros(2, 1, n, 4), torch.zeros(2, 1, 5, 4)
    ours = mask_for_exact(CAUSAL, q, k, mask(n, function), {})
    whole = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    expected = sdpa_mask(2, n, 5, 5 - n, 0, function, PADDING, **whole)
    assert torch.equal(ours.expand(expected.shape), expected)
    unpadded = mask_for_exact(CAUSAL, q, k, None, {})
    if n == 3:  # `is_causal` of sdpa is aligned to the first keys
        expected = sdpa_mask(2, n, 5, 5 - n, 0, causal_mask_function, None, **whole)
        assert torch.equal(unpadded.expand(expected.shape), expected)
    else:
        assert unpadded is None


@pytest.mark.parametrize(("module", "said"), [(CAUSAL, True), (FREE, False)])
def test_a_mask_says_whether_it_is_causal_and_its_absence_leaves_it_to_the_module(module, said):
    for function, causal in ((causal_mask_function, True), (bidirectional_mask_function, False)):
        seen = visible(module, mask(5, function), (2, 5), {})
        assert seen.causal == causal
        assert torch.equal(seen.key_mask, PADDING)
        assert mask(5, function, None) is None
    assert visible(module, None, (2, 5), {}) == (said, None)
    assert visible(module, None, (2, 5), {"is_causal": not said}) == (not said, None)
    seen = visible(module, PADDING, (2, 5), {})
    assert seen.causal == said
    assert torch.equal(seen.key_mask, PADDING)


def test_masks_that_are_no_padding_are_refused():
    window = sliding_window_causal_mask_function(2)
    static = mask(1, causal_mask_function, s=5, offset=torch.tensor(1))
    for other in (
        mask(5, window),
        static.expand(2, 1, 1, 5).float(),
        torch.ones(2, 1, 5, 5).bool(),
    ):
        with pytest.raises(ValueError, match="cannot be linear"):
            visible(CAUSAL, other, (2, 5), {})
    with pytest.raises(ValueError, match=r"expected padding, \[batch, keys\] = \[2, 6\]"):
        visible(CAUSAL, PADDING, (2, 6), {})


def test_a_cache_with_room_has_a_mask_with_rows():
    """Two queries at 1 and 2 of 5 places: they are not the last, so padding alone would be wrong."""
    static = mask(2, causal_mask_function, s=5, offset=1)
    assert static.shape == (2, 1, 2, 5)
    assert static[0, 0].tolist() == [
        [True, True, False, False, False],
        [True, True, True, False, False],
    ]


def test_a_mask_with_rows_is_no_padding_when_there_are_as_many_sequences_as_rows():
    rows = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"\[1, 1, 4, 4\].*\[batch, keys\] = \[4, 4\]"):
        visible(CAUSAL, rows, (4, 4), {})
