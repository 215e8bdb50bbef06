"""The folder of a run: where it lies, that only one run uses it, which is the latest, and which one goes on."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

_LOCK = ".lock"
_ASKED = "run.json"  # what was asked for: preset, overrides and the digest of the compiled pipeline
SUMMARY = "summary.json"  # of a run that has ended
_LATEST = "latest"


def choose(runs: Path, preset: str) -> Path:
    """Make a folder for a new run, named by time and preset, that no other run has.

    Raises:
        InputError: it cannot be made.
    """
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{preset}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for name in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
            with contextlib.suppress(FileExistsError):  # another run of this very second has it
                (runs / name).mkdir()
                return runs / name
    except OSError as error:
        raise files.unwritable(runs, error) from error
    raise AssertionError("numbers do not end")


def unfinished(runs: Path, asked: dict[str, Any]) -> Path | None:
    """Return the latest run that was asked for the same, if it was interrupted or killed, and is not at work."""
    for folder in newest(runs):
        if _read(folder / _ASKED) != asked:
            continue
        return folder if state(folder) == "interrupted" else None
    return None


def newest(runs: Path) -> list[Path]:
    """Return the folders of all runs, the latest first."""
    return sorted((path.parent for path in runs.glob(f"*/{_ASKED}") if not path.parent.is_symlink()), reverse=True)


def state(folder: Path) -> str:
    """Return "succeeded", "failed", "interrupted" (killed ones too) or "running"."""
    stated = _read(folder / SUMMARY)
    if stated is not None:
        return str(stated.get("status", "interrupted"))
    try:
        with (folder / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:
        pass
    return "interrupted"


def begin(folder: Path, asked: dict[str, Any]) -> None:
    """Note in a run's folder what was asked for, and that it has not ended."""
    files.write_json(folder / _ASKED, asked)
    (folder / SUMMARY).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


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
