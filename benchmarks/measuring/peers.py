"""Versions of the libraries that a benchmark runs beside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

ATTENTION = ("performer-pytorch", "darkformer-pytorch")
KERNEL_MACHINES = ("scikit-learn", "rfflearn")
STRUCTURED = ("torch-struct", "pytorch-crf", "hmmlearn")


def versions(names: Sequence[str]) -> dict[str, str | None]:
    """Version by name; None where a peer is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
