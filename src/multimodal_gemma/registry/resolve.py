"""From what a user calls a model to a folder that stock transformers loads.

A folder is itself, an export its `model/`, a run what it exported. `models:/NAME@champion` and `models:/NAME/3` are
fetched from the registry once, `s3://` prefixes and repositories of a hub from there; all are checked and kept in a
cache.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import remote, server, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from multimodal_gemma.config.schema import Config

_GIVE = "Give a model folder, models:/NAME@ALIAS, s3://BUCKET/PREFIX or ORG/NAME of a hub."
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model as the registry names it: by alias, or by version."""

    name: str
    alias: str = ""
    version: str = ""


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
        return remote.fetch(location, config.data, cache_folder() / "models")
    if "://" in location and not location.startswith("file://"):
        raise InputError(f"model: {location} cannot be loaded from here. {_GIVE}")
    path = Path(unquote(urlsplit(location).path)) if location.startswith("file://") else Path(location).expanduser()
    if not location or not path.is_dir():
        if _HUB_NAME.fullmatch(location) and not path.parent.is_dir():
            return remote.fetch(f"hf://{location}", config.data, cache_folder() / "models")
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
    alias, version = match["alias"] or "", match["version"] or ""
    if version and not version.isdigit() and version != "latest":
        raise InputError(
            f"model: {location} asks for version {version!r}, which is no number. Write models:/NAME@ALIAS for an "
            "alias."
        )
    if alias:
        versions.check_alias(alias)
    return Reference(match["name"], alias, version)


def cache_folder() -> Path:
    """Return where fetched models are kept: MMGEMMA_CACHE, else multimodal-gemma in the user's cache folder."""
    own = os.environ.get("MMGEMMA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multimodal-gemma"


def _registered(reference: Reference, config: Config) -> Path:
    with server.connected(config.registry) as client:
        number = _number(client, reference)
        tags = _tags(client, reference.name, number)
        digest = tags.get(versions.MODEL_DIGEST, "")
        if not digest:
            raise InputError(
                f"model: version {number} of {reference.name} was not registered by this project: it states no model "
                "digest. "
                "Download it with MLflow and give its folder."
            )
        destination = cache_folder() / "models" / digest
        if not (destination / manifest.NAME).is_file():
            logs.get("registry").info("fetching version %s of %s into %s", number, reference.name, destination)
            _fetch(f"models:/{reference.name}/{number}", destination, digest)
    return destination


def _number(client: MlflowClient, reference: Reference) -> str:
    held = versions.aliases(client, reference.name)
    if reference.alias:
        if reference.alias not in held:
            known = f"It has {', '.join(sorted(held))}" if held else "It has none, or there is no such model"
            raise InputError(f"model: {reference.name} has no alias {reference.alias!r}. {known}.")
        return held[reference.alias]
    if reference.version != "latest":
        return reference.version
    found = client.search_model_versions(f"name = {server.quoted(reference.name)}")
    if not found:
        raise InputError(f"model: {reference.name} has no versions in MLflow. Register one first.")
    return str(max(int(version.version) for version in found))


def _tags(client: MlflowClient, name: str, number: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_model_version(name, number).tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"model: {name} has no version {number}. Look at its versions in MLflow.") from None


def _fetch(uri: str, destination: Path, digest: str) -> None:
    """Download beside the destination, check, and only then give it its name."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=destination.parent))
    except OSError as error:
        raise files.unwritable(destination.parent, error) from error
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
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
