"""The loss of every token of a window, with all of its past or with a window of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLICE = 256  # positions whose logits are held at once


def band(length: int, window: int, sinks: int) -> Tensor:
    """What a causal model sees through a window of `window` tokens and the first `sinks`; [1, 1, n, n]."""
    row, column = torch.arange(length)[:, None], torch.arange(length)
    seen = (column <= row) & ((row - column < window) | (column < sinks))
    return seen[None, None]


@torch.no_grad()
def token_losses(model: Any, window: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy (nats) of each token given those before it, [n - 1]; logits a slice at a time."""
    ids = window.unsqueeze(0)
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[0]
    losses = [
        torch.nn.functional.cross_entropy(model.lm_head(states), targets, reduction="none")
        for states, targets in zip(hidden[:-1].split(SLICE), ids[0, 1:].split(SLICE), strict=True)
    ]
    return torch.cat(losses)
