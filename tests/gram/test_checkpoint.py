"""A fit that is killed and begun again ends with the bits of one that was not."""

import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from bochner.gram import accumulate
from bochner.gram.checkpoint import CheckpointedRows
from tests.gram.rows_problem import features, problem, same_bits, single_process


class Counts:
    """Features that count the blocks that they are asked for, and may end the process or raise."""

    num_features = features().num_features

    calls, kills_at, raises_at = 0, None, None  # of the class: they are no part of the fit

    def __init__(self, kills_at=None, raises_at=None):
        Counts.kills_at, Counts.raises_at, self.inner = kills_at, raises_at, features()

    def __call__(self, rows):
        if Counts.calls == self.kills_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if Counts.calls == self.raises_at:
            raise KeyboardInterrupt
        Counts.calls += 1
        return self.inner(rows)


@pytest.fixture(autouse=True)
def _from_zero(monkeypatch):
    monkeypatch.setattr(Counts, "calls", 0)


def sums(folder, phi=None, seconds=0.0):
    X, Y, weight = problem()
    rows = CheckpointedRows(X, folder, seconds=seconds)
    phi = features() if phi is None else phi
    return accumulate(phi, rows, Y, sample_weight=weight, num_threads=1)


def test_uninterrupted(tmp_path):
    assert same_bits(sums(tmp_path), single_process(weighted=True))
    assert os.listdir(tmp_path) == ["pass-000.pickle"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_and_resumed(tmp_path):
    """Killed in the third of four groups, in another process."""
    code = f"""
from tests.gram.test_checkpoint import *
sums({str(tmp_path)!r}, Counts(kills_at=2))
"""
    died = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL
    phi = Counts()
    found = sums(tmp_path, phi)
    assert Counts.calls == 2, "two of four groups were done"
    assert same_bits(found, single_process(weighted=True))


def test_interrupted_between_writings(tmp_path):
    """Nothing was written yet: everything is done again."""
    with pytest.raises(KeyboardInterrupt):
        sums(tmp_path, Counts(raises_at=2), seconds=1e9)
    assert os.listdir(tmp_path) == []
    assert same_bits(sums(tmp_path), single_process(weighted=True))


def test_finished_passes_are_read_and_every_pass_has_its_file(tmp_path):
    sums(tmp_path, Counts())
    assert Counts.calls == 4
    X, Y, weight = problem()
    rows = CheckpointedRows(X, tmp_path)
    assert same_bits(accumulate(Counts(), rows, Y, sample_weight=weight), single_process(True))
    assert Counts.calls == 4, "read, not computed"
    assert same_bits(accumulate(Counts(), rows, Y), single_process())
    assert Counts.calls == 8
    assert sorted(os.listdir(tmp_path)) == ["pass-000.pickle", "pass-001.pickle"]


def test_a_writing_that_was_cut_short_is_not_looked_at(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        sums(tmp_path, Counts(raises_at=2))

    def half(value, file, protocol):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pickle, "dump", half)
    with pytest.raises(KeyboardInterrupt):
        sums(tmp_path, Counts())
    monkeypatch.undo()
    Counts.calls = 0
    assert same_bits(sums(tmp_path, Counts()), single_process(weighted=True))
    assert Counts.calls == 2, "the two groups before stand"


@pytest.mark.parametrize("what", ["features", "rows", "targets", "weights"])
def test_another_fit_is_refused(tmp_path, what):
    sums(tmp_path)
    X, Y, weight = (array.copy() for array in problem())
    changed = {"rows": X, "targets": Y, "weights": weight}.get(what)
    if changed is not None:
        changed[-1] = 0.125
    rows = CheckpointedRows(X, tmp_path)
    with pytest.raises(ValueError, match="is of another fit"):
        accumulate(features(seed=int(what == "features")), rows, Y, sample_weight=weight)


def test_no_checkpoint(tmp_path):
    (tmp_path / "pass-000.pickle").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="is no checkpoint"):
        sums(tmp_path)


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="1 dimensions"):
        CheckpointedRows(np.zeros(3), tmp_path)
    with pytest.raises(ValueError, match="seconds=-1"):
        CheckpointedRows(np.zeros((3, 1)), tmp_path, seconds=-1)
