"""The same work on many things, on several cores at once, with results in order.

Networks as small as these leave a core idle while threads wait for each other at every layer: whole batches side by side, one
thread each, take 0.7 to 0.9 of the time of one batch after the other on all threads (benchmarks/drawing.py).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MAX_WORKERS = 8
"""Beyond, each gets more threads instead: what is drawn ahead takes memory."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def count_workers() -> int:
    """Count those that can work side by side with the threads that torch may use here."""
    return min(torch.get_num_threads(), MAX_WORKERS)


def map_in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Map ``work`` over items in order, ``workers`` at once and no more than as many ahead of what is taken.

    Each worker has its share of torch's threads. What ``work`` raises is raised when its turn comes; nothing is begun after
    the iterator has been closed. One worker: in the caller's thread, when asked for.
    """
    if workers < 2:
        yield from map(work, items)
        return
    pool, ahead = ThreadPoolExecutor(workers, "dawn-draw"), deque[Future[Result]]()
    try:
        _share_threads(pool, workers)
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _share_threads(pool: ThreadPoolExecutor, workers: int) -> None:
    """Give every worker its share of threads. torch keeps the number by thread; new threads inherit the last one set."""
    threads, all_here = torch.get_num_threads(), threading.Barrier(workers)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first question sets it to the process's number
        torch.set_num_threads(max(1, threads // workers))
        all_here.wait()

    for begun in [pool.submit(begin) for _ in range(workers)]:
        begun.result()
    torch.set_num_threads(threads)
