"""Files that are either whole or absent.

A process can be killed between any two instructions. Whatever is written here goes to a temporary name beside its
destination, is flushed to the disk and renamed, so that a reader never meets half a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import BYTES, Progress

_LARGE = 64 << 20  # bytes from which reading a file is worth a progress line
_CHUNK = 1 << 20  # bytes read at a time when hashing
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # may be half of a pair


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the sentence for a place that cannot be written."""
    if error.errno == errno.ENOSPC:
        return InputError(f"{path}: the disk is full. Free some space and run again; what is finished is kept.")
    reason = error.strerror or str(error)
    return InputError(f"{path}: cannot be written ({reason}). Choose a folder that you may write to.")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file that a user may have given.

    Args:
        path: the file.
        what: how to call it in an error, e.g. "conversations".

    Raises:
        InputError: the file is absent, no UTF-8, no whole JSON document, or holds what is no text or number.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8-sig"), f"{what}: {path}")
    except FileNotFoundError:
        raise InputError(f"{what}: {path} does not exist. Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{what}: {path} is a folder, not a JSON file. Name the file in it.") from None
    except PermissionError:
        raise InputError(f"{what}: {path} may not be read. Check its permissions.") from None
    except UnicodeDecodeError:
        raise InputError(f"{what}: {path} is no UTF-8 text. Give a JSON file.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{what}: {path} is no whole JSON document (line {error.lineno}, column {error.colno}: {error.msg}). "
            "It may be truncated: fetch it again."
        ) from None


def _parsed(text: str, called: str) -> Any:
    """Return what JSON says; JSONDecodeError where it is none."""
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError:
        raise
    except UnicodeEncodeError:
        raise InputError(f"{called} holds half of a character (a lone surrogate), which is no text.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{called} is nested too deeply, or has a number of thousands of digits.") from None
    return value


def read_jsonl(path: Path, what: str) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        InputError: the file is absent or a line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at U+0085 and U+2028, too
    except FileNotFoundError:
        raise InputError(f"{what}: {path} does not exist. Check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"{what}: {path} is no UTF-8 text. Give one JSON object a line.") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parsed(line, f"{what}: line {number} of {path}")
        except json.JSONDecodeError as error:
            raise InputError(f"{what}: line {number} of {path} is no JSON object ({error.msg}).") from None
        if not isinstance(row, dict):
            raise InputError(f"{what}: line {number} of {path} is no JSON object.")
        rows.append(row)
    return rows


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    for piece in pieces(path, "hash"):
        digest.update(piece)
    return digest.hexdigest()


def pieces(path: Path, what: str) -> Iterator[bytes]:
    """Yield the bytes of a file piece by piece, with a progress line where there are many.

    Args:
        path: the file.
        what: what is done with them, e.g. "hash".
    """
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(path.open("rb"))
        total = os.fstat(stream.fileno()).st_size
        progress = stack.enter_context(Progress(what, total, BYTES, name=path.name)) if total >= _LARGE else None
        while piece := stream.read(_CHUNK):
            yield piece
            if progress is not None:
                progress.advance(len(piece))


def sha256_bytes(content: bytes) -> str:
    """Return the hexadecimal sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_files(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the hexadecimal sha256 of files in their order, several at a time: hashing leaves Python to itself."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(sha256_file, paths)


def code_digest(parts: Iterable[str]) -> str:
    """Return the sha256 over the package's files under `parts`, by name and content.

    Args:
        parts: files and folders relative to the package.
    """
    package = Path(__file__).parent
    paths = sorted(path for part in parts for path in [package / part, *(package / part).rglob("*")] if path.is_file())
    return digest_of(
        [[path.relative_to(package).as_posix(), sha256_file(path)] for path in paths if "__pycache__" not in path.parts]
    )


def digest_of(value: Any) -> str:
    """Return the hexadecimal sha256 of a JSON-serialisable value in canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
