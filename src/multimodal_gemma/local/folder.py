"""The folder of a run: where it lies, that only one run uses it, and which is the latest."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

_LOCK = ".lock"
_LATEST = "latest"


def choose(runs: Path, preset: str) -> Path:
    """Return a folder for a new run, named by time and preset, that no other run has."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{preset}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(runs / name for name in names if not (runs / name).exists())


@contextlib.contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Hold a run's folder; it is created if need be, and free again when the block (or the process) ends.

    Raises:
        InputError: another run is using it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a+")
    except OSError as error:
        raise files.unwritable(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise InputError(
                f"run: {folder} is in use by another run ({owner}). Wait until it ends, or choose another --run-dir."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}\n")
        lock.flush()
        yield


def point_latest(runs: Path, folder: Path) -> None:
    """Make runs/latest point at a run."""
    temporary = runs / f".{_LATEST}.{os.getpid()}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(folder, runs))
        temporary.replace(runs / _LATEST)
    except OSError as error:
        raise files.unwritable(runs / _LATEST, error) from error
