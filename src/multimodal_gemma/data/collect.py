"""The images that conversations or benchmarks name: into shards, or into a record of those that cannot be had.

What is held is decided image by image, by its location and the stamp that the location gives it. Images are grouped by
a hash of their names: a group is fetched, finished and kept as one file, on the disk and in the store of finished
work, under the digest of its images' locations and stamps. So an interrupted download, one on an empty disk and one of
data that has changed fetch what nobody holds, and a grown dataset has the bytes of one that was fetched at once.

Nothing is ever put in the place of a missing image. It is written to `missing.jsonl` with the reason, and when more are
missing than `data.max_missing_fraction` allows, the download fails with the first of them in its sentence.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from multimodal_gemma import files, logs
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import shards
from multimodal_gemma.data.delivery import WorkStore
from multimodal_gemma.data.sources.base import Reader, Unavailable, Unreachable, place
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress

MISSING = "missing.jsonl"
HELD = "held.jsonl"  # which images a finished artifact's shards hold, and by which stamps; no part of its identity
FORMAT = 1  # raised when equal images come to give other shards
_IMAGE_BYTES = 400_000  # of a large photograph: a group of such fills a shard
_AHEAD = 256_000_000  # bytes that may wait for one slow answer
Found = tuple[str, bytes | Unavailable]  # a name, and its image or why there is none
Row = list[Any]  # of a group's record: name, stamp, sha256 and bytes of an image
_NONE = 200  # files of which a place gave none: it is the wrong one, and 80,000 more would fail one by one


def _closed() -> Reader:
    raise AssertionError("images that are only had in their order are not opened")


@dataclasses.dataclass(frozen=True)
class Place:
    """Images that lie together.

    Attributes:
        uri: where; with a stamp it tells an image from a later one of the same name.
        names: the name there, by file name in the shards.
        open: makes what reads them ready, which for an archive means to fetch it; called if an image is not held.
        stamp: the image's own stamp, by its name there.
        stream: yields (file name, bytes) where images are only had in their order; `open` is not called then.
    """

    uri: str
    names: Mapping[str, str]
    open: Callable[[], Reader] = _closed
    stamp: Callable[[str], str] = lambda _: ""
    stream: Callable[[], Iterator[tuple[str, bytes]]] | None = None

    @functools.cached_property
    def id(self) -> str:
        """A digest of the location; the location itself may be a path of this machine."""
        return files.digest_of(self.uri)[:16]


@dataclasses.dataclass(frozen=True)
class _Group:
    """Images that are finished and kept together.

    Attributes:
        place: where they lie.
        stamps: by file name, ascending.
        key: digest of all that decides the file's bytes.
    """

    place: Place
    stamps: Mapping[str, str]
    key: str


def collect(
    places: Sequence[Place],
    data: DataConfig,
    output: Path,
    scratch: Path,
    store: WorkStore | None,
    fault: Callable[[bytes], str],
) -> dict[str, int]:
    """Write the shards, `names.parquet`, `missing.jsonl` and `held.jsonl` into `output`.

    Args:
        places: where the images lie; a name belongs to one of them.
        data: what an image may cost.
        output: the artifact's folder.
        scratch: keeps finished groups until the artifact is finished.
        store: keeps them beyond this machine; None: nothing does.
        fault: says of the bytes of an image why they are of no use, "" if they are.

    Returns:
        Counts: "images" (pictures in the shards, each sha256 once), "names" that have one, "image_bytes" in all, and
        "missing": names that have none.

    Raises:
        InputError: a source does not answer, or `output` cannot be written.
    """
    held = _Held(scratch)
    groups = [[*_groups(one, data)] for one in places]
    images = [(group.place.id, *image) for group in itertools.chain(*groups) for image in group.stamps.items()]
    if known := sum(held.has(*image) for image in images):
        logs.get("download").info("%s of %s images are there already", f"{known:,}", f"{len(images):,}")
    work = _Collection(held, data, scratch, store, fault, Progress("download", len(images), "image"))
    with work.progress:
        for of_one_place in groups:
            work.finish(of_one_place)
    return _assemble([*itertools.chain(*groups)], held, work.missing, data, output)


def _groups(one: Place, data: DataConfig) -> Iterator[_Group]:
    most = max(int(data.shard_bytes) // _IMAGE_BYTES, 1)
    ranked = sorted((hashlib.sha256(name.encode()).digest(), name) for name in one.names)
    for part in [ranked] if one.stream else _cut(ranked, most, 0):
        stamps = {name: one.stamp(one.names[name]) for name in sorted(name for _, name in part)}
        shaping = [FORMAT, data.shard_bytes, data.max_image_bytes]
        if part:
            yield _Group(one, stamps, files.digest_of([shaping, one.uri, sorted(stamps.items())]))


def _cut(ranked: list[tuple[bytes, str]], most: int, bit: int) -> Iterator[list[tuple[bytes, str]]]:
    """Halve a list by the bits of its hashes until no part has more than `most`: one more name splits one part."""
    if len(ranked) <= most or bit >= 256:
        yield ranked
        return
    for side in (0, 1):
        yield from _cut([item for item in ranked if item[0][bit // 8] >> (7 - bit % 8) & 1 == side], most, bit + 1)


class _Held:
    """The images that lie in the scratch folder: groups of an earlier attempt, shards of an earlier artifact."""

    def __init__(self, scratch: Path) -> None:
        self._known: dict[tuple[str, str, str], str] = {}  # sha256 by location, name and stamp
        self._groups: dict[str, tuple[Path, list[Row]]] = {}  # by key
        self._unchecked = dict.fromkeys(sorted(scratch.glob(shards.PATTERN)), "")  # sha256 that a file must have
        entries = files.read_jsonl(scratch / HELD, "held") if (scratch / HELD).is_file() else []
        for record in sorted(scratch.glob("group-*.json")):
            entries.append({**files.read_json(record, "held"), "file": record.with_suffix(".parquet").name})
        for entry in entries:
            self._known.update({(entry["place"], name, stamp): digest for name, stamp, digest, _ in entry["rows"]})
            path = scratch / entry["file"]
            if entry["file"] and path.is_file():
                self._groups[entry["key"]] = path, entry["rows"]
                self._unchecked[path] = entry["sha256"]

    def has(self, where: str, name: str, stamp: str) -> bool:
        """Return whether an image is known by its location, name and stamp."""
        return (where, name, stamp) in self._known

    def read(self, where: str, name: str, stamp: str) -> bytes | None:
        """Return an image's bytes, None if they are not held."""
        digest = self._known[where, name, stamp]
        content = self._pictures.find(digest)
        return content if content is not None and files.sha256_bytes(content) == digest else None

    def group(self, key: str) -> tuple[Path | None, list[Row]]:
        """Return file and rows of a group that was finished before; None and no rows if it is not what it was."""
        path, rows = self._groups.get(key, (None, []))
        return (path, rows) if path is not None and self._is_sound(path) else (None, [])

    def keep(self, group: _Group, path: Path, rows: list[Row]) -> None:
        """Record a group whose file lies whole on the disk."""
        entry = {"key": group.key, "place": group.place.id, "rows": rows, "sha256": files.sha256_file(path)}
        files.write_json(path.with_suffix(".json"), entry)
        self._groups[group.key] = path, rows
        self._unchecked[path] = ""

    @functools.cached_property
    def _pictures(self) -> shards.ImageShards:
        return shards.ImageShards([path for path in [*self._unchecked] if self._is_sound(path)])

    def _is_sound(self, path: Path) -> bool:
        wanted = self._unchecked.get(path)
        if wanted and files.sha256_file(path) != wanted:
            del self._unchecked[path]
        elif wanted:
            self._unchecked[path] = ""
        return path in self._unchecked


