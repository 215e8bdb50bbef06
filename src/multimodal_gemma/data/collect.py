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
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from multimodal_gemma import files, logs
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import shards
from multimodal_gemma.data.sources.base import Reader, Unavailable, Unreachable, place
from multimodal_gemma.data.work import WorkStore
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress

MISSING = "missing.jsonl"
HELD = "held.jsonl"  # which images a finished artifact's shards hold, and by which stamps; no part of its identity
FORMAT = 1  # raised when equal images come to give other shards
_IMAGE_BYTES = 400_000  # of a large photograph: a group of such fills a shard
_AHEAD = 256_000_000  # bytes that may wait for one slow answer
_NONE = 200  # files of which a place gave none: it is the wrong one, and 80,000 more would fail one by one


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
    open: Callable[[], Reader]
    stamp: Callable[[str], str]
    stream: Callable[[], Iterator[tuple[str, bytes]]] | None = None

    @functools.cached_property
    def id(self) -> str:
        """A digest of the location; the location itself may be a path of this machine."""
        return files.digest_of(self.uri)[:16]


@dataclasses.dataclass
class Collected:
    """What came of the images that were asked for.

    Attributes:
        images: pictures in the shards, each sha256 counted once.
        names: names that have a picture.
        bytes: size of the pictures.
        missing: {"file_name", "reason"} of each name that has none.
    """

    images: int = 0
    names: int = 0
    bytes: int = 0
    missing: list[dict[str, str]] = dataclasses.field(default_factory=list)


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
) -> Collected:
    """Write the shards, `names.parquet`, `missing.jsonl` and `held.jsonl` into `output`.

    Args:
        places: where the images lie; a name belongs to one of them.
        data: what an image may cost.
        output: the artifact's folder.
        scratch: keeps finished groups until the artifact is finished.
        store: keeps them beyond this machine; None: nothing does.
        fault: says of the bytes of an image why they are of no use, "" if they are.

    Raises:
        InputError: a source does not answer, or `output` cannot be written.
    """
    held = _Held(scratch)
    groups = [group for one in places for group in _groups(one, data)]
    total = sum(len(group.stamps) for group in groups)
    known = sum(held.has(group.place.id, name, stamp) for group in groups for name, stamp in group.stamps.items())
    if known:
        logs.get("download").info("%s of %s images are there already", f"{known:,}", f"{total:,}")
    meter = _Meter(total)
    with meter.progress:
        for one in places:
            own = [group for group in groups if group.place is one]
            _finish(own, held, data, scratch, store, fault, meter)
    return _assemble(groups, held, data, output, scratch)


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
        self._scratch = scratch
        self._known: dict[tuple[str, str, str], str] = {}  # sha256 by location, name and stamp
        self._files: dict[str, Path] = {}  # by group
        self._sound: dict[Path, bool] = {}
        self.rows: dict[str, list[list[Any]]] = {}  # (name, stamp, sha256, bytes) of a group
        self._sums: dict[Path, str] = {}
        self._row_group = functools.lru_cache(maxsize=4)(shards.read_group)
        former = files.read_jsonl(scratch / HELD, "held") if (scratch / HELD).is_file() else []
        for entry in former:
            self._add(entry, scratch / entry["file"] if entry["file"] else None)
        for record in scratch.glob("group-*.json"):
            self._add(files.read_json(record, "held"), record.with_suffix(".parquet"))
        for path in sorted({*scratch.glob(shards.PATTERN), *self._files.values()}):
            self._sums.setdefault(path, "")

    def _add(self, entry: dict[str, Any], path: Path | None) -> None:
        for name, stamp, digest, _ in entry["rows"]:
            self._known[entry["place"], name, stamp] = digest
        if path is not None and path.is_file():
            self._files[entry["key"]], self.rows[entry["key"]] = path, entry["rows"]
            self._sums[path] = entry["sha256"]

    @functools.cached_property
    def _where(self) -> dict[str, tuple[Path, int, int]]:
        """File, row group and row by sha256."""
        found = {}
        for path in self._sums:
            if path.is_file():
                found.update({digest: (path, group, row) for digest, group, row in shards.places(path)})
        return found

    def has(self, where: str, name: str, stamp: str) -> bool:
        """Return whether an image is known by its location, name and stamp."""
        return (where, name, stamp) in self._known

    def file(self, group: _Group) -> Path | None:
        """Return the file of a group that was finished before, if it is what it was."""
        path = self._files.get(group.key)
        return path if path is not None and self._is_sound(path) else None

    def read(self, where: str, name: str, stamp: str) -> bytes | None:
        """Return an image's bytes, None if they are not held."""
        digest = self._known.get((where, name, stamp), "")
        if digest not in self._where:
            return None
        path, group, row = self._where[digest]
        content = self._row_group(path, group)[row] if self._is_sound(path) else None
        return content if content is not None and files.sha256_bytes(content) == digest else None

    def _is_sound(self, path: Path) -> bool:
        if path not in self._sound:
            wanted = self._sums.get(path, "")
            self._sound[path] = not wanted or files.sha256_file(path) == wanted
        return self._sound[path]

    def keep(self, group: _Group, path: Path, rows: list[list[Any]]) -> None:
        """Record a group whose file lies whole on the disk."""
        entry = {"key": group.key, "place": group.place.id, "rows": rows, "sha256": files.sha256_file(path)}
        files.write_json(path.with_suffix(".json"), entry)
        self._files[group.key], self.rows[group.key] = path, rows
        self._sound[path] = True


