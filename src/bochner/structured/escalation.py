"""Sums in the fast semiring first; what its range does not hold, again in float64, at last by logsumexp."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions
from bochner.structured.semirings import LogSum, Semiring, Sum

Result = TypeVar("Result")
Run = Callable[[Semiring, Transitions, Tensor], tuple[Result, Tensor | None]]
"""A recursion: its result, and which elements of the batch may have lost mass to underflow."""


def escalated(run: Run[Result], transitions: Transitions, unaries: Tensor) -> Result:
    """The result of the first of `Sum`, `Sum` in float64 and `LogSum` that loses nothing.

    The whole batch is run again, not the elements alone that need it; results in float64 stay so.
    """
    # what the given object has cached belongs to other values of its tensors, or to another gradient
    transitions = transitions.with_tensors(transitions.tensors())
    result, lost = run(Sum(), transitions, unaries)
    if not _any(lost):
        return result
    if unaries.dtype != torch.float64:
        transitions, unaries = transitions.double(), unaries.double()
        result, lost = run(Sum(), transitions, unaries)
        if not _any(lost):
            return result
    return run(LogSum(), transitions, unaries)[0]


def in_dtype(transitions: Transitions, dtype: torch.dtype) -> Transitions:
    """Transitions for messages that an escalation may have left in float64."""
    return transitions.double() if dtype == torch.float64 else transitions


def _any(lost: Tensor | None) -> bool:
    return lost is not None and bool(lost.any())
