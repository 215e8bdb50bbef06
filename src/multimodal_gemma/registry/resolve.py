"""From what a user calls a model to a folder that stock transformers loads.

A folder is itself, an export its `model/`, a run what it exported. `models:/NAME@champion` and `models:/NAME/3` are
fetched from the registry once, `s3://` prefixes and repositories of a hub from there; all are checked and kept in a
cache. Of a store only configuration, tokenizer and safetensors are taken: other formats run code when they are read.
One that holds an export has its SHA256SUMS too, and every file is compared with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.data.sources.base import Source
from multimodal_gemma.data.sources.local import FolderSource, LocalSource
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from multimodal_gemma.config.schema import Config, DataConfig

_TAKEN = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.spm", "merges.txt", "vocab.txt")
_SUMS = "SHA256SUMS"
_SMALL = 1_000_000  # bytes of a list of checksums
_GIVE = "Give a model folder, models:/NAME@ALIAS, s3://BUCKET/PREFIX or ORG/NAME of a hub."
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+|latest))")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model as the registry names it: by alias, or by version."""

    name: str
    alias: str = ""
    version: str = ""


class Registered(FolderSource):
    """A registered model as a place to start from; it is fetched when the first of its files is asked for.

    Args:
        location: as `resolve_model` takes it, of the registry.
        config: names MLflow.

    Raises:
        InputError: the location names no registered model.
    """

    def __init__(self, location: str, config: Config) -> None:
        super().__init__(location)
        self._reference, self._config = parse(location), config

    @functools.cached_property
    def folder(self) -> LocalSource:
        """The model's own folder in the cache."""
        return LocalSource(_registered(self._reference, self._config), self.uri)

    @functools.cached_property
    def _stated(self) -> tuple[str, str]:
        with server.connected(self._config.registry) as client:
            return _version(client, self._reference)

    def fingerprint(self, *names: str) -> str:
        """Return the digest that the registry states: an alias that moves on is another model."""
        return self._stated[1]

    def describe(self) -> dict[str, str]:
        """Return the location, and the version that it named."""
        return {"uri": self.uri, "version": self._stated[0]}


def resolve_model(location: str, config: Config) -> Path:
    """Return the stock model folder behind a location.

    Args:
        location: a folder (of a model, an export or a finished run), a file:// URI, `models:/NAME@ALIAS`,
            `models:/NAME/VERSION`, `models:/NAME/latest`, `s3://BUCKET/PREFIX`, or `ORG/NAME[@REVISION]` of a hub.
        config: names MLflow.

    Returns:
        A folder with config.json, weights and processor; read only if it was fetched, for others may share it.

    Raises:
        InputError: nothing lies there, the location is of no known kind, or the download differs from its manifest.
    """
    if location.startswith("models:"):
        return _registered(parse(location), config)
    if location.startswith(("s3://", "hf://")):
        return fetch_folder(location, config.data, cache_folder() / "models")
    if "://" in location and not location.startswith("file://"):
        raise InputError(f"model: {location} cannot be loaded from here. {_GIVE}")
    path = Path(unquote(urlsplit(location).path)) if location.startswith("file://") else Path(location).expanduser()
    if not location or not path.is_dir():
        if _HUB_NAME.fullmatch(location) and not path.parent.is_dir():
            return fetch_folder(f"hf://{location}", config.data, cache_folder() / "models")
        raise InputError(f"model: {location or 'no folder'} does not exist. {_GIVE}")
    for inside in (path, path / "model", _of_run(path)):
        if inside is not None and (inside / "config.json").is_file():
            return inside
    if path.is_symlink() and (earlier := _earlier(path)):
        return earlier
    raise InputError(
        f"model: {path} holds no config.json, so it is no model folder. Give the folder that train or export wrote."
    )


def _of_run(folder: Path) -> Path | None:
    """Return the model that a finished run exported, or else trained."""
    summary = folder / "summary.json"
    if not summary.is_file():
        return None
    stated = files.read_json(summary, "model")
    if not isinstance(stated, dict):
        return None
    places = [stated.get("export"), stated.get("model")]
    candidates = [Path(place) / inside for place in places if isinstance(place, str) for inside in ("model", "")]
    return next((place for place in candidates if (place / "config.json").is_file()), None)


