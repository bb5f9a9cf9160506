"""Fashion-MNIST: 70,000 grey pictures of clothes, from a Debian package.

Each file is gzip around IDX: two zero bytes, the type of a cell (8: unsigned byte), the number of
dimensions, each dimension in four bytes with the largest first, then the cells.
"""

from __future__ import annotations

import gzip
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from bochner.data import MissingDataError
from bochner.data.debian import DebianPackage, debian_files

FOLDER = "usr/share/datasets/fashion-mnist"
SHA256 = {
    "train-images-idx3": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
FASHION_MNIST = DebianPackage(
    "dataset-fashion-mnist",
    "bookworm",
    {f"{FOLDER}/{name}-ubyte.gz": digest for name, digest in SHA256.items()},
)
CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
UNSIGNED_BYTES = 8


class Images(NamedTuple):
    """Grey pictures with their classes.

    Shapes:     pixels [n, height, width] in 0..255 (0 is the background), labels [n].
    """

    pixels: UInt8[Tensor, "n h w"]
    labels: Int64[Tensor, " n"]
    class_names: tuple[str, ...]
    source: str


def fashion_mnist() -> tuple[Images, Images]:
    """The 60,000 pictures to train with and the 10,000 to test with, 28 x 28 each, in 10 classes.

    Cost:       a second and 55 MB; the first call may fetch 31 MB with apt-get into
                `cache_directory()`.
    Raises:     MissingDataError if the package is neither installed nor to be had, or is another version.
    Reference:  Xiao, Rasul and Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
                Learning Algorithms, 2017.
    """
    files = debian_files(FASHION_MNIST)
    parts = []
    for part in ("train", "t10k"):
        pixels, labels = (
            idx_array(gzip.decompress(files[f"{FOLDER}/{part}-{kind}-ubyte.gz"].read_bytes()))
            for kind in ("images-idx3", "labels-idx1")
        )
        source = f"Fashion-MNIST, {part} (Debian {FASHION_MNIST.name})"
        parts.append(Images(pixels, labels.long(), CLASSES, source))
    return parts[0], parts[1]


def idx_array(content: bytes) -> Tensor:
    """The array of unsigned bytes in an IDX file.

    Raises:     MissingDataError if the content is none, or is longer or shorter than it says.
    Example:
        >>> idx_array(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 5, 6, 7])).tolist()
        [[5, 6, 7]]
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTES]):
        raise MissingDataError(f"no IDX file of unsigned bytes: it starts with {content[:4]!r}.")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise MissingDataError(
            f"an IDX file of shape {shape} has {len(content) - start} cells, expected"
            f" {math.prod(shape)}: it is damaged."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).reshape(shape)
