"""One writer at a time in a folder, whatever else is started by mistake."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError

_held: set[int] = set()  # descriptors of this process's locks


@contextlib.contextmanager
def only_writer(folder: Path, stage: str) -> Iterator[None]:
    """Hold a folder for this process alone; it is created if need be.

    The lock is the kernel's, on the folder itself: nothing is left in it, and it ends with the process, however that
    ends. A file system without locks does not hinder the work; a warning says so.

    Args:
        folder: where the stage writes.
        stage: its name, for the sentence.

    Raises:
        InputError: another process holds the folder, or it cannot be written.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    _held.add(descriptor)
    try:
        _take(descriptor, folder, stage)
        try:
            yield
        finally:
            if new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # if the stage wrote nothing; by its holder alone, not by one that was refused
    finally:
        if descriptor in _held:  # not in a forked worker
            _held.remove(descriptor)
            os.close(descriptor)


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside such a block for this folder; without locks, go on at once."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def held(folder: Path) -> bool:
    """Return whether a process holds a folder by `only_writer`; False on a file system without locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _take(descriptor: int, folder: Path, stage: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{stage}: another process is writing to {folder}. Wait until it ends, or give another folder."
        ) from None
    except OSError as error:  # ENOLCK, ENOSYS, EOPNOTSUPP
        logs.get(stage).warning(
            f"{folder} is on a file system without locks ({error.strerror}): let nobody else write there"
        )


def _let_go() -> None:
    """Close a forked worker's copies: it may outlive the process that was killed, whose lock it would keep."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
