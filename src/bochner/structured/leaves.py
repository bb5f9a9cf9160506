"""Tensors as constants that autograd may start from, whatever mode they were made in."""

from __future__ import annotations

from torch import Tensor

from bochner.structured.edges.transitions import Transitions


def constant(tensor: Tensor) -> Tensor:
    """Detached; a copy of what was made in inference mode, which autograd refuses to read.

    To be called outside inference mode, under torch.inference_mode(False).

    Example:
        >>> import torch
        >>> with torch.inference_mode():
        ...     made = torch.ones(2)
        >>> float(constant(made).requires_grad_().sum().detach())
        2.0
    """
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def constant_transitions(transitions: Transitions) -> Transitions:
    """The same transitions over constants, nothing cached."""
    return transitions.with_tensors([constant(t) for t in transitions.tensors()])