@dataclasses.dataclass
class _Collection:
    """What is done for one place after the other, and its one line of progress; the arguments of `collect`."""

    held: _Held
    data: DataConfig
    scratch: Path
    store: WorkStore | None
    fault: Callable[[bytes], str]
    progress: Progress
    missing: list[dict[str, str]] = dataclasses.field(default_factory=list)
    start: float = dataclasses.field(default_factory=time.monotonic)
    arrived: int = 0

    def finish(self, groups: list[_Group]) -> None:
        """Make the file of each group of one place that is not there."""
        for group in groups:
            path = self.scratch / f"group-{group.key}.parquet"
            if self.held.group(group.key)[0] is None and self.store is not None and self.store.get(group.key, path):
                rows = [[name, group.stamps[name], digest, size] for name, digest, size in shards.read_rows(path)]
                self.held.keep(group, path, rows)
        todo = [group for group in groups if {row[0] for row in self.held.group(group.key)[1]} != set(group.stamps)]
        self._count(sum(len(group.stamps) for group in groups if group not in todo))
        contents = self._contents(todo) if todo else iter(())
        for group in todo:
            path, rows = self.scratch / f"group-{group.key}.parquet", []
            temporary = path.with_suffix(".new")
            shards.write_rows(temporary, self._rows(group, contents, rows))
            if rows == self.held.group(group.key)[1]:  # what was missing is missing still
                temporary.unlink()
                continue
            temporary.replace(path)
            self.held.keep(group, path, rows)
            if self.store is not None:
                self.store.put(group.key, path)

    def _rows(self, group: _Group, contents: Iterator[Found], rows: list[Row]) -> Iterator[shards.Row]:
        """Yield the rows of a group's file; add those of its record to `rows`, and what is missing to the list."""
        seen: set[str] = set()
        for name, found in itertools.islice(contents, len(group.stamps)):
            reason = str(found) if isinstance(found, Unavailable) else self._fault_of(found)
            if reason or isinstance(found, Unavailable):
                self.missing.append({"file_name": name, "reason": reason})
                self._count()
                continue
            digest = files.sha256_bytes(found)
            rows.append([name, group.stamps[name], digest, len(found)])
            self._count(size=len(found))
            yield name, digest, None if digest in seen else found
            seen.add(digest)

    def _fault_of(self, content: bytes) -> str:
        too_large = len(content) > self.data.max_image_bytes
        return f"larger than {self.data.max_image_bytes:,} bytes" if too_large else self.fault(content)

    def _contents(self, todo: list[_Group]) -> Iterator[Found]:
        """Yield the images of one group after the other; only those that are not held are fetched."""
        one, held = todo[0].place, self.held
        if one.stream is not None:
            waiting = set(todo[0].stamps)
            for name, content in one.stream():
                if name in waiting:
                    waiting.discard(name)
                    yield name, content
            yield from ((name, Unavailable("no place of images has it")) for name in sorted(waiting))
            return
        images = [image for group in todo for image in group.stamps.items()]
        lacking = [(name, one.names[name]) for name, stamp in images if not held.has(one.id, name, stamp)]
        arriving = fetch_all(one.open(), lacking, self.data) if lacking else iter(())
        for name, stamp in images:
            if not held.has(one.id, name, stamp):
                yield next(arriving)
                continue
            try:
                kept = held.read(one.id, name, stamp)
                yield name, one.open().read(one.names[name], self.data.max_image_bytes) if kept is None else kept
            except Unavailable as reason:  # its file is damaged, and it is not there any more
                yield name, reason

    def _count(self, images: int = 1, size: int = 0) -> None:
        self.arrived += size
        rate = self.arrived / 1e6 / max(time.monotonic() - self.start, 1e-9)
        figures = {"MB": f"{self.arrived / 1e6:,.0f}", "MB/s": f"{rate:,.1f}", "missing": f"{len(self.missing):,}"}
        self.progress.advance(images, **figures)


