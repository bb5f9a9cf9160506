"""From a cache to the attention that follows it.

An attention module calls `cache.update(k, v, layer_idx)` and then the attention function with what came
back, but not with the cache. So `update` leaves its layer here, with the very tensor it gives back, and
the attention function takes it: per thread, used once, and never for another tensor. Compiled code does
both in plain Python.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bochner.transformers.cache import LinearCacheLayer


class _Pending(threading.local):
    cache: LinearCacheLayer | None = None
    key: weakref.ref[Tensor] | None = None


_pending = _Pending()


@torch.compiler.disable
def hand_over(cache: LinearCacheLayer, key: Tensor) -> None:
    """Leave `cache` for the attention that gets `key`."""
    _pending.cache, _pending.key = cache, weakref.ref(key)


@torch.compiler.disable
def taken(key: Tensor) -> LinearCacheLayer | None:
    """The cache left for `key`; None if there is none.

    Raises:     ValueError if one was left for another tensor, which still exists.
    """
    cache, reference = _pending.cache, _pending.key
    _pending.cache = _pending.key = None
    if cache is None or reference is None:
        return None
    expected = reference()
    if expected is None:
        return None  # an error came between the two calls: that pass is over
    if expected is not key:
        raise ValueError(
            "the model changed the keys between its cache and its attention, so a LinearCache cannot"
            " know which tokens are new; expected the keys as the cache gave them. Pass"
            " use_cache=False."
        )
    return cache
