"""Equal values have equal digests in any process; a bit that differs shows."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse

import bochner
from bochner.gram import BlockFeatures, Precision
from bochner.gram.accumulate import GroupWork
from bochner.gram.digest import digest


def work(seed=0, precision=Precision.SINGLE):
    generator = torch.Generator().manual_seed(seed)
    phi = bochner.make(
        "trigonometric", dim=3, num_features=8, kernel="gaussian", generator=generator
    )
    return GroupWork(BlockFeatures(phi), precision)


def closing_over(value):
    return lambda rows: rows + value


DIFFERENT = [
    0,
    0.0,
    "0",
    None,
    True,
    [],
    (),
    {"a": 1, "b": 2},
    {"a": 2, "b": 1},
    {"a", "b"},
    np.zeros(3),
    np.zeros((3, 1)),
    np.zeros(3, dtype=np.float32),
    np.array(["a", None], dtype=object),
    np.dtype(np.float32),
    torch.zeros(3),
    torch.zeros(3, dtype=torch.float64),
    torch.zeros(3, dtype=torch.bfloat16),
    torch.zeros(3, dtype=torch.float16),
    -torch.zeros(3),
    sparse.eye(3, format="csr"),
    Precision.SINGLE,
    np.sum,
    len,
    partial(np.sum, axis=0),
    partial(np.sum, axis=1),
    closing_over(1),
    closing_over(2),
    lambda rows: rows * 2,
    lambda rows: rows * 3,
    lambda rows: rows.sum(),
    lambda rows: rows.mean(),
    work(),
    work(1),
    work(precision=Precision.DOUBLE),
    torch.Generator().manual_seed(1),
]


def test_different_values_differ_and_equal_ones_agree():
    digests = [digest(value) for value in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)
    again = [digest(value) for value in (work(), closing_over(2), np.zeros(3)[::1], {"b", "a"})]
    assert set(again) < set(digests)


def digest_elsewhere(rank):
    return digest([work(), {"a", "b", "c"}]), hash("a")


def test_the_same_in_other_processes(three):
    """Other hash seeds, other addresses."""
    found = three.run(digest_elsewhere, [()] * 3)
    assert {value for value, _ in found} == {digest([work(), {"a", "b", "c"}])}
    assert len({seed for _, seed in found}) == 3 or "PYTHONHASHSEED" in os.environ


def test_an_object_inside_itself():
    circle: list = [1]
    circle.append(circle)
    assert digest(circle) != digest([1])


def test_what_no_process_can_be_sent():
    with pytest.raises(TypeError, match="cannot pickle"):
        digest(number for number in range(3))
