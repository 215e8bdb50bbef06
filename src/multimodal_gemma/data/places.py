"""Where the images of a download lie, told apart by the names that conversations give.

That is under a base, in an archive, in the shards of another artifact, or each at an address of its own. Mixed
datasets name images of COCO, GQA and Visual Genome side by side (`coco/train2017/….jpg`, `gqa/images/….jpg`):
each prefix has its own location, and what follows the prefix is the name there.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from multimodal_gemma import files
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import shards
from multimodal_gemma.data.collect import Place
from multimodal_gemma.data.sources.archive import COMPRESSED, SUFFIXES, Archive, unpack
from multimodal_gemma.data.sources.base import Reader, Source, Unavailable, Unreachable
from multimodal_gemma.data.sources.local import LocalSource
from multimodal_gemma.data.sources.web import WebSource
from multimodal_gemma.errors import InputError

_HTTPS = "https://"


def base(uri: str) -> str:
    """Return the location of images, ending with "/" unless it is an archive: a place that names are appended to."""
    return uri if not uri or uri.endswith("/") or uri.lower().endswith(SUFFIXES) else f"{uri}/"


def parse_root(text: str) -> tuple[str, str]:
    """Return prefix and location of an entry of data.image_roots.

    Raises:
        InputError: it is not PREFIX=LOCATION.
    """
    prefix, _, location = text.partition("=")
    if not prefix or not location or "://" in prefix:
        raise InputError(
            f"config: data.image_roots holds {text!r}. Write PREFIX=LOCATION, e.g. 'gqa/images/=s3://bucket/gqa/'."
        )
    return prefix, location if "://" in location else Path(location).expanduser().resolve().as_uri()


def sort_out(
    names: Iterable[str], plain: Source | None, roots: Mapping[str, Source], key: str, allowed: float
) -> dict[str, dict[str, str]]:
    """Return the name there by name, for each place: a prefix of `roots`, "" for `plain`, or an address's beginning.

    Args:
        names: as conversations give them.
        plain: takes the names that no prefix fits; None if there is no such place.
        roots: source by prefix; the longest that fits decides.
        key: configuration key of `plain`.
        allowed: share of the names that may have no place.

    Raises:
        InputError: more names than allowed have no place.
    """
    found: dict[str, dict[str, str]] = {prefix: {} for prefix in (*roots, "", _HTTPS)}
    longest = sorted(roots, key=len, reverse=True)
    count = 0
    for name in names:
        count += 1
        prefix = next((prefix for prefix in longest if name.startswith(prefix)), None)
        if prefix is not None:
            found[prefix][name] = name.removeprefix(prefix)
        elif name.startswith(_HTTPS):
            found[_HTTPS][name] = name.removeprefix(_HTTPS)
        else:
            found[""][name] = _relative(name, plain)
    lost = found[""]
    if plain is None and lost and len(lost) / count > allowed:
        first = min(lost)
        if roots:
            raise InputError(
                f"download: no prefix of data.image_roots fits {len(lost):,} of {count:,} image names, first {first}. "
                "Add its place as PREFIX=LOCATION."
            )
        raise InputError(
            f"download: {key} is empty, but {len(lost):,} images are named, first {first}. Give their location."
        )
    return {prefix: own for prefix, own in found.items() if own}


def _relative(name: str, plain: Source | None) -> str:
    """Return the name below a folder of this machine where an absolute path leads into it."""
    if not isinstance(plain, LocalSource) or not name.startswith("/"):
        return name
    path = PurePosixPath(name)
    return path.relative_to(plain.root).as_posix() if path.is_relative_to(plain.root) else name


def place_of(source: Source, key: str, own: Mapping[str, str], scratch: Path, data: DataConfig, sha256: str) -> Place:
    """Return the place of images at one location.

    Args:
        source: the location.
        key: its configuration key.
        own: the name there, by file name in the shards.
        scratch: folder for an archive.
        data: limits.
        sha256: what an archive must have; "" if nothing is demanded.
    """
    if source.uri.lower().endswith(SUFFIXES):
        whole = functools.cache(source.fingerprint)
        opened = functools.cache(lambda: _archive(source, key, own, scratch, data, sha256))
        return Place(source.uri, own, opened, lambda _: whole())
    if is_artifact(source):
        artifact = _Artifact(source, scratch / f"artifact-{files.digest_of(source.uri)[:16]}")
        return Place(source.uri, own, lambda: artifact, artifact.stamp)
    return Place(source.uri, own, lambda: source, source.stamp)


@functools.cache
def is_artifact(source: Source) -> bool:
    """Return whether a location holds a finished artifact with images, e.g. a mirror; asked once."""
    try:
        return not source.uri.startswith(("http://", _HTTPS, "sample://")) and source.exists(shards.NAMES)
    except Unavailable:
        return False


def addresses(own: Mapping[str, str], data: DataConfig) -> Place:
    """Return the place of images that are named by their https address."""
    return Place(_HTTPS, own, lambda: _Addresses(data))


def nowhere(own: Mapping[str, str]) -> Place:
    """Return the place of images that have none: each is missing."""
    return Place("", own, stream=lambda: iter(()))


class _Addresses(Reader):
    """Files anywhere on the listed hosts; one that is down is missing its own files, and no others."""

    def __init__(self, data: DataConfig) -> None:
        super().__init__(_HTTPS)
        self._data = data
        self._hosts: dict[str, WebSource] = {}
        self._lock = threading.Lock()

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return what an address gives, see `Reader.read`."""
        address = f"{_HTTPS}{name}"
        host = name.partition("/")[0]
        try:
            with self._lock:
                source = self._hosts.get(host) or WebSource(f"{_HTTPS}{host}/", self._data.allowed_hosts)
                self._hosts[host] = source
            return source.read_address(address, max_bytes)
        except InputError as refused:  # a host that is not listed
            raise Unavailable(str(refused).removeprefix("download: ")) from None
        except Unreachable as silent:
            raise Unavailable(str(silent)) from None


