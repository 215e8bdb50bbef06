"""Files of this machine: `file:///folder`, and the packaged sample: `sample://`, `sample://vision`, `sample://language`."""

from __future__ import annotations

import abc
import functools
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import multimodal_gemma
from multimodal_gemma import files, logs
from multimodal_gemma.config.schema import SampleConfig
from multimodal_gemma.data.sources.base import Source, Unavailable, check_size, copy, place, safe_name
from multimodal_gemma.errors import InputError

_BEGINNING = 1 << 16  # bytes in which the first conversation names its turns
_CONVERSATIONS = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz")
_TURNS = (b'"conversations"', b'"messages"', b'"texts"')
_BASES = ("vision", "language")
_DRAWING = threading.Lock()  # threads that ask at once must not draw twice
_LINKED = (".safetensors",)  # large, and rewritten whole rather than edited in place


class LocalSource(Source):
    """Files of this machine.

    Args:
        root: an existing folder or file.
        uri: the location as configured.
        record: what `describe` returns instead of this machine's path.

    Raises:
        InputError: `root` does not exist.
    """

    def __init__(self, root: Path, uri: str, record: dict[str, str] | None = None) -> None:
        super().__init__(uri)
        if not root.exists():
            raise InputError(f"download: {root} does not exist. Check the path in {uri}.")
        self.root = root
        self._record = record or {"scheme": "file"}

    @classmethod
    def from_uri(cls, uri: str) -> LocalSource:
        """Return the source of a `file:///absolute/path` URI."""
        split = urlsplit(uri)
        path = Path(unquote(uri.removeprefix("file://").removeprefix("localhost")))
        if split.netloc not in ("", "localhost") or not path.is_absolute():
            raise InputError(f"download: {uri} is no path of this machine. Write file:///absolute/path.")
        return cls(path, uri)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one file, see `Source.read`."""
        try:
            with self._path(name).open("rb") as stream:
                content = stream.read(max_bytes + 1)
        except OSError as error:
            raise Unavailable(_reason(error)) from None
        if len(content) > max_bytes:
            raise Unavailable(f"larger than {max_bytes:,} bytes")
        return content

    def fetch(self, name: str | None, destination: Path, max_bytes: int | None = None) -> None:
        """Copy one file, or link it if it holds weights; None is the file itself, or the one JSON file of a folder."""
        path = self._one_file() if name is None else self._path(name)
        try:
            path.open("rb").close()
            size = path.stat().st_size
        except OSError as error:
            raise Unavailable(_reason(error)) from None
        check_size(size, max_bytes)
        (place if path.suffix in _LINKED else copy)(path, destination)

    def exists(self, name: str) -> bool:
        """Return whether the folder holds that file."""
        return self._path(name).is_file()

    def names(self) -> list[str]:
        """Return every file below the folder."""
        if not self.root.is_dir():
            raise InputError(f"download: {self.root} is a file; a folder is needed there.")
        try:
            return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        except OSError as error:
            raise InputError(f"download: {self.root} cannot be listed ({error.strerror}: {error.filename}).") from None

    def fingerprint(self, *names: str) -> str:
        """Return a digest of names, sizes and modification times."""
        if not self.root.is_dir():
            return files.digest_of(_stamp(self.root))
        there = [(name, self.root / name) for name in (names or self.names())]
        return files.digest_of([[name, *_stamp(path)] for name, path in there if path.is_file()])

    def stamp(self, name: str) -> str:
        """Return size and time of change of one file, "" if it is not there."""
        try:
            size, changed = _stamp(self._path(name))
        except (OSError, Unavailable):
            return ""
        return f"{size}-{changed}"

    def describe(self) -> dict[str, str]:
        """Return the scheme; a path says nothing on another machine."""
        return dict(self._record)

    def _path(self, name: str) -> Path:
        return self.root / safe_name(name)

    def _one_file(self) -> Path:
        if self.root.is_file():
            return self.root
        there = sorted(path for path in self.root.iterdir() if path.name.endswith(_CONVERSATIONS) and path.is_file())
        found = [path for path in there if _mentions_conversations(path)] if len(there) > 1 else there
        if len(found) == 1:
            return found[0]
        if not there:
            raise InputError(f"download: {self.root} holds no JSON file. Name the file of conversations.")
        listed = ", ".join(path.name for path in there[:10]) + (", …" if len(there) > 10 else "")
        raise InputError(
            f"download: {self.root} holds {len(there)} JSON files ({listed}), {len(found)} of them with conversations. "
            "Name the one that is meant."
        )


class FolderSource(Source):
    """A place whose files lie in a folder of this machine once they are asked for."""

    @property
    @abc.abstractmethod
    def folder(self) -> LocalSource:
        """The folder; made or fetched at the first call."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one file, see `Source.read`."""
        return self.folder.read(name, max_bytes)

    def fetch(self, name: str | None, destination: Path, max_bytes: int | None = None) -> None:
        """Copy or link one file, see `Source.fetch`."""
        self.folder.fetch(name, destination, max_bytes)

    def exists(self, name: str) -> bool:
        """Return whether the folder holds that file."""
        return self.folder.exists(name)

    def names(self) -> list[str]:
        """Return every file below the folder."""
        return self.folder.names()


