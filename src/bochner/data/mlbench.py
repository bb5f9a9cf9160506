"""Classification sets of the R package mlbench, read without R from its Debian package.

R writes a set as a serialised data frame (`.rda`). The package `rdata` reads it into numbers, words and
factors; no code inside such a file is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bochner.data import MissingDataError
from bochner.data.debian import DebianPackage, debian_files
from bochner.data.tabular import Tabular, encoded, ordered
from bochner.validation import unknown_name

FOLDER = "usr/lib/R/site-library/mlbench/data"
SHA256 = {
    "DNA": "df941ad89a49f705a29bf38e52c91dc34029539cedb13fa24f803f1224278c9e",
    "LetterRecognition": "967a1a3e10b548d7269cbe50182bcecd6365cc58ea07638bbc34c51f17f34f1d",
    "Satellite": "29f8cf9bb1bc51b769d694c9caf740fd1c36ed6a7c87603edf5985962e330f64",
    "Shuttle": "5b1db218b76a47c83f575f1ff38d7a7d36e569b0e27d8bf4aa92eae6c0bcb826",
}
CLASS_COLUMN = {
    "DNA": "Class",
    "LetterRecognition": "lettr",
    "Satellite": "classes",
    "Shuttle": "Class",
}
MLBENCH = DebianPackage(
    "r-cran-mlbench",
    "bookworm",
    {f"{FOLDER}/{name}.rda": digest for name, digest in SHA256.items()},
)


def mlbench_dataset(name: str) -> Tabular:
    """A classification set of mlbench: DNA, LetterRecognition, Satellite or Shuttle.

        DNA                 3,186 x 180     0/1     3 classes   splice junctions
        LetterRecognition  20,000 x 16      0..15  26 classes   statistics of pixels
        Satellite           6,435 x 36      0..255  6 classes   soils in 3 x 3 pixels of 4 bands
        Shuttle            58,000 x 9               7 classes   79 % of them one class, three rare

    Cost:       a second; the first call may fetch 1 MB with apt-get into `cache_directory()`.
    Raises:     UnknownNameError for another name; MissingDataError if the package is neither installed
                nor to be had, is another version, or the Python package rdata is missing.
    Reference:  Leisch and Dimitriadou, mlbench: Machine Learning Benchmark Problems; originally the UCI
                repository and StatLog.
    """
    if name not in SHA256:
        raise unknown_name("mlbench set", name, SHA256)
    frame = data_frame(debian_files(MLBENCH)[f"{FOLDER}/{name}.rda"], name)
    source = f"{name} of mlbench (Debian {MLBENCH.name}; original set: UCI or StatLog)"
    return classification(frame, CLASS_COLUMN[name], source=source)


def data_frame(path: Path, name: str) -> Any:
    """The pandas data frame that R saved under this name.

    Raises:     MissingDataError without `rdata`, or if the file holds no such frame.
    """
    try:
        import rdata
    except ImportError as error:
        raise MissingDataError(
            f"R's data frames are read by a Python package: pip install rdata ({error})"
        ) from error
    saved = rdata.read_rda(path, default_encoding="ascii")
    if not hasattr(saved.get(name), "columns"):
        raise MissingDataError(f"{path} holds {sorted(saved)}; expected a data frame {name!r}.")
    return saved[name]


def classification(frame: Any, target: str, *, source: str) -> Tabular:
    """A data frame as numbers: words become 0/1 columns, the column `target` the classes.

    Raises:     ValueError if there is no such column, or a cell is missing or not finite.
    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"kind": ["b", "a"], "size": [1.5, 2.0], "soil": ["red", "grey"]})
        >>> data = classification(frame, "kind", source="by hand")
        >>> data.features.tolist(), data.labels.tolist(), data.feature_names
        ([[1.5, 1.0], [2.0, 0.0]], [1, 0], ('size', 'soil = red'))
    """
    if target not in frame.columns:
        raise ValueError(f"{source}: no column {target!r} among {list(frame.columns)}.")
    if frame.isna().any(axis=None):
        raise ValueError(f"{source}: a cell is missing.")
    columns = [name for name in frame.columns if name != target]
    blocks = [encoded(str(name), [str(cell) for cell in frame[name]]) for name in columns]
    features = torch.from_numpy(np.concatenate([values for values, _ in blocks], axis=1))
    if not features.isfinite().all():
        raise ValueError(f"{source}: a cell is not finite.")
    classes = [str(cell) for cell in frame[target]]
    class_names = ordered(classes)
    number = {label: i for i, label in enumerate(class_names)}
    return Tabular(
        features,
        torch.tensor([number[label] for label in classes]),
        tuple(name for _, names in blocks for name in names),
        class_names,
        source,
    )
