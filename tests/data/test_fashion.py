"""Fashion-MNIST: IDX files, files that are none, and the published pictures themselves."""

import pytest
import torch

from bochner.data import MissingDataError
from bochner.data.fashion import CLASSES, fashion_mnist, idx_array


def idx(shape, cells, kind=8):
    return (
        bytes([0, 0, kind, len(shape)])
        + b"".join(n.to_bytes(4, "big") for n in shape)
        + bytes(cells)
    )


def test_an_array():
    found = idx_array(idx((2, 1, 3), range(6)))
    assert found.dtype == torch.uint8
    assert found.tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    assert idx_array(idx((300,), [7] * 300)).shape == (300,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (idx((2,), [1, 2], kind=13), "no IDX file of unsigned bytes"),
        (idx((2, 2), [1, 2, 3]), "shape.*has 3 cells, expected 4"),
        (idx((2,), [1, 2, 3]), "has 3 cells, expected 2"),
        (idx((2, 2), [])[:9], "cells, expected"),
    ],
)
def test_files_that_are_none(content, message):
    with pytest.raises(MissingDataError, match=message):
        idx_array(content)


@pytest.fixture(scope="module")
def published():
    """Skips, aloud, only where the package is neither installed nor to be had."""
    try:
        return fashion_mnist()
    except MissingDataError as error:
        pytest.skip(str(error))


def test_the_published_pictures(published):
    train, test = published
    for part, each in ((train, 6000), (test, 1000)):
        assert part.pixels.shape == (10 * each, 28, 28)
        assert part.pixels.dtype == torch.uint8
        assert part.labels.bincount().tolist() == [each] * 10
        assert part.class_names == CLASSES
    assert [CLASSES[i] for i in train.labels[:3]] == ["ankle boot", "t-shirt", "t-shirt"]
    assert train.source != test.source
    # A trouser is two legs: the middle column at the hem is empty far more often than a coat's.
    hem = train.pixels[:, 24, 14] == 0
    assert hem[train.labels == 1].double().mean() > 0.6 > hem[train.labels == 4].double().mean()
