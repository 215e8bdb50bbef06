"""Many small files at once, in order.

A photograph takes milliseconds to transfer and much longer to be asked for. Sixteen requests under way hide the
waiting, and a bounded window keeps memory flat however many files there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from multimodal_gemma.data.sources.base import Source, Unavailable, Unreachable
from multimodal_gemma.errors import InputError

WORKERS = 16
_WINDOW = 4 * WORKERS  # files fetched ahead of the one that is being used
_GIVE_UP = 20  # files in a row that the place did not answer for: it is down, and 80,000 more would fail one by one


def fetch_all(
    source: Source, names: Sequence[str], max_bytes: int, fault: Callable[[bytes], str] | None = None
) -> Iterator[tuple[str, bytes | Unavailable]]:
    """Read files of a source concurrently and yield them in the order of their names.

    Args:
        source: where they lie.
        names: what to read.
        max_bytes: a larger file counts as unavailable.
        fault: says of the bytes why they are of no use, "" if they are.

    Yields:
        (name, bytes), or (name, why it cannot be had).

    Raises:
        InputError: the source does not answer for many files in a row.
    """

    def read(name: str) -> bytes | Unavailable:
        try:
            content = source.read(name, max_bytes)
        except Unavailable as reason:
            return reason
        found = fault(content) if fault else ""
        return Unavailable(found) if found else content

    silent = 0
    waiting: deque[tuple[str, Future[bytes | Unavailable]]] = deque()
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="fetch")
    try:
        following = iter(names)
        while True:
            while len(waiting) < _WINDOW and (name := next(following, None)) is not None:
                waiting.append((name, pool.submit(read, name)))
            if not waiting:
                return
            name, future = waiting.popleft()
            result = future.result()
            silent = silent + 1 if isinstance(result, Unreachable) else 0
            if isinstance(result, Unreachable) and silent >= _GIVE_UP:
                raise InputError(
                    f"download: {source.uri} did not answer for {silent} files in a row, last for {name} ({result}). "
                    "Check the connection and run again."
                )
            yield name, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