class _Meter:
    """Counts images and bytes of all places in one line of progress."""

    def __init__(self, total: int) -> None:
        self.progress = Progress("download", total, "image")
        self._start, self._bytes, self._missing = time.monotonic(), 0, 0

    def count(self, images: int = 1, size: int = 0, missing: int = 0) -> None:
        self._bytes += size
        self._missing += missing
        rate = self._bytes / 1e6 / max(time.monotonic() - self._start, 1e-9)
        figures = {"MB": f"{self._bytes / 1e6:,.0f}", "MB/s": f"{rate:,.1f}", "missing": f"{self._missing:,}"}
        self.progress.advance(images, **figures)


def _finish(
    groups: list[_Group],
    held: _Held,
    data: DataConfig,
    scratch: Path,
    store: WorkStore | None,
    fault: Callable[[bytes], str],
    meter: _Meter,
) -> None:
    """Make the file of each group of one place that is not there."""
    for group in groups:
        path = scratch / f"group-{group.key}.parquet"
        if held.file(group) is None and store is not None and store.get(group.key, path):
            stamps = group.stamps
            held.keep(
                group, path, [[name, stamps[name], digest, size] for name, digest, size in shards.read_rows(path)]
            )
    had = {group.key: {row[0] for row in held.rows.get(group.key, [])} for group in groups if held.file(group)}
    todo = [group for group in groups if had.get(group.key, set()) != set(group.stamps)]
    meter.count(sum(len(group.stamps) for group in groups if group not in todo))
    if not todo:
        return
    one = todo[0].place
    content = _contents(todo, had, held, one, data, fault)
    for group in todo:
        rows: list[list[Any]] = []
        arrived = 0

        def items(group: _Group = group, rows: list[list[Any]] = rows) -> Iterator[tuple[str, str, bytes | None]]:
            nonlocal arrived
            seen: set[str] = set()
            for name, found, fresh in content(group):
                if isinstance(found, Unavailable):
                    meter.count(missing=1)
                    _note(scratch, group, name, str(found))
                    continue
                digest = files.sha256_bytes(found)
                rows.append([name, group.stamps[name], digest, len(found)])
                arrived += fresh
                meter.count(size=len(found))
                yield name, digest, None if digest in seen else found
                seen.add(digest)

        _note(scratch, group, "", "")
        path = scratch / f"group-{group.key}.parquet"
        temporary = scratch / f"group-{group.key}.new"
        shards.write_rows(temporary, items())
        if group.key in had and not arrived:  # what was missing is missing still
            temporary.unlink()
            continue
        temporary.replace(path)
        held.keep(group, path, rows)
        if store is not None and rows:
            store.put(group.key, path)


def _note(scratch: Path, group: _Group, name: str, reason: str) -> None:
    """Add a missing image to the group's list; an empty name begins the list anew."""
    path = scratch / f"group-{group.key}.missing"
    with path.open("a" if name else "w", encoding="utf-8") as stream:
        if name:
            stream.write(json.dumps({"file_name": name, "reason": reason}) + "\n")


Found = tuple[str, bytes | Unavailable, bool]
"""A name, its image or why there is none, and whether it has been fetched now."""


