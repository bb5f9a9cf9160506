"""Features of blocks of rows: pieces, given memory, and memory used again."""

import pickle
import threading

import numpy as np
import pytest
import torch

import bochner
from bochner.gram import BlockFeatures
from bochner.gram.features import Reused

ROWS = np.random.default_rng(0).normal(size=(3000, 3))


def features(name: str, m: int = 512) -> BlockFeatures:
    generator = torch.Generator().manual_seed(0)
    return BlockFeatures(
        bochner.make(name, dim=3, num_features=m, kernel="gaussian", generator=generator)
    )


@pytest.mark.parametrize("name", ["trigonometric", "cosine", "positive"])
def test_rows_taken_piece_by_piece_are_the_maps_own_features(name: str) -> None:
    phi = features(name)
    points = torch.from_numpy(ROWS.astype(np.float32))
    whole = phi.feature_map.query(points).materialise().numpy()
    np.testing.assert_allclose(phi(ROWS), whole, rtol=1e-4, atol=1e-6 * float(abs(whole).max()))


@pytest.mark.parametrize("name", ["trigonometric", "cosine", "positive"])
def test_memory_that_is_given_is_filled(name: str) -> None:
    phi = features(name)
    out = np.full((len(ROWS), 512), np.nan, dtype=np.float32)
    assert phi(ROWS, out) is out
    np.testing.assert_array_equal(out, phi(ROWS))


def test_memory_is_used_again_by_the_same_thread_only() -> None:
    again, found = Reused(features("trigonometric")), {}
    first = again(ROWS)
    kept = first.copy()
    thread = threading.Thread(target=lambda: found.update(other=again(-ROWS)))
    thread.start()
    thread.join()
    assert not np.shares_memory(first, found["other"])
    np.testing.assert_array_equal(first, kept)
    assert np.shares_memory(first, again(ROWS[:10]))
    np.testing.assert_array_equal(again(ROWS[:10]), kept[:10])


def test_reused_features_pickle_without_their_memory() -> None:
    again = Reused(features("trigonometric"))
    again(ROWS)
    sent = pickle.dumps(again)
    assert len(sent) < 100_000
    np.testing.assert_array_equal(pickle.loads(sent)(ROWS), again(ROWS))


def test_other_features_are_asked_as_they_are() -> None:
    assert Reused(lambda rows: rows)(ROWS) is ROWS
