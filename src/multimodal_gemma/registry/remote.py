"""A model folder that lies in an object store or on a hub, fetched whole, checked, and kept in the cache.

Only configuration, tokenizer and safetensors are taken: other formats run code when they are read. A store that holds
an export has its SHA256SUMS too, and every file is compared with it.
"""

from __future__ import annotations

import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import DataConfig
    from multimodal_gemma.data.sources import Source

_TAKEN = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.spm", "merges.txt", "vocab.txt")
_SUMS = "SHA256SUMS"
_SMALL = 1_000_000  # bytes of a list of checksums


def fetch(location: str, data: DataConfig, cache: Path) -> Path:
    """Return a local copy of a model folder.

    Args:
        location: `s3://BUCKET/PREFIX` or `hf://ORG/NAME@REVISION`, of a model folder or of an export.
        data: what may be asked; names the largest file.
        cache: copies are kept here, by what the place says it holds.

    Raises:
        InputError: no model lies there, a file cannot be had, or one differs from its checksum.
    """
    from multimodal_gemma.data import sources

    source = sources.open(location, data)
    try:
        destination = cache / files.digest_of([location, source.fingerprint()])
        if (destination / "config.json").is_file():
            return destination
        there = source.names()
        inside = next((part for part in ("", "model/") if f"{part}config.json" in there), None)
        if inside is None:
            raise InputError(f"model: {location} holds no config.json, so no model lies there. Check the place.")
        wanted = [name for name in there if name.startswith(inside) and _taken(name.removeprefix(inside))]
        sums = _sums(source, there)
        if lacking := sorted(name for name in sums if _taken(name.removeprefix(inside)) and name not in there):
            raise InputError(f"model: {location} lacks {lacking[0]}, which its {_SUMS} names. Publish the model again.")
        _copy(source, wanted, inside, sums, destination, data.max_file_bytes)
    except sources.Unavailable as error:
        raise InputError(f"model: {location} cannot be had ({error}). Check the place and run again.") from None
    return destination


def _taken(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in _TAKEN)


def _sums(source: Source, there: list[str]) -> dict[str, str]:
    """Return the sha256 of each file as the place states it; empty if it states none."""
    if _SUMS not in there:
        return {}
    lines = source.read(_SUMS, _SMALL).decode("utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _copy(
    source: Source, wanted: list[str], inside: str, sums: dict[str, str], destination: Path, max_bytes: int
) -> None:
    """Fetch beside the destination, check, and only then give the folder its name."""
    logs.get("registry").info("fetching %s files of %s into %s", len(wanted), source.uri, destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=destination.parent))
    except OSError as error:
        raise files.unwritable(destination.parent, error) from error
    try:
        for name in wanted:
            path = scratch / name.removeprefix(inside)
            source.fetch(name, path, max_bytes)
            if name in sums and files.sha256_file(path) != sums[name]:
                raise InputError(
                    f"model: {name} of {source.uri} differs from its sha256 in {_SUMS}. Publish the model again."
                )
        if not destination.exists():
            scratch.replace(destination)
    except OSError as error:
        raise files.unwritable(destination, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
