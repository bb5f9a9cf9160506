"""One thread, and randomness that is the same in every run."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.attention.processes import Ranks

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator, fresh for every test."""
    return torch.Generator().manual_seed(20_240_229)


@pytest.fixture
def experiments_restored() -> Iterator[None]:
    """For tests that load experiments of their own: other tests' `experiments` is back afterwards."""

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "experiments"]

    before = {name: sys.modules[name] for name in loaded()}
    yield
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="session")
def three() -> Iterator[Ranks]:
    """Three gloo ranks; each imports torch and bochner, which takes seconds, once for all tests."""
    ranks = Ranks(3)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A client of two Dask workers, processes with a nanny each."""
    distributed = pytest.importorskip("distributed", reason="dask is an extra")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client
