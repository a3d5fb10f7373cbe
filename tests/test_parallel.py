"""Work side by side: order, errors, an early end, and torch's threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from dawn.rendering.parallel import MAX_WORKERS, count_workers, map_in_order


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dawn-draw")]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_come_in_order(workers: int) -> None:
    def late(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(map_in_order(late, range(20), workers)) == [item * item for item in range(20)]
    assert list(map_in_order(late, [], workers)) == [] and not names()


def test_they_work_side_by_side_and_not_far_ahead() -> None:
    together, begun = threading.Barrier(3), []

    def meet(item: int) -> int:
        begun.append(item)
        together.wait(60)
        return item

    results = map_in_order(meet, range(30), 3)
    assert begun == [] and not names(), "nothing before it is asked for"
    assert next(results) == 0 and set(begun) >= {0, 1, 2} and max(begun) <= 3
    together.abort()
    results.close()
    assert not names()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_when_its_turn_comes(workers: int) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    results = map_in_order(work, range(50), workers)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert len(begun) <= 3 + workers and not names() and list(results) == []


def test_one_worker_is_the_caller() -> None:
    assert set(map_in_order(lambda _: threading.current_thread(), range(3), 1)) == {threading.current_thread()}


def test_workers_share_the_threads_of_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert count_workers() == 4
        product = torch.ones(64, 64)

        def threads(_: int) -> int:
            (product @ product).sum()  # torch asks for the process's number when it first works in a thread
            return torch.get_num_threads()

        assert set(map_in_order(threads, range(8), 2)) == {2} and set(map_in_order(threads, range(8), 4)) == {1}
        fresh: list[int] = []
        later = threading.Thread(target=lambda: fresh.append(threads(0)))
        later.start()
        later.join()
        assert torch.get_num_threads() == 4 and fresh == [4]
        torch.set_num_threads(3 * MAX_WORKERS)
        assert count_workers() == MAX_WORKERS
    finally:
        torch.set_num_threads(before)
