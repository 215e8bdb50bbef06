"""The last file of every artifact: what the folder holds, and what it was made from.

A manifest names each file with its sha256, the configuration that shaped it and the digests of its inputs: lineage is
a chain of digests. It is written last and atomically, so a folder with a manifest is finished and one without is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

NAME = "manifest.json"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an artifact folder states about itself.

    Attributes:
        kind: the artifact, e.g. "raw-dataset", "processed-dataset", "model".
        counts: how many of what, for people and reports, e.g. {"conversations": 72}.
        config: the part of the configuration that shaped this artifact.
        inputs: manifest digests of the artifacts that it was made from, by name.
        facts: anything else worth keeping, e.g. source URIs with their revisions.
        files: sha256 and size in bytes of every file, by path relative to the folder.
        schema_version: the version of this structure.
    """

    kind: str
    counts: dict[str, int]
    config: dict[str, Any]
    inputs: dict[str, str]
    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """The sha256 of the manifest in canonical form: the artifact's identity."""
        return files.digest_of(dataclasses.asdict(self))


def write(
    folder: Path,
    kind: str,
    *,
    config: dict[str, Any],
    inputs: dict[str, str] | None = None,
    counts: dict[str, int] | None = None,
    facts: dict[str, Any] | None = None,
    exclude: Callable[[str], bool] = lambda _: False,
) -> Manifest:
    """Hash every file of a finished folder and write its manifest, last and atomically.

    Args:
        folder: the artifact.
        kind: the artifact's kind.
        config: the part of the configuration that shaped it; JSON-serialisable.
        inputs: manifest digests of its inputs, by name.
        counts: how many of what.
        facts: anything else worth keeping; nothing that differs between equal runs (no times, no paths).
        exclude: paths, relative to the folder, that are no part of the artifact's identity.

    Returns:
        The manifest that was written.
    """
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    named = {name: path for name, path in there.items() if name != NAME and not exclude(name)}
    sums = zip(named.items(), files.sha256_files(named.values()), strict=True)
    entries = {name: {"sha256": digest, "bytes": path.stat().st_size} for (name, path), digest in sums}
    manifest = Manifest(kind, counts or {}, config, inputs or {}, facts or {}, entries)
    files.write_json(folder / NAME, dataclasses.asdict(manifest))
    return manifest


def read(folder: Path, kind: str | None = None) -> Manifest:
    """Read the manifest of an artifact folder.

    Args:
        folder: the artifact.
        kind: the kind that is needed; None takes any.

    Raises:
        InputError: no finished artifact lies there, it is of another kind, or of a newer schema.
    """
    wanted = f"a finished {kind}" if kind else "a finished artifact"
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; {wanted} is needed there. Check the path.")
    if not (folder / NAME).is_file():
        raise InputError(f"{folder} holds no {NAME}: it is not {wanted}. Run the stage that makes it to its end first.")
    value = files.read_json(folder / NAME, "manifest")
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{folder / NAME} states no schema version: it was not written by this project.")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{folder / NAME} has schema version {version}, newer than the {SCHEMA_VERSION} known here. "
            "Update multimodal-gemma, or make the artifact again."
        )
    try:
        manifest = Manifest(**value)
    except TypeError:
        raise InputError(f"{folder / NAME} lacks fields of a manifest. Make the artifact again.") from None
    if kind is not None and manifest.kind != kind:
        raise InputError(f"{folder} is a {manifest.kind}, not a {kind}. Give the folder of a {kind}.")
    return manifest


def finished(
    folder: Path, kind: str, *, config: dict[str, Any], inputs: dict[str, str] | None = None
) -> Manifest | None:
    """Return the manifest if this very artifact lies finished in `folder`, else None."""
    if not (folder / NAME).is_file():
        return None
    manifest = read(folder, kind)
    same = manifest.config == config and manifest.inputs == (inputs or {})
    return manifest if same else None


def verify(folder: Path, kind: str | None = None) -> Manifest:
    """Check size and sha256 of every file that the manifest names.

    Raises:
        InputError: a file is absent or differs; the sentence names the first one.
    """
    manifest = read(folder, kind)
    for name in manifest.files:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: {name} is missing although the manifest names it. Make the artifact again.")
    sums = files.sha256_files(folder / name for name in manifest.files)
    for (name, entry), digest in zip(manifest.files.items(), sums, strict=True):
        if digest != entry["sha256"]:
            raise InputError(f"{folder}: {name} differs from its sha256 in the manifest. Make the artifact again.")
    return manifest
