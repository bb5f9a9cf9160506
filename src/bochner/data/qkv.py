"""Files of queries, keys and values of one attention layer, as `.npz` or `.safetensors`.

    q, k, v  [heads, length, dim],     logit(i, j) = q_i · k_j

q and k are already divided by the temperature (for attention with logits q·k/sqrt(d), both were
multiplied by d^(-1/4)), so that no reader has to guess it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bochner.data import replacing

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class QKV(NamedTuple):
    """Queries, keys and values of one attention layer; q and k already divided by the temperature.

    Shapes:     q, k [*b, heads, length, dim], v [*b, heads, length, value_dim]. Under grouped-query
                attention k and v have fewer heads than q.
    """

    q: Float[Tensor, "*b h n d"]
    k: Float[Tensor, "*b h n d"]
    v: Float[Tensor, "*b h n d"]


def load_qkv(path: str | os.PathLike[str]) -> QKV:
    """Read q, k and v from a `.npz` or `.safetensors` file.

    Shapes:     q, k [heads, length, dim], v [heads, length, value_dim], in the dtype of the file.
    Raises:     FileNotFoundError if there is no such file; ValueError if its suffix is another one,
                it is damaged, an array is missing, is not [heads, length, dim], does not match the
                others, or holds NaN or infinity; TypeError if an array is not floating point.
    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "layer.npz"
        >>> x = torch.ones(12, 7, 32)
        >>> save_qkv(path, x, x, x)
        >>> load_qkv(path).k.shape
        torch.Size([12, 7, 32])
    """
    path = Path(path)
    read = _of_suffix(path, {".npz": _read_npz, ".safetensors": _read_safetensors})
    if not path.is_file():
        raise FileNotFoundError(
            f"path={str(path)!r}: there is no such file; save_qkv(path, q, k, v) writes one."
        )
    arrays = read(path)
    missing = [name for name in QKV._fields if name not in arrays]
    if missing:
        raise ValueError(
            f"path={str(path)!r} holds the arrays {sorted(arrays)}, expected q, k and v;"
            f" missing: {', '.join(missing)}. save_qkv(path, q, k, v) names them so."
        )
    qkv = QKV(*(arrays[name] for name in QKV._fields))
    _check(qkv, source=f"path={str(path)!r}: ")
    return qkv


def save_qkv(path: str | os.PathLike[str], q: Tensor, k: Tensor, v: Tensor) -> None:
    """Write q, k and v to a `.npz` or `.safetensors` file, replacing it as a whole or not at all.

    Shapes:     q, k [heads, length, dim], v [heads, length, value_dim], one floating-point dtype;
                bfloat16 only as `.safetensors` (NumPy has none).
    Raises:     ValueError or TypeError as `load_qkv`.
    """
    path = Path(path)
    write = _of_suffix(path, {".npz": _write_npz, ".safetensors": _write_safetensors})
    qkv = QKV(q, k, v)
    _check(qkv, source="")
    # Copies, since safetensors refuses tensors that share memory (q is k).
    copies = {
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in qkv._asdict().items()
    }
    with replacing(path) as temporary:
        write(temporary, copies)


def _of_suffix(path: Path, choices: dict[str, Callable]) -> Callable:
    """The reader or writer for the file's suffix."""
    if path.suffix not in choices:
        raise ValueError(
            f"path={str(path)!r} has the suffix {path.suffix!r}; expected one of"
            f" {', '.join(choices)}. Rename or convert the file."
        )
    return choices[path.suffix]


def _check(qkv: QKV, *, source: str) -> None:
    """Raise unless q, k and v are finite, floating point and of matching shapes."""
    for name, x in qkv._asdict().items():
        if x.dtype not in DTYPES:
            raise TypeError(
                f"{source}{name} has dtype {x.dtype}; expected one of"
                f" {', '.join(str(dtype) for dtype in DTYPES)}. Convert it: {name}.float()."
            )
        if x.ndim != 3 or 0 in x.shape:
            raise ValueError(
                f"{source}{name} has shape {list(x.shape)}; expected [heads, length, dim], none of"
                f" them 0. Take one sequence of a batch: {name}[0]."
            )
        if not x.isfinite().all():
            first = (~x.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{source}{name} holds NaN or infinity, first at [head, position, dim] = {first};"
                " expected finite numbers. Look at the model run that it was saved from."
            )
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in qkv._asdict().items())
    q, k, v = qkv
    for axis, what in enumerate(("heads", "length")):
        if len({x.shape[axis] for x in qkv}) > 1:
            raise ValueError(
                f"{source}{shapes} differ in {what} (axis {axis}); expected one number for the"
                " three. Repeat the key/value heads of grouped-query attention; save [heads,"
                " length, dim], not [length, heads, dim]."
            )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"{source}{shapes}: q and k differ in dim; expected the same dim, as q·k needs it."
            " Were k and v exchanged?"
        )
    if len({x.dtype for x in qkv}) > 1:
        raise TypeError(
            f"{source}q, k and v have dtypes {q.dtype}, {k.dtype} and {v.dtype}; expected one dtype"
            " for the three. Convert them to one."
        )


def _read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays q, k and v of a NumPy archive, and the names of the others."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds one array without a name, as np.save writes it")
        with archive:
            arrays = {name: archive[name] for name in archive.files if name in QKV._fields}
            others = {name: torch.empty(0) for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"path={str(path)!r} is not a readable .npz archive: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise TypeError(
                f"path={str(path)!r}: {name} has dtype {array.dtype}; expected float16, float32 or"
                " float64. Save bfloat16 as .safetensors."
            )
    native = {name: np.asarray(a, dtype=a.dtype.newbyteorder("=")) for name, a in arrays.items()}
    return others | {name: torch.from_numpy(array) for name, array in native.items()}


def _write_npz(path: Path, arrays: dict[str, Tensor]) -> None:
    """Write a NumPy archive."""
    if any(x.dtype == torch.bfloat16 for x in arrays.values()):
        raise TypeError(
            "q, k and v have dtype torch.bfloat16, which .npz cannot hold; expected float16,"
            " float32 or float64. Save them as .safetensors, or call .float() first."
        )
    contents: dict[str, Any] = {name: x.numpy() for name, x in arrays.items()}
    np.savez(path, **contents)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    safetensors, torch_files = _import_safetensors()
    try:
        return torch_files.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"path={str(path)!r} is not a readable .safetensors file: {error}"
        ) from error


def _write_safetensors(path: Path, arrays: dict[str, Tensor]) -> None:
    """Write a safetensors file."""
    _, torch_files = _import_safetensors()
    torch_files.save_file(arrays, path)


def _import_safetensors() -> tuple[ModuleType, ModuleType]:
    """safetensors and its PyTorch part, an optional dependency."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "reading and writing .safetensors needs the package safetensors:"
            " pip install safetensors (or use .npz)"
        ) from error
    return safetensors, safetensors.torch
