"""Where the images of a download lie: one base, an archive that is fetched whole first, or a place for each prefix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data.sources.archive import SUFFIXES, open_archive, unpacked
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.data.sources.rooted import RootedSource
from multimodal_gemma.errors import InputError


def base(uri: str) -> str:
    """Return the location of images, ending with "/" unless it is an archive: a place that names are appended to."""
    return uri if not uri or uri.endswith("/") or uri.lower().endswith(SUFFIXES) else f"{uri}/"


def place(source: Source | None, key: str, names: list[str], scratch: Path, data: DataConfig) -> Source | None:
    """Return where images are read by name; an archive is fetched whole first."""
    if source is None:
        if names:
            raise InputError(
                f"download: {key} is empty, but {len(names):,} images are named, first {names[0]}. Give their location."
            )
        return None
    if not names or not source.uri.lower().endswith(SUFFIXES):
        return source
    path = scratch / "images.archive"
    if not path.is_file() and not unpacked(path).is_file():  # which an interrupted attempt may have fetched
        try:
            source.fetch(None, path, data.max_file_bytes)
        except Unavailable as error:
            raise InputError(f"download: {source.uri} cannot be had ({error}). Check {key}.") from None
        if key == "data.images":
            compare(path, data.images_sha256, source.uri, "data.images_sha256")
    try:
        archive = open_archive(path, source)
    except InputError:
        path.unlink(missing_ok=True)  # the next attempt fetches it again
        raise
    if not any(archive.exists(name) for name in names):
        raise InputError(
            f"download: {source.uri} holds none of the {len(names):,} images that are named, first {names[0]}. "
            f"Check {key}."
        )
    return archive


def compare(path: Path, wanted: str, uri: str, key: str) -> None:
    """Check a fetched file's sha256 where one is configured."""
    if wanted and (found := files.sha256_file(path)) != wanted.lower():
        path.unlink()
        raise InputError(f"download: {uri} has sha256 {found}, not the one that {key} demands. Check which is right.")


def place_by_prefix(
    places: Mapping[str, Source], roots: Mapping[str, str], names: list[str], scratch: Path, data: DataConfig
) -> Source | None:
    """Return where the dataset's images are read by name.

    Args:
        places: source by configuration key; "data.images" takes the names that no prefix fits.
        roots: configuration key by prefix; empty if there is only data.images.
        names: every image that is wanted.
        scratch: folder for archives.
        data: limits, and the share of images that may be missing.

    Raises:
        InputError: an archive cannot be had, or too many names have no place.
    """
    plain = places.get("data.images")
    if not roots:
        return place(plain, "data.images", names, scratch, data)
    others = [name for name in names if not name.startswith(tuple(roots))]
    if plain is None and others and len(others) / len(names) > data.max_missing_fraction:
        raise InputError(
            f"download: no prefix of data.image_roots fits {len(others):,} of {len(names):,} image names, first "
            f"{others[0]}. Add its place as PREFIX=LOCATION."
        )
    found: dict[str, Source] = {}
    for number, (prefix, key) in enumerate(roots.items()):
        folder = scratch / f"root-{number}"
        folder.mkdir(exist_ok=True)
        own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        source = place(places[key], key, own, folder, data)
        assert source is not None
        found[prefix] = source
    if plain is not None:
        source = place(plain, "data.images", others, scratch, data)
        assert source is not None
        found[""] = source
    return RootedSource(found)
