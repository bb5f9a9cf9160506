"""A digest of values: whether two processes, or a run and its continuation, are about to do the same.

Made of what objects hold, bit by bit, not of how they pickle: sets have no order, tensors no address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from scipy import sparse

_PLAIN = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    range,
    slice,
    np.dtype,
    torch.dtype,
    torch.device,
)


def digest(value: Any) -> str:
    """Hexadecimal digits that are equal for equal values, in any process.

    Arguments:  value: numbers, texts, containers, arrays, tensors, functions, and objects of these.
    Example:
        >>> digest([1.0, np.arange(3)]) == digest([1.0, np.arange(3)]) != digest([1.0, np.arange(4)])
        True
    """
    found = hashlib.blake2b(digest_size=16)
    _feed(found, value, ())
    return found.hexdigest()


def _feed(found: Any, value: Any, above: tuple[int, ...]) -> None:
    """Add a value, and what it holds; `above` are the objects that it is inside of."""
    if id(value) in above:
        found.update(b"<above>")
        return
    parts: list[Any] = []
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Enum):
        parts = [value.name]
    elif isinstance(value, _PLAIN):
        kind += repr(value)
    elif isinstance(value, type | FunctionType | BuiltinFunctionType | ModuleType):
        kind += f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    elif isinstance(value, CodeType):  # constants and names are apart from what is done with them
        parts = [value.co_code, value.co_consts, value.co_names]
    elif isinstance(value, torch.Tensor):
        held = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        parts = [str(value.dtype), tuple(value.shape), held.reshape(-1).view(torch.uint8).numpy()]
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        kind += f"{value.dtype.str}{np.shape(value)}"
        found.update(kind.encode())
        found.update(np.ascontiguousarray(value).tobytes())
        return
    else:
        parts = _contents(value)
    found.update(f"{kind}({len(parts)}".encode())
    for part in parts:
        _feed(found, part, (*above, id(value)))
    found.update(b")")


def _contents(value: Any) -> list[Any]:
    """What an object holds."""
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    if sparse.issparse(value):
        return [value.shape, value.tocsr().data, value.tocsr().indices, value.tocsr().indptr]
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, set | frozenset):
        return sorted(digest(part) for part in value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, np.ndarray):  # of objects
        return [value.shape, *value.ravel()]
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    held |= getattr(value, "__dict__", {})
    if held or hasattr(value, "__dict__"):
        return [held]
    reduced = value.__reduce_ex__(4)  # TypeError for what cannot be sent to another process either
    return [reduced] if isinstance(reduced, str) else list(reduced[:3])
