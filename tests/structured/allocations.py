"""The largest tensor that a computation makes, forward or backward: memory, without a clock or an OS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Largest(TorchDispatchMode):
    """Numbers of elements of what every operation returns, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                # a view of a small tensor may look large: what counts is what lies behind it
                stored = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.elements = max(self.elements, stored)
        return result


@contextmanager
def largest_tensor() -> Iterator[_Largest]:
    """`.elements` of the largest tensor made inside; what exists before counts only if it is returned."""
    with _Largest() as mode:
        yield mode
