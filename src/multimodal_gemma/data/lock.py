"""What the sources of a run hold, in a file: `mmgemma preflight --lock FILE` writes it, `--locked FILE` binds to it.

For people the file has what each place states: a hub's commit and licence, sizes, ETags, sha256. What is compared is
each source's fingerprint. It travels to every task in `data.locked`, and whoever asks a source compares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.data.sources.base import Unavailable
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.data.downloads import Download

SCHEMA_VERSION = 1
_SHORT = 16  # hexadecimal digits of a digest: all of a run's sources have to fit into its parameters
_AGAIN = "mmgemma preflight --lock FILE"


def write(path: Path, downloads: Iterable[Download]) -> list[str]:
    """Ask every source what it holds, and write it down.

    Args:
        path: the lock file; it appears whole or not at all.
        downloads: everything that a run fetches.

    Returns:
        A line for each source.

    Raises:
        InputError: a source cannot be asked, or the file cannot be written.
    """
    held: dict[str, dict[str, Any]] = {}
    for download in downloads:
        for key, (uri, fingerprint) in download.asked().items():
            source = download.sources[key]
            told = source.describe()
            told.pop("uri", None)
            try:
                stated = source.facts()
            except Unavailable:  # a base that names are appended to
                stated = {}
            held[key] = {"uri": uri, "fingerprint": fingerprint, **told, "files": stated}
    try:
        files.write_json(path, {"schema": SCHEMA_VERSION, "sources": held})
    except OSError as error:
        raise files.unwritable(path, error) from error
    return [f"{key}: {one['uri']} {one.get('commit', one['fingerprint'][:_SHORT])}" for key, one in held.items()]


def overrides(path: Path) -> list[str]:
    """Return the overrides that bind a run to a lock file.

    Raises:
        InputError: it is absent, or no such file.
    """
    value: Any = files.read_json(path, "lock") if path.is_file() else None
    try:
        assert value["schema"] == SCHEMA_VERSION
        entries = [_entry(key, one["uri"], one["fingerprint"]) for key, one in value["sources"].items()]
    except (AssertionError, AttributeError, KeyError, TypeError):
        raise InputError(f"lock: {path} is no lock file. Write one with {_AGAIN}.") from None
    return [f"data.locked=[{','.join(entries)}]"]


def require(locked: Sequence[str], asked: Mapping[str, tuple[str, str]]) -> None:
    """Refuse sources that are not what was locked.

    Args:
        locked: data.locked; empty: nothing is locked.
        asked: location and fingerprint of each source by its configuration key.

    Raises:
        InputError: one is not in the lock, or has changed.
    """
    held = dict(entry.partition("-")[::2] for entry in locked)
    for key, (uri, fingerprint) in asked.items() if locked else ():
        name, _, identity = _entry(key, uri, fingerprint).partition("-")
        if name not in held:
            raise InputError(f"lock: {uri} ({key}) is not in the lock file. Write it again with {_AGAIN}.")
        if held[name] != identity:
            raise InputError(
                f"lock: {uri} ({key}) has changed since it was locked. Restore it, name the locked revision, or accept "
                f"what it holds now with {_AGAIN}."
            )


def _entry(key: str, uri: str, fingerprint: str) -> str:
    return f"k{files.digest_of([key, uri])[:_SHORT]}-{str(fingerprint)[:_SHORT]}"  # begins as no number does