def open_sample(uri: str, sample: SampleConfig, part: str) -> Source:
    """Return the source behind a `sample://` location.

    Args:
        uri: `sample://` for generated scenes, `sample://vision` or `sample://language` for a packaged base model.
        sample: how many scenes, and their seed.
        part: which folder of the generated sample, "" for its root.

    Raises:
        InputError: there is no such sample, or the packaged bases are absent.
    """
    name = uri.removeprefix("sample://")
    if not name:
        return SampleSource(uri, sample, part)
    if name not in _BASES:
        raise InputError(f"download: {uri} does not exist. There are sample://, sample://vision and sample://language.")
    from multimodal_gemma.sample import bases_folder

    return LocalSource(bases_folder() / name, uri, {"uri": uri})


class SampleSource(FolderSource):
    """Scenes that are drawn when the first file is asked for, equal for equal settings.

    Args:
        uri: the location as configured.
        sample: how many scenes, and their seed.
        part: folder of the sample that names are relative to.
    """

    def __init__(self, uri: str, sample: SampleConfig, part: str) -> None:
        super().__init__(uri)
        self._arguments = (sample.train_scenes, sample.held_out_scenes, sample.seed)
        self._part = part

    @functools.cached_property
    def folder(self) -> LocalSource:
        """The folder that the scenes are drawn into."""
        with _DRAWING:
            root = Path(_drawn(*self._arguments).name)
        return LocalSource(root / self._part, self.uri)

    def fingerprint(self, *names: str) -> str:
        """Return a digest of the settings and of the version of this package, which draws the scenes."""
        return files.digest_of([*self._arguments, multimodal_gemma.__version__])

    def describe(self) -> dict[str, str]:
        """Return the settings that the scenes are drawn by."""
        train, held_out, seed = self._arguments
        return {"uri": self.uri, "train_scenes": str(train), "held_out_scenes": str(held_out), "seed": str(seed)}


@functools.lru_cache(maxsize=1)
def _drawn(train_scenes: int, held_out_scenes: int, seed: int) -> tempfile.TemporaryDirectory[str]:
    """Draw the sample once for all sources of this process; the folder goes when the process ends."""
    from multimodal_gemma.sample.layout import write_sample

    folder = tempfile.TemporaryDirectory(prefix="mmgemma-sample-")
    logs.get("download").info(f"draws {train_scenes + held_out_scenes:,} sample scenes, seed {seed}")
    write_sample(Path(folder.name), train_scenes=train_scenes, held_out_scenes=held_out_scenes, seed=seed)
    return folder


def _mentions_conversations(path: Path) -> bool:
    """Return whether a JSON file begins as a list of conversations does; a folder may hold other JSON beside it."""
    try:
        with path.open("rb") as stream:
            start = stream.read(_BEGINNING)
            return path.suffix == ".gz" or any(word in start for word in _TURNS)
    except OSError:
        return False


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    return (error.strerror or type(error).__name__).lower()
