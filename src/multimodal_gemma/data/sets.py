"""The raw dataset: sets of conversations, what is chosen of them, and the images that those name."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from multimodal_gemma import files
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import conversations, formats, places, shards, sources
from multimodal_gemma.data.choose import Left, Share
from multimodal_gemma.data.collect import Place
from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.data.delivery import WorkStore
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.data.sources.local import LocalSource
from multimodal_gemma.errors import InputError

FORMAT = 2  # raised when an equal file comes to be read as other conversations
_FILES = ("https://", "http://", "sample://")  # locations that are never folders
_TRAIN, _OTHER = re.compile(r"(^|[/_.-])train"), re.compile(r"(^|[/_.-])(test|val|validation|dev)[/_.-]")


@dataclasses.dataclass(frozen=True)
class Set:
    """One set of conversations."""

    name: str  # distinct, e.g. "llava_instruct_150k"
    key: str  # of its source, for sentences
    source: Source  # where it lies
    share: Share  # how much of it is learnt from
    images: str  # key of the source of its images; "" for none


@dataclasses.dataclass
class Read:
    """What a set holds."""

    right: list[Conversation]  # its conversations
    left: Left  # those that break the format
    embedded: dict[str, set[str]]  # names of the pictures that stand in each of its files
    former: dict[str, Any]  # sets.json where the set is a finished raw dataset


def open_sets(data: DataConfig) -> tuple[list[Set], dict[str, Source]]:
    """Return the sets that the configuration names, and every source by its key.

    Raises:
        InputError: a location is malformed, or there are neither one nor as many locations of images as sets.
    """
    if not data.conversations:
        raise InputError("download: data.conversations is empty. Give the location of the conversations.")
    shares = [Share.parse(text) for text in data.conversations]
    images = [location for location in data.images if location] and data.images
    if len(images) > 1 and len(images) != len(shares):
        raise InputError(
            f"config: data.images has {len(images)} locations for {len(shares)} of data.conversations. Give one for "
            "all, or one for each ('' where a set needs none)."
        )
    found: dict[str, Source] = {}
    sets: list[Set] = []
    for number, share in enumerate(shares):
        name = _name(share.uri, {one.name for one in sets})
        key = "data.conversations" if len(shares) == 1 else f"data.conversations ({name})"
        found[key] = sources.open(share.uri, data)
        place = "data.images" if len(images) == 1 else f"data.images ({name})"
        location = images[0 if len(images) == 1 else number] if images else ""
        if location:
            found[place] = sources.open(places.base(location), data, "images")
        sets.append(Set(name, key, found[key], share, place if location else ""))
    for text in data.image_roots:
        prefix, location = places.parse_root(text)
        found[root_key(prefix)] = sources.open(places.base(location), data, "images")
    return sets, found


def root_key(prefix: str) -> str:
    """Return the key of the source of a prefix."""
    return f"data.image_roots ({prefix})"


def _name(uri: str, taken: set[str]) -> str:
    """Return a set's name: the repository's or the file's, without what its format adds."""
    path = uri.partition("://")[2]
    hub = re.fullmatch(r"hf://datasets/[^/]+/([^/@]+)(?:@[^/]*)?/?(.*)", uri)
    last = PurePosixPath(hub[2] or hub[1] if hub else path).name or uri.partition("://")[0]
    last = unquote(last).replace("/", "_")
    plain = re.sub(r"(\.(jsonl?|ndjson|parquet|gz))+$", "", last) or "set"
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in numbered if name not in taken)


def read(one: Set, data: DataConfig, scratch: Path, store: WorkStore | None) -> Read:
    """Read all conversations of a set; a file that was read before is not fetched again.

    Raises:
        InputError: a file cannot be had or is broken, or more conversations than allowed break the format.
    """
    made, finished = Read([], Left(), {}, {}), is_artifact(one.source)
    for name in _files(one.source, one.key):
        for line in _lines(one, name, data, scratch, store):
            made.left.given += 1
            if "fault" in line:
                made.left.drop(*line["fault"])
                continue
            item = conversations.from_row(line)
            made.right.append(item if finished and item.set else dataclasses.replace(item, set=one.name))
            if item.image is not None and item.image.startswith(conversations.EMBEDDED) and not finished:
                made.embedded.setdefault(name or "", set()).add(item.image)
    _check(one, made, data.max_faulty_fraction)
    if finished:
        one.source.fetch(conversations.SETS, scratch / "former-sets.json")
        made.former = files.read_json(scratch / "former-sets.json", "sets")
    return made


