"""One thread of BLAS for whoever works, and what was before for everybody afterwards."""

import threading

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from bochner.gram.threads import in_order, one_thread


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    with threadpool_limits(2):
        if blas_threads() != {2}:
            pytest.skip("this BLAS does not take a number of threads")
        yield


def test_one_inside_and_two_afterwards(two_threads):
    with one_thread():
        assert blas_threads() == {1}
        with one_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_the_last_one_out_restores(two_threads):
    """Two threads inside at once, out in the order in which they came: BLAS has one pool for both."""
    first_is_out, second_is_in = threading.Event(), threading.Event()
    seen = []

    def second():
        with one_thread():
            second_is_in.set()
            assert first_is_out.wait(10)
            seen.append(blas_threads())

    thread = threading.Thread(target=second)
    with one_thread():
        thread.start()
        assert second_is_in.wait(10)
    first_is_out.set()
    thread.join(10)
    assert seen == [{1}]
    assert blas_threads() == {2}


def test_an_error_restores(two_threads):
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert blas_threads() == {2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [1, 3])
def test_results_in_order_and_few_waiting(count):
    started = []

    def work(task):
        started.append(task)
        return task * task

    found = []
    for task, result in in_order(work, list(range(20)), num_threads=count):
        found.append((task, result))
        assert len(started) <= len(found) + count + 1
    assert found == [(task, task * task) for task in range(20)]


def test_no_threads_at_all():
    with pytest.raises(ValueError, match="num_threads=0"):
        list(in_order(len, [[]], num_threads=0))