def fetch_all(
    source: Reader, names: Sequence[tuple[str, str]], data: DataConfig
) -> Iterator[tuple[str, bytes | Unavailable]]:
    """Read files of a source concurrently and yield them in the order of their names.

    Requests go on while one answer is slow, until as many bytes wait for it as memory shall hold.

    Args:
        source: where they lie.
        names: what to read: (name to yield, name there).
        data: how many at a time, and how large one may be.

    Yields:
        (name, bytes), or (name, why it cannot be had).

    Raises:
        InputError: the source does not answer any more, or has none of many files.
    """

    def read(name: str) -> bytes | Unavailable:
        try:
            return source.read(name, data.max_image_bytes)
        except Unavailable as reason:
            return reason

    failed = had = ready = 0  # `ready`: bytes that have arrived and wait
    waiting: deque[tuple[str, Future[bytes | Unavailable]]] = deque()
    running: set[Future[bytes | Unavailable]] = set()
    following = iter(names)
    pool = ThreadPoolExecutor(data.download_threads, thread_name_prefix="fetch")
    try:
        while True:
            while len(running) < 2 * data.download_threads and ready < _AHEAD and (asked := next(following, None)):
                waiting.append((asked[0], pool.submit(read, asked[1])))
                running.add(waiting[-1][1])
            if not waiting:
                return
            if waiting[0][1] in running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                ready += sum(_size(future.result()) for future in done)
                continue
            name_there, head = waiting.popleft()
            result = head.result()
            ready -= _size(result)
            failed, had = failed + isinstance(result, Unavailable), had + isinstance(result, bytes)
            if isinstance(result, Unreachable):
                raise InputError(
                    f"download: {source.uri} does not answer ({result!s}); {had:,} of {len(names):,} files had come. "
                    "Check the location and the connection, and run again; what is finished is kept."
                )
            if not had and failed >= _NONE:
                raise InputError(
                    f"download: {source.uri} gave none of {failed:,} files, last {name_there} ({result!s}). "
                    "Check the location, and run again."
                )
            yield name_there, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _size(result: bytes | Unavailable) -> int:
    return len(result) if isinstance(result, bytes) else 0