@functools.cache
def is_artifact(source: Source) -> bool:
    """Return whether a location holds a finished raw dataset, e.g. a mirror; asked once."""
    try:
        return not _is_file(source) and source.exists(conversations.FILE) and source.exists(shards.NAMES)
    except Unavailable:
        return False


def _is_file(source: Source) -> bool:
    """Return whether a location is a file of conversations itself."""
    if isinstance(source, LocalSource) and not source.root.is_dir():
        return True
    return source.uri.startswith(_FILES) or source.uri.lower().endswith(formats.SUFFIXES)


def _files(source: Source, key: str) -> list[str | None]:
    """Return the names of a set's files, None for the one that the location itself is."""
    if _is_file(source):
        return [None]
    if is_artifact(source):
        return [conversations.FILE]
    there = source.names()
    tables = [name for name in there if name.endswith(".parquet")]
    if tables:
        train = [name for name in tables if _TRAIN.search(name)]
        return list(train or [name for name in tables if not _OTHER.search(name)] or tables)
    if isinstance(source, LocalSource):
        return [None]
    single = [name for name in there if name.endswith(formats.SUFFIXES) and "/" not in name]
    if len(single) == 1:
        return [single[0]]
    listed = f" ({', '.join(single[:10])}{', …' if len(single) > 10 else ''})" if single else ""
    raise InputError(
        f"download: {source.uri} holds {len(single)} files of conversations{listed}. "
        f"Name the one that is meant in {key.partition(' ')[0]}."
    )


