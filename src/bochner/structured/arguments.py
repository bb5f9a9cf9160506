"""Checks of what structured distributions are given (unaries, lengths, states) and of what they say."""

from __future__ import annotations

import torch
from torch import Tensor

from bochner.structured.edges.transitions import Transitions


def checked_unaries(unaries: Tensor, transitions: Transitions) -> Tensor:
    """Unaries [*b, T, X] in float32 or float64, expanded to the batch of the transitions."""
    if not isinstance(transitions, Transitions):
        raise TypeError(
            f"transitions is {type(transitions).__name__}; expected Transitions: Dense(log_potentials) or"
            " LowRank(log_left, log_right), [1, X, X] or [1, X, m] where all edges share them. Learned"
            " modules make theirs: module.chain(unaries), or module.chain(unaries).transitions."
        )
    if not isinstance(unaries, Tensor) or not unaries.is_floating_point():
        raise TypeError(
            "unaries must be a floating-point torch.Tensor [*batch, T, X], got"
            f" {unaries.dtype if isinstance(unaries, Tensor) else type(unaries).__name__}."
        )
    if unaries.ndim < 2 or unaries.numel() == 0:
        raise ValueError(
            f"unaries has shape {list(unaries.shape)}; expected [*batch, T, X], none of them 0."
        )
    if unaries.shape[-1] != transitions.num_states:
        raise ValueError(
            f"unaries has {unaries.shape[-1]} states in its last dimension, the transitions have"
            f" {transitions.num_states}."
        )
    for tensor in transitions.tensors():
        if tensor.device != unaries.device:
            raise ValueError(
                f"unaries is on {unaries.device}, the transitions are on {tensor.device}; move one of them."
            )
    # NaN and +inf would win every maximum; -inf is a state that is forbidden
    if not bool((unaries.detach() < torch.inf).all()):
        raise ValueError(
            "unaries holds NaN or +inf; expected finite logarithms, or -inf to forbid."
        )
    if unaries.dtype not in (torch.float32, torch.float64):
        unaries = unaries.float()
    for tensor in transitions.tensors():
        if tensor.is_floating_point() and tensor.dtype != unaries.dtype:
            raise TypeError(
                f"unaries are {unaries.dtype}, the transitions {tensor.dtype}; both must be float32, or both"
                " float64 (half precision unaries become float32)."
            )
        if tensor.numel() == 0 or not bool(tensor.detach().amax() < torch.inf):
            raise ValueError(
                f"the transitions ({type(transitions).__name__}) hold NaN or +inf, or nothing, in a tensor of"
                f" shape {list(tensor.shape)}; expected finite logarithms, or -inf for a weight of 0."
            )
    try:
        batch = torch.broadcast_shapes(unaries.shape[:-2], transitions.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"unaries has leading dimensions {list(unaries.shape[:-2])}, the transitions have"
            f" {list(transitions.batch_shape)}: they do not broadcast."
        ) from None
    return unaries.expand(*batch, *unaries.shape[-2:])


def checked_lengths(lengths: Tensor | None, unaries: Tensor) -> Tensor:
    """Lengths [*b] in 1..T as a long tensor; all T where none are given."""
    batch, steps = unaries.shape[:-2], unaries.shape[-2]
    if lengths is None:
        return torch.full(batch, steps, dtype=torch.long, device=unaries.device)
    if (
        not isinstance(lengths, Tensor)
        or lengths.is_floating_point()
        or lengths.dtype == torch.bool
    ):
        raise TypeError(
            "lengths must be a torch.Tensor of integers, got"
            f" {lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__}."
        )
    if lengths.shape != batch:
        raise ValueError(
            f"lengths has shape {list(lengths.shape)}; expected {list(batch)}, one for every sequence."
        )
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > steps:
        raise ValueError(
            f"lengths goes from {low} to {high}; expected 1..{steps} (the steps of unaries)."
        )
    return lengths.long().to(unaries.device)


def checked_states(
    states: Tensor, there: Tensor, num_states: int, *, name: str = "states"
) -> Tensor:
    """States [*s, *b, T] as a long tensor, with 0 in the places that do not exist (there [*b, T])."""
    if not isinstance(states, Tensor) or states.is_floating_point() or states.dtype == torch.bool:
        raise TypeError(
            f"{name} must be a torch.Tensor of integers, got"
            f" {states.dtype if isinstance(states, Tensor) else type(states).__name__}."
        )
    shape = tuple(there.shape)
    if tuple(states.shape[max(0, states.ndim - len(shape)) :]) != shape:
        raise ValueError(
            f"{name} has shape {list(states.shape)}; expected [*samples, {', '.join(map(str, shape))}]."
        )
    states = torch.where(there, states.long(), 0)
    low, high = (int(states.min()), int(states.max())) if states.numel() else (0, 0)
    if low < 0 or high >= num_states:
        raise ValueError(f"{name} holds values from {low} to {high}; expected 0..{num_states - 1}.")
    return states


def check_possible(log_partition: Tensor) -> None:
    """Raise ValueError where log Z is -inf: there is no distribution to speak of."""
    none = int((log_partition == -torch.inf).sum())
    if none:
        raise ValueError(
            f"{none} of {log_partition.numel()} elements of the batch allow nothing at all (-inf in the"
            " unaries or the transitions, whatever is chosen): there is no distribution to speak of."
        )


def log_probability(score: Tensor, log_partition: Tensor) -> Tensor:
    """score - log Z, never above 0: where rounding puts it there, 0 with the gradient that it has."""
    found = score - log_partition
    return torch.where(found > 0, found - found.detach(), found)


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast off: sums of probabilities in half precision are wrong. What is no tensor is checked later."""
    kind = like.device.type if isinstance(like, Tensor) else "cpu"
    return torch.autocast(device_type=kind, enabled=False)