def _assemble(
    groups: list[_Group], held: _Held, missing: list[dict[str, str]], data: DataConfig, output: Path
) -> dict[str, int]:
    """Put the groups' files together: each picture once, under the first name that has it."""
    names: dict[str, str] = {}
    pictures: dict[str, int] = {}  # size by sha256
    record: list[dict[str, Any]] = []
    count = 0
    for old in output.glob(shards.PATTERN):
        old.unlink()
    for group in groups:
        path, rows = held.group(group.key)
        if path is None:
            continue
        names.update({name: digest for name, _, digest, _ in rows})
        fresh = {digest: size for *_, digest, size in rows if digest not in pictures}
        pictures |= fresh
        whole = len(fresh) == len(rows) and (sum(fresh.values()) <= data.shard_bytes or len(fresh) == 1)
        shard = f"images-{count:05d}.parquet" if whole else ""
        if whole:
            place(path, output / shard)
            count += 1
        elif fresh:
            rest = ((name, content) for name, digest, content in shards.read_shard(path) if content and digest in fresh)
            count += len(shards.write_image_shards(output, rest, data.shard_bytes, first=count))
        sha256 = files.sha256_file(path) if whole else ""
        record.append({"key": group.key, "place": group.place.id, "file": shard, "rows": rows, "sha256": sha256})
    missing.sort(key=lambda row: row["file_name"])
    shards.write_names(output, names)
    files.write_jsonl(output / MISSING, missing)
    files.write_jsonl(output / HELD, record)
    image_bytes = sum(pictures.values())
    return {"images": len(pictures), "names": len(names), "image_bytes": image_bytes, "missing": len(missing)}