def _lines(
    one: Set, name: str | None, data: DataConfig, scratch: Path, store: WorkStore | None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file; they are kept, so that the file is fetched and read once."""
    try:
        stamp = one.source.fingerprint() if name is None else one.source.stamp(name) or one.source.fingerprint(name)
    except Unavailable as error:
        raise InputError(f"download: {one.source.uri} cannot be had ({error}). Check {one.key}.") from None
    key = files.digest_of([FORMAT, one.source.uri, name, stamp, dict(data.columns), data.conversations_sha256])
    rows = scratch / f"rows-{key}.jsonl"
    if not rows.is_file() and not (store is not None and store.get(key, rows)):
        path = fetch_file(one, name, data, scratch)
        shown = one.source.uri if name is None else f"{name} of {one.source.uri}"
        try:
            with files.atomic_path(rows) as temporary, temporary.open("w", encoding="utf-8") as stream:
                for row in formats.read(path, shown, data.columns, data.max_file_bytes):
                    if isinstance(row.read, Conversation):
                        line = conversations.to_row(row.read)
                    else:
                        line = {"fault": dataclasses.astuple(row.read)}
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        except InputError:
            path.unlink(missing_ok=True)
            raise
        if path.suffix != ".parquet":
            path.unlink(missing_ok=True)
        if store is not None:
            store.put(key, rows)
    with rows.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def fetch_file(one: Set, name: str | None, data: DataConfig, scratch: Path) -> Path:
    """Return where one file of a set lies on this machine, fetched if need be."""
    suffix = ".parquet" if (name or one.source.uri).endswith(".parquet") else ".set"
    path = scratch / f"set-{files.digest_of([one.source.uri, name])[:16]}{suffix}"
    if not path.is_file():
        demanded = data.conversations_sha256 if one.key == "data.conversations" and name is None else ""
        places.fetch_pinned(one.source, name, path, data.max_file_bytes, demanded, one.key)
    return path


def _check(one: Set, made: Read, allowed: float) -> None:
    given, faults, way = made.left.given, made.left.losses, ""
    if not given:
        raise InputError(f"conversations: {one.source.uri} is an empty list. Give at least one conversation.")
    share = faults / given
    if not made.right:
        way = "Give one of the formats that docs/data.md lists, or name its columns with data.columns."
    elif share > allowed:
        enough = min(math.ceil(share * 1000) / 1000, 1.0)
        way = f"Correct or remove them, or leave them out with data.max_faulty_fraction={enough:g}."
    else:
        return
    first = min((entry["examples"][0] for entry in made.left.dropped.values()), key=lambda found: found["index"])
    more = f", and {faults - 1:,} more of {given:,} are" if faults > 1 else f", 1 of {given:,} is"
    kinds = ", ".join(f"{kind} {entry['count']:,}" for kind, entry in sorted(made.left.dropped.items()))
    raise InputError(
        f"conversations: conversation {first['index']} (id {first['id']}) of {one.source.uri} {first['reason']}{more} "
        f"faulty ({share:.2%}, allowed {allowed:.2%}). Reasons: {kinds}. {way}"
    )


def locate(
    chosen: list[Conversation],
    sets: list[Set],
    opened: Mapping[str, Source],
    embedded: Mapping[str, Mapping[str, set[str]]],
    data: DataConfig,
    scratch: Path,
) -> tuple[list[Conversation], list[Place]]:
    """Return the conversations with their images' names in the shards, and the places of those images.

    Where sets have images of their own, their names begin with the set's: equal names are not equal pictures.
    """
    roots = {places.parse_root(text)[0]: opened[root_key(places.parse_root(text)[0])] for text in data.image_roots}
    several = len({one.images for one in sets}) > 1
    renamed: dict[tuple[str, str | None], str] = {}
    own: dict[str, dict[str, str]] = {}
    inside: list[Place] = []
    by_set: dict[str, list[Conversation]] = {one.name: [] for one in sets}
    for item in chosen:  # an artifact has sets of its own, of other names
        by_set[item.set if item.set in by_set else sets[0].name].append(item)
    for one in sets:
        names = {item.image for item in by_set[one.name] if item.image is not None}
        held = set().union(*embedded[one.name].values())
        inside += _inside(one, embedded[one.name], names & held, data, scratch)
        plain = _plain(one, names - held, opened)
        key = one.images or "data.images"
        if plain is not None and key not in opened:
            opened = {**opened, key: plain}
        for prefix, there in places.sort_out(names - held, plain, roots, key, data.max_missing_fraction).items():
            where = root_key(prefix) if prefix in roots else prefix or key
            for name, rest in there.items():
                stored = rest if name.startswith("/") else name
                stored = f"{one.name}/{stored}" if several and not prefix else stored
                renamed[one.name, name] = stored
                own.setdefault(where, {})[stored] = rest
    located = [
        dataclasses.replace(item, image=renamed.get((name, item.image), item.image))
        for name, items in by_set.items()
        for item in items
    ]
    found = []
    for where, there in own.items():
        pin = data.images_sha256 if where == "data.images" else ""
        if where in opened:
            found.append(places.place_of(opened[where], where, there, scratch, data, pin))
        elif where.startswith("https://"):
            found.append(places.addresses(there, data))
        else:
            found.append(places.nowhere(there))
    return located, found + inside


def _plain(one: Set, names: set[str], opened: Mapping[str, Source]) -> Source | None:
    """Return where a set's images lie: as configured, in the artifact that it is, or anywhere on this machine."""
    if one.images:
        return opened[one.images]
    if is_artifact(one.source):
        return one.source
    here = [name.startswith("/") for name in names if not name.startswith("https://")]
    local = isinstance(one.source, LocalSource) and here and all(here)
    return LocalSource(Path("/"), "file:///") if local else None


def _inside(
    one: Set, by_file: Mapping[str, set[str]], wanted: set[str], data: DataConfig, scratch: Path
) -> Iterator[Place]:
    """Yield a place for each file of a set that pictures stand in."""
    given: set[str] = set()
    for name, held in by_file.items():
        names = sorted((held & wanted) - given)
        given.update(names)

        def stream(name: str = name) -> Iterator[tuple[str, bytes]]:
            path = fetch_file(one, name or None, data, scratch)
            for row in formats.read(path, one.source.uri, data.columns, data.max_file_bytes):
                if row.picture is not None and isinstance(row.read, Conversation) and row.read.image is not None:
                    yield row.read.image, row.picture
            path.unlink(missing_ok=True)

        if names:
            yield Place(
                conversations.EMBEDDED, {name: name for name in names}, lambda: one.source, lambda _: "", stream
            )
