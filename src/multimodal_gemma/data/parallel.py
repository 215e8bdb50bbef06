"""A map over worker processes that keeps the order and a bounded number of items in flight.

Memory stays flat however many items there are, and what comes out does not depend on how many workers made it.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from multimodal_gemma.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 2  # chunks in flight a worker: one at work, one waiting


_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container (cgroup v2): microseconds of work and of time, or "max"


def available_cores() -> int:
    """Return how many cores this process may use; a container's share is often smaller than its machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    work, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return cores if work == "max" else max(min(cores, round(int(work) / int(period))), 1)


def ordered_map(function: Callable[[list[T]], list[R]], items: Iterable[T], *, workers: int, chunk: int) -> Iterator[R]:
    """Yield what `function` makes of the items, in their order.

    Args:
        function: from a list of items to the list of their results; picklable where `workers` > 1.
        items: read no further than the work in flight needs.
        workers: processes; 1 works in this one.
        chunk: items a call.

    Raises:
        InputError: a worker died, which is what happens when memory runs out.
    """
    source = iter(items)
    chunks = iter(lambda: list(itertools.islice(source, chunk)), [])
    if workers == 1:
        for piece in chunks:
            yield from function(piece)
        return
    # Fresh processes: a fork would copy the locks of whatever threads the caller's libraries have started.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    waiting: collections.deque[Future[list[R]]] = collections.deque()
    try:
        for piece in chunks:
            waiting.append(pool.submit(function, piece))
            if len(waiting) >= _AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            f"preprocess: one of {workers} worker processes died, most likely for memory. "
            f"Give fewer with data.workers={max(workers // 2, 1)}. "
            "(A script that starts workers must keep its own work below `if __name__ == '__main__':`.)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