class _Artifact(Reader):
    """The images of a raw dataset or of benchmarks that lie finished somewhere, e.g. a mirror.

    Args:
        origin: the artifact's folder.
        folder: where the shards are fetched to, when the first image is asked for.
    """

    def __init__(self, origin: Source, folder: Path) -> None:
        super().__init__(origin.uri)
        self._origin, self._folder = origin, folder
        self._read: shards.ImageShards | None = None
        self._lock = threading.Lock()  # threads that ask at once must not fetch into one file

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        with self._lock:
            self._fetch(shards.NAMES)
        return shards.read_names(self._folder)

    @property
    def _images(self) -> shards.ImageShards:
        with self._lock:
            if self._read is None:
                for name in self._origin.names():
                    if PurePosixPath(name).match(shards.PATTERN) and "/" not in name:
                        self._fetch(name)
                self._read = shards.ImageShards(self._folder)
            return self._read

    def _fetch(self, name: str) -> None:
        if not (self._folder / name).is_file():
            try:
                self._origin.fetch(name, self._folder / name)
            except Unavailable as error:
                raise InputError(f"download: {name} of {self.uri} cannot be had ({error}). Run again.") from None

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one image, see `Reader.read`."""
        if name not in self._names:
            raise Unavailable("not in the artifact")
        return self._images.read(name)

    def stamp(self, name: str) -> str:
        """Return the image's sha256."""
        return self._names.get(name, "")


def _archive(source: Source, key: str, own: Mapping[str, str], scratch: Path, data: DataConfig, sha256: str) -> Archive:
    """Open an archive where it lies on this machine, else fetch it whole, unless an interrupted attempt has."""
    uri = source.uri
    fetched = scratch / f"archive-{files.digest_of([uri, source.fingerprint()])[:16]}"
    here = source.root if isinstance(source, LocalSource) and source.root.is_file() else None
    path, plain = here or fetched, fetched.with_suffix(".plain")
    if here:
        if not os.access(path, os.R_OK):
            raise InputError(f"download: {path} may not be read. Check its permissions.")
        _check_sha256(path, uri, sha256, key)
    elif not path.is_file() and not plain.is_file():
        fetch_pinned(source, None, path, data.max_file_bytes, sha256, key)
    try:
        packed = uri.lower().endswith(COMPRESSED)
        if packed and not plain.is_file():
            unpack(path, uri, plain, data.max_file_bytes)
            if not here:
                path.unlink()
        archive = Archive(plain if packed else path, uri)
    except InputError:
        if not here:
            path.unlink(missing_ok=True)  # the next attempt fetches it again
        raise
    if not any(archive.exists(name) for name in own.values()):
        raise InputError(
            f"download: {source.uri} holds none of the {len(own):,} images that are named, first "
            f"{min(own.values())}. Check {key}."
        )
    return archive


def fetch_pinned(source: Source, name: str | None, path: Path, most: int, sha256: str, key: str) -> None:
    """Fetch one file; with a demanded sha256 it gets its name only if it has that.

    Raises:
        InputError: it cannot be had, or has another sha256.
    """
    arriving = path.with_name(f"{path.name}.unchecked") if sha256 else path
    what = source.uri if name is None else f"{name} of {source.uri}"
    try:
        source.fetch(name, arriving, most)
    except Unavailable as error:
        raise InputError(f"download: {what} cannot be had ({error}). Check {key}.") from None
    try:
        _check_sha256(arriving, what, sha256, key)
    except InputError:
        arriving.unlink()
        raise
    if sha256:
        arriving.replace(path)


def _check_sha256(path: Path, what: str, sha256: str, key: str) -> None:
    found = files.sha256_file(path) if sha256 else ""
    if found != sha256.lower():
        raise InputError(
            f"download: {what} has sha256 {found}, not the one that {key}_sha256 demands. Check which is right."
        )
