"""Windows of tokens from documents: those that maps are fitted to, and those that are measured on."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from bochner.data import demo_texts, load_minilm, load_smollm2, token_windows

FIT, HELD_OUT = "calibration", "evaluation"
"""Two disjoint sets of documents (fields of `bochner.data.TextPair`)."""


def source() -> str:
    """Where the documents come from."""
    return demo_texts().source


@functools.cache
def minilm_windows(part: str, documents: int, each: int, length: int) -> Tensor:
    """The first `each` windows of each of the first documents that are long enough for them."""
    return _windows(load_minilm()[1], part, documents, each, length)


@functools.cache
def smollm2_windows(part: str, documents: int, length: int) -> Tensor:
    """The beginning of each of the first documents that are long enough."""
    return _windows(load_smollm2()[1], part, documents, 1, length)


def _windows(tokenizer: Any, part: str, documents: int, each: int, length: int) -> Tensor:
    """Windows [documents * each, length]; none spans two documents."""
    found: list[Tensor] = []
    for text in getattr(demo_texts(), part):
        if len(found) == documents:
            break
        try:
            found.append(token_windows(tokenizer, text, length=length, count=each))
        except ValueError:  # a shorter document
            continue
    if len(found) < documents:
        raise ValueError(
            f"{len(found)} documents have {each} windows of {length} tokens, expected {documents};"
            f" ask for fewer or shorter ones ({demo_texts().source})."
        )
    return torch.cat(found)