def _earlier(latest: Path) -> Path | None:
    """Return the model of the newest run beside one that has none (yet)."""
    for folder in sorted((one for one in latest.parent.iterdir() if not one.is_symlink()), reverse=True):
        if found := _of_run(folder):
            logs.get("model").info("%s has no model (yet); taking that of %s", latest, folder.name)
            return found
    return None


def parse(location: str) -> Reference:
    """Split `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        InputError: it is neither.
    """
    match = _REGISTERED.fullmatch(location)
    if match is None:
        raise InputError(f"model: {location} names no registered model. Write models:/NAME@champion or models:/NAME/3.")
    return Reference(match["name"], match["alias"] or "", match["version"] or "")


def cache_folder() -> Path:
    """Return where fetched models are kept: MMGEMMA_CACHE, else multimodal-gemma in the user's cache folder."""
    own = os.environ.get("MMGEMMA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multimodal-gemma"


def _registered(reference: Reference, config: Config) -> Path:
    with server.connected(config.registry) as client:
        number, digest = _version(client, reference)
        destination = cache_folder() / "models" / digest
        if not (destination / manifest.NAME).is_file():
            logs.get("registry").info("fetching version %s of %s into %s", number, reference.name, destination)
            _fetch(f"models:/{reference.name}/{number}", destination, digest)
    return destination


def _version(client: MlflowClient, reference: Reference) -> tuple[str, str]:
    """Return the number of a version and the digest of its model."""
    number = _number(client, reference)
    digest = versions.require(client, reference.name, number).tags.get(versions.MODEL_DIGEST, "")
    if not digest:
        raise InputError(
            f"model: version {number} of {reference.name} was not registered by this project: it states no model "
            "digest. Download it with MLflow and give its folder."
        )
    return number, digest


def _number(client: MlflowClient, reference: Reference) -> str:
    held = versions.aliases(client, reference.name)
    if reference.alias:
        if reference.alias not in held:
            known = f"It has {', '.join(sorted(held))}" if held else "It has none, or there is no such model"
            asked = f"model: {reference.name} has no alias {reference.alias!r}"
            raise InputError(f"{asked}. {known}. Write models:/NAME/3 for a version.")
        return held[reference.alias]
    if reference.version != "latest":
        return reference.version
    found = client.search_model_versions(f"name = {server.quoted(reference.name)}")
    if not found:
        raise InputError(f"model: {reference.name} has no versions in MLflow. Register one first.")
    return str(max(int(version.version) for version in found))


@contextlib.contextmanager
def _beside(destination: Path) -> Iterator[Path]:
    """Yield a folder beside the destination to fetch into; it vanishes with the block."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=destination.parent))
    except OSError as error:
        raise files.unwritable(destination.parent, error) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch(uri: str, destination: Path, digest: str) -> None:
    """Download beside the destination, check, and only then give it its name."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    with _beside(destination) as scratch:
        try:
            package = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
            inside = Model.load(str(package)).flavors["python_function"]["artifacts"]["model"]["path"]
            if manifest.verify(package / inside, "model").digest != digest:
                raise InputError(f"model: what {uri} holds is not what its tags say was registered. Register it again.")
            if not destination.exists():
                (package / inside).replace(destination)
        except (OSError, MlflowException) as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
                raise
            raise InputError(
                f"model: the files of {uri} cannot be had ({server.first_line(error)}). Register it again."
            ) from error


def fetch_folder(location: str, data: DataConfig, cache: Path) -> Path:
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
    with _beside(destination) as scratch:
        for name in wanted:
            path = scratch / name.removeprefix(inside)
            source.fetch(name, path, max_bytes)
            if name in sums and files.sha256_file(path) != sums[name]:
                raise InputError(
                    f"model: {name} of {source.uri} differs from its sha256 in {_SUMS}. Publish the model again."
                )
        try:
            if not destination.exists():
                scratch.replace(destination)
        except OSError as error:
            raise files.unwritable(destination, error) from error
