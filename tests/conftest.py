"""One thread, and randomness that is the same in every run."""

import sys
from collections.abc import Iterator

import pytest
import torch

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