def _contents(
    todo: list[_Group],
    had: Mapping[str, set[str]],
    held: _Held,
    one: Place,
    data: DataConfig,
    fault: Callable[[bytes], str],
) -> Callable[[_Group], Iterator[Found]]:
    """Return what yields the images of one group after the other; only those that are not held are fetched."""

    def usable(content: bytes) -> bytes | Unavailable:
        if len(content) > data.max_image_bytes:
            return Unavailable(f"larger than {data.max_image_bytes:,} bytes")
        reason = fault(content)
        return Unavailable(reason) if reason else content

    lacking = [name for group in todo for name, stamp in group.stamps.items() if not held.has(one.id, name, stamp)]
    if one.stream is not None:
        stream = one.stream

        def streamed(group: _Group) -> Iterator[Found]:
            waiting = set(group.stamps)
            for name, content in stream():
                if name in waiting:
                    waiting.discard(name)
                    yield name, usable(content), True
            for name in sorted(waiting):
                yield name, Unavailable("no place of images has it"), False

        return streamed
    source = one.open() if lacking else None
    arriving = iter(()) if source is None else fetch_all(source, [(name, one.names[name]) for name in lacking], data)

    def in_order(group: _Group) -> Iterator[Found]:
        nonlocal source
        for name, stamp in group.stamps.items():
            if not held.has(one.id, name, stamp):
                _, content = next(arriving)
                yield name, usable(content) if isinstance(content, bytes) else content, True
                continue
            kept = held.read(one.id, name, stamp)
            if kept is None:  # its file is damaged
                source = source or one.open()
                try:
                    kept = source.read(one.names[name], data.max_image_bytes)
                except Unavailable as reason:
                    yield name, reason, False
                    continue
            yield name, usable(kept), True

    return in_order


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

    failed = had = 0
    waiting: deque[tuple[str, Future[bytes | Unavailable]]] = deque()
    running: set[Future[bytes | Unavailable]] = set()
    ready = 0  # bytes that have arrived and wait
    following = iter(names)
    pool = ThreadPoolExecutor(data.download_threads, thread_name_prefix="fetch")
    try:
        while True:
            while len(running) < 2 * data.download_threads and ready < _AHEAD:
                name = next(following, None)
                if name is None:
                    break
                future = pool.submit(read, name[1])
                waiting.append((name[0], future))
                running.add(future)
            if not waiting:
                return
            if not waiting[0][1].done():
                done, running = wait(running, return_when=FIRST_COMPLETED)
                ready += sum(_size(future.result()) for future in done)
                continue
            name_there, head = waiting.popleft()
            if head in running:
                running.discard(head)
                ready += _size(head.result())
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


def _assemble(groups: list[_Group], held: _Held, data: DataConfig, output: Path, scratch: Path) -> Collected:
    """Put the groups' files together: each picture once, under the first name that has it."""
    collected = Collected()
    names: dict[str, str] = {}
    record: list[dict[str, Any]] = []
    seen: set[str] = set()
    count = 0
    for old in output.glob(shards.PATTERN):
        old.unlink()
    for group in groups:
        noted = scratch / f"group-{group.key}.missing"
        if noted.is_file():
            collected.missing += files.read_jsonl(noted, "missing images")
        path, rows = held.file(group), held.rows.get(group.key, [])
        if path is None or not rows:
            continue
        names.update({name: digest for name, _, digest, _ in rows})
        fresh = {digest: size for *_, digest, size in rows if digest not in seen}
        seen |= fresh.keys()
        sizes = list(fresh.values())
        collected.images += len(sizes)
        collected.bytes += sum(sizes)
        shard = ""
        if len(sizes) == len(rows) and (sum(sizes) <= data.shard_bytes or len(sizes) == 1):
            shard = f"images-{count:05d}.parquet"
            place(path, output / shard)
            count += 1
        elif sizes:
            items = (
                (name, content) for name, digest, content in shards.read_shard(path) if content and digest in fresh
            )
            count += len(shards.write_image_shards(output, items, data.shard_bytes, first=count))
        sha256 = files.sha256_file(path) if shard else ""
        record.append({"key": group.key, "place": group.place.id, "file": shard, "rows": rows, "sha256": sha256})
    collected.names = len(names)
    collected.missing.sort(key=lambda row: row["file_name"])
    shards.write_names(output, names)
    files.write_jsonl(output / MISSING, collected.missing)
    files.write_jsonl(output / HELD, record)
    return collected
