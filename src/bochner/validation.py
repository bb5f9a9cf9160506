"""Checks of what comes in: every message names the argument, what came, what was expected and the fix.

These functions raise; none of them repairs anything. `assert` is kept for our own bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor


class NotFittedError(ValueError):
    """A data-aware feature map was used before `.fit(queries, keys)` gave it its data."""


class UnknownNameError(ValueError):
    """A name that the catalogue does not hold; the message lists the nearest ones."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not known, with its nearest neighbours.

    Example:
        >>> str(unknown_name("feature map", "positve", ["positive", "gerf"]))
        "unknown feature map 'positve'; did you mean 'positive'? Known: gerf, positive."
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else "."
    return UnknownNameError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}.")


def check_count(name: str, value: int, *, at_least: int = 1) -> int:
    """Return `value` if it is an integer of at least `at_least`, else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {at_least}.")
    return value


def check_points(name: str, x: Tensor, dim: int) -> None:
    """Raise unless `x` is a floating-point tensor [*b, n, dim] with n >= 1."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}.")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} has dtype {x.dtype}; expected float16, bfloat16, float32 or float64."
        )
    if x.ndim < 2:
        raise ValueError(
            f"{name} has shape {list(x.shape)}; expected [*batch, n, {dim}]"
            f" (a single point is [1, {dim}])."
        )
    if x.shape[-1] != dim:
        raise ValueError(f"{name} has last dimension {x.shape[-1]}; expected dim={dim}.")
    if x.shape[-2] == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}: an empty sequence; expected n >= 1.")
    if x.numel() == 0:
        raise ValueError(
            f"{name} has shape {list(x.shape)}: an empty batch; expected at least one."
        )


def last_dimension(x: Tensor) -> int:
    """The size of the last dimension; 0 for what is no tensor or has none (`check_points` says so)."""
    return x.shape[-1] if isinstance(x, Tensor) and x.ndim else 0


def check_finite(name: str, x: Tensor, squared_norms: Tensor | None = None) -> None:
    """Raise ValueError if `x` holds NaN or infinity, or if |x|^2 leaves the range of its dtype.

    `squared_norms` [*b, n, 1] is what is looked at first (it is d times smaller and inherits every
    NaN and infinity of x). Skipped while `torch.compile` traces, where a check cannot raise.
    """
    if torch.compiler.is_compiling():
        return
    probe = (x if squared_norms is None else squared_norms).detach()
    # a sum passes over memory once and inherits every NaN and infinity; if it overflows, look closer
    if bool(torch.isfinite(probe.sum())) or bool(torch.isfinite(probe).all()):
        return
    bad = int((~torch.isfinite(x.detach())).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} NaN or infinite entries out of {x.numel()}; expected finite values."
        )
    raise ValueError(
        f"{name} holds points whose squared norm overflows {probe.dtype};"
        " divide by the temperature (or a lengthscale) first, or pass float64."
    )


def check_batch(name: str, x: Tensor, batch_shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the leading dimensions of `x` [*b, n, d] broadcast with `batch_shape`."""
    if not batch_shape:
        return
    try:
        torch.broadcast_shapes(tuple(x.shape[:-2]), batch_shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has leading dimensions {list(x.shape[:-2])}, the feature map has"
            f" batch_shape={list(batch_shape)} (one map per head): they do not match. Make the map"
            f" with batch_shape={tuple(x.shape[:-2])[-len(batch_shape) :]} or pass matching heads."
        ) from None


def check_same_points(q: Tensor, k: Tensor) -> None:
    """Raise unless q and k agree in dtype and device."""
    if q.device != k.device:
        raise ValueError(f"q is on {q.device}, k on {k.device}; move one.")
    if q.dtype != k.dtype:
        raise ValueError(f"q has dtype {q.dtype}, k has dtype {k.dtype}; cast one.")
