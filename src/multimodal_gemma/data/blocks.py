"""A long sequence in blocks that stay the same when something is added to it.

Blocks of a fixed length would all shift behind the first addition. Here a block ends where the content says so: after
an item whose hash falls into one of `average` classes, so an addition changes the block that it falls into and the
ones that follow are found again (content-defined chunking, as rsync and backup programs cut files).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_SHORTEST, _LONGEST = 4, 4  # a block has at least a quarter and at most four times the average


def cut(items: Iterable[tuple[str, T]], average: int) -> Iterator[tuple[str, list[T]]]:
    """Cut a sequence into blocks.

    Args:
        items: (identity, item); equal identities stand for equal items.
        average: items a block, about.

    Yields:
        The sha256 over a block's identities, and its items.
    """
    held: list[T] = []
    digest = hashlib.sha256()
    for identity, item in items:
        own = hashlib.sha256(identity.encode()).digest()
        digest.update(own)
        held.append(item)
        ends = int.from_bytes(own[:8], "big") % average == 0 and len(held) >= average // _SHORTEST
        if ends or len(held) >= average * _LONGEST:
            yield digest.hexdigest(), held
            held, digest = [], hashlib.sha256()
    if held:
        yield digest.hexdigest(), held
