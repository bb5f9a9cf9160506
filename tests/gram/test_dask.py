"""Dask collections of any chunks: the bits of one process, on any scheduler, also when a worker is lost."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

dask = pytest.importorskip("dask", reason="dask is an extra")
import dask.array as da  # noqa: E402
import dask.dataframe as dd  # noqa: E402
import pandas as pd  # noqa: E402

from bochner.gram import accumulate  # noqa: E402
from bochner.gram.dask import as_array, map_rows  # noqa: E402
from bochner.gram.rows import ColumnMoments, different_values, take_rows  # noqa: E402
from tests.gram.rows_problem import (  # noqa: E402
    DIM,
    ROWS,
    features,
    problem,
    same_bits,
    single_process,
)

CHUNKS = {  # of X, of Y, of the weights
    "on the grid": ((8192, DIM), (8192, 2), 8192),
    "off the grid": ((7001, 2), (12_000, 1), 999),
    "one chunk": (-1, -1, -1),
    "some empty": (((0, 20_000, 0, 10_000), DIM), ((30_000, 0), 2), ((1, 29_999),)),
}


def collections(chunks):
    X, Y, weight = problem()
    return tuple(da.from_array(a, chunks=c) for a, c in zip((X, Y, weight), chunks, strict=True))


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_in_threads(chunks):
    X, Y, weight = collections(chunks)
    with dask.config.set(scheduler="threads", num_workers=2):
        assert same_bits(accumulate(features(), X, Y, sample_weight=weight), single_process(True))


def test_on_a_cluster_of_two_processes(cluster):
    X, Y, _ = collections(CHUNKS["off the grid"])
    with cluster.as_current():
        assert same_bits(accumulate(features(), X, Y), single_process())
        held = cluster.run(lambda dask_worker: len(dask_worker.data))
    assert sum(held.values()) == 0, "nothing stays on the workers"


class LosesAWorker:
    """Features whose process is killed the first time that it comes to a row."""

    num_features = features().num_features

    def __init__(self, row: float, flag: Path) -> None:
        self.row, self.flag, self.inner = row, flag, features()

    def __call__(self, rows):
        if (rows[:, 0] == self.row).any() and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(rows)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_worker_killed_in_the_middle(cluster, tmp_path):
    """In the third of four groups; its share of the rows was in its memory, and is lost with it."""
    X, Y, _ = collections(CHUNKS["off the grid"])
    flag = tmp_path / "killed"
    phi = LosesAWorker(float(problem()[0][20_000, 0]), flag)
    with cluster.as_current():
        X, Y = dask.persist(X, Y)
        before = set(cluster.run(os.getpid).values())
        found = accumulate(phi, X, Y)
        assert flag.exists()
        assert same_bits(found, single_process())
        cluster.wait_for_workers(2, timeout=120)
        assert len(before - set(cluster.run(os.getpid).values())) == 1, "one worker is a new one"


def test_chunks_of_unknown_size_are_counted():
    X, Y, _ = problem()
    rows = da.from_array(X, chunks=(7001, DIM))
    unknown = rows[rows[:, 0] > -1e9]  # keeps all, and nobody knows
    assert np.isnan(unknown.chunks[0]).all()
    known = as_array(unknown)
    assert known.shape == X.shape
    assert np.isnan(unknown.chunks[0]).all(), "the caller's array is left alone"
    with dask.config.set(scheduler="synchronous"):
        assert same_bits(accumulate(features(), known, Y), single_process())


def test_dataframes():
    X, Y, _ = problem()
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abcde")), npartitions=5)
    with dask.config.set(scheduler="synchronous"):
        assert same_bits(accumulate(features(), as_array(frame), Y), single_process())


def test_sparse_chunks():
    X = np.where(problem()[0] > 3, problem()[0], 0)
    chunks = da.from_array(X, chunks=(7001, DIM)).map_blocks(
        sparse.csr_matrix, meta=sparse.csr_matrix((0, DIM), dtype=X.dtype)
    )
    phi = features()
    phi.offset = None
    with dask.config.set(scheduler="synchronous"):
        assert same_bits(accumulate(phi, chunks), accumulate(phi, sparse.csr_matrix(X)))


def test_moments_rows_and_classes():
    X, _, weight = problem()
    rows, _, weights = collections(CHUNKS["off the grid"])
    with dask.config.set(scheduler="synchronous"):
        ours, theirs = ColumnMoments.over(rows, weights), ColumnMoments.over(X, weight)
        assert np.array_equal(ours.mean, theirs.mean)
        assert np.array_equal(ours.squares, theirs.squares)
        assert np.array_equal(take_rows(rows, np.array([29_999, 5, 7_001])), X[[29_999, 5, 7_001]])
        labels = da.from_array(np.array(["b", "a", "c"])[np.arange(ROWS) % 3], chunks=7001)
        assert different_values(labels).tolist() == ["a", "b", "c"]


def test_map_rows_is_lazy():
    """Nothing is computed before it is asked for, chunks stay, sizes may be unknown."""
    seen = []

    def twice(rows):
        seen.append(len(rows))
        return 2 * rows[:, 0]

    X = problem()[0]
    rows = da.from_array(X, chunks=(7001, 2))
    lazy = map_rows(twice, rows[rows[:, 0] > 3], np.zeros(1, dtype=np.float32))
    assert seen == []
    assert lazy.dtype == np.float32
    with dask.config.set(scheduler="synchronous"):
        assert np.array_equal(lazy.compute(), 2 * X[X[:, 0] > 3, 0])
    assert len(seen) == 5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_found_on_the_workers(value):
    X = problem()[0].copy()
    X[25_000, 2] = value
    rows = da.from_array(X, chunks=(7001, 2))
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(ValueError, match="contains NaN, infinity"),
    ):
        accumulate(features(), rows)


def test_refusals():
    X, Y, _ = collections(CHUNKS["off the grid"])
    with pytest.raises(ValueError, match="array 1 beside the rows has 29999 rows; expected 30000"):
        accumulate(features(), X, Y[1:])
    with pytest.raises(TypeError, match="expected a Dask array or dataframe"):
        as_array(dask.delayed(np.zeros)((3, 2)))
