"""Exact attention, block by block: the reference of every measured error."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bochner.kernels import Kernel
from bochner.validation import check_finite, check_points, last_dimension

_BLOCK_ELEMENTS = 1 << 21  # kernel entries worked on at one time: a few MB, which stay in cache


def check_inputs(q: Tensor, k: Tensor, v: Tensor | None, dim: int, *, causal: bool) -> None:
    """Raise ValueError or TypeError unless q, k, v are finite points of one batch."""
    check_points("q", q, dim)
    check_points("k", k, dim)
    check_finite("q", q)
    check_finite("k", k)
    if q.shape[:-2] != k.shape[:-2]:
        raise ValueError(
            f"q and k have leading dimensions {list(q.shape[:-2])} and {list(k.shape[:-2])};"
            " diagnostics want the same (repeat keys for grouped queries)."
        )
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal=True needs equal lengths; q has {q.shape[-2]}, k {k.shape[-2]}.")
    if v is not None:
        check_points("v", v, last_dimension(v))
        check_finite("v", v)
        if v.shape[:-1] != k.shape[:-1]:
            raise ValueError(
                f"v has shape {list(v.shape)}; its leading dimensions and length must be those of k,"
                f" {list(k.shape[:-1])}."
            )


def row_blocks(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Slices of query rows, so that [*b, rows, n'] stays small."""
    per_row = k.shape[-2] * math.prod(k.shape[:-2])
    rows = max(1, _BLOCK_ELEMENTS // per_row)
    for start in range(0, q.shape[-2], rows):
        yield slice(start, min(start + rows, q.shape[-2]))


def visible_keys(
    rows: slice, num_keys: int, device: torch.device, *, causal: bool
) -> Tensor | None:
    """[rows, n'] mask of the keys each row may see, or None for all."""
    if not causal:
        return None
    row = torch.arange(rows.start, rows.stop, device=device).unsqueeze(-1)
    return torch.arange(num_keys, device=device) <= row


def exact_logs(kernel: Kernel, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
    """log K [*b, rows, n'] in the dtype of q; -inf where hidden."""
    logs = kernel.log(q, k)
    return logs if visible is None else logs.masked_fill(~visible, -math.inf)


def largest_log(kernel: Kernel, q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
    """max log K per head, [*heads, 1, 1]."""
    peaks = [
        exact_logs(
            kernel, q[..., rows, :], k, visible_keys(rows, k.shape[-2], q.device, causal=causal)
        ).amax((-1, -2), keepdim=True)
        for rows in row_blocks(q, k)
    ]
    return torch.stack(peaks).amax(0)
