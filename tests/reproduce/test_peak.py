"""The peak of a process rises with what it touches, and can be forgotten."""

import sys

import pytest
import torch

from bochner.reproduce.peak import forget_peak, peak_bytes, resident_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_the_peak_is_that_of_what_was_touched_since():
    forget_peak()
    before = resident_bytes()
    assert peak_bytes() - before < 20e6
    torch.ones(25_000_000)  # 100 MB, gone at once
    rise = peak_bytes() - before
    assert 90e6 < rise < 130e6
    forget_peak()
    assert peak_bytes() - before < 50e6
