"""The three artifacts that come from elsewhere: what each is made from, and how it is made.

Everything small is fetched and checked in a scratch folder first, so that a fault in a question file or a model folder
is told before the first of many thousand images is asked for.

What the sources hold can be locked: `mmgemma preflight --lock FILE` writes it, `--locked FILE` binds to it. For people
the file has what each place states: a hub's commit and licence, sizes, ETags, sha256. What is compared is each source's
fingerprint. It travels to every task in `data.locked`, and whoever asks a source compares it.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.config.schema import BenchmarksConfig, Config
from multimodal_gemma.data import (
    base_models,
    benchmarks,
    choose,
    collect,
    conversations,
    delivery,
    places,
    sets,
    sources,
)
from multimodal_gemma.data.pictures import Limits, decode, not_an_image
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.errors import InputError, Unusable

SOURCES = "sources.json"  # where everything came from; no part of the artifact's identity, which is its content alone
_MAX_SOURCES = 1 << 20  # bytes of it
LOCK_SCHEMA = 1
_SHORT = 16  # hexadecimal digits of a digest: all of a run's sources have to fit into its parameters
_AGAIN = "mmgemma preflight --lock FILE"


class Download(abc.ABC):
    """One artifact to be made.

    Attributes:
        kind: of its manifest.
        config: the part of the configuration that shapes its content.
        sources: where it comes from, by configuration key.
    """

    kind: str
    config: dict[str, Any]
    sources: dict[str, Source]

    def __init__(self, config: Config) -> None:
        self._locked = config.data.locked

    def fingerprint(self) -> str:
        """Return a cheap identity of what the sources hold; another value means that they may have changed.

        Raises:
            InputError: a source cannot be asked, or is not what data.locked says.
        """
        _require(self._locked, self.asked)
        return files.digest_of({key: list(told) for key, told in self.asked.items()})

    @functools.cached_property
    def asked(self) -> dict[str, tuple[str, str]]:
        """Location and fingerprint of each source by its configuration key; InputError if one cannot be asked."""
        found = {}
        for key, source in self.sources.items():
            try:
                found[key] = source.uri, self._stamp(key, source)
            except Unavailable as error:
                raise InputError(f"download: {source.uri} cannot be had ({error}). Check {key}.") from None
        return found

    def _stamp(self, key: str, source: Source) -> str:
        return source.fingerprint()

    def origins(self, scratch: Path) -> dict[str, dict[str, str]]:
        """Return where each source is, by its configuration key.

        A source that is a finished artifact, e.g. a mirror, has its own sources beside it: theirs are the revisions
        and the licences of what was taken.

        Args:
            scratch: a folder for their lists.

        Raises:
            InputError: there is such a list, and it is none.
        """
        found: dict[str, dict[str, str]] = {}
        for number, (key, source) in enumerate(self.sources.items()):
            found[key] = source.describe()
            if not self._is_artifact(key, source):
                continue
            path = scratch / f"sources-{number}.json"
            try:
                source.fetch(SOURCES, path, _MAX_SOURCES)
            except Unavailable:  # a mirror that an earlier version made
                continue
            try:
                former = files.read_json(path, "sources")["sources"].items()
                said = {inner: {name: str(text) for name, text in told.items()} for inner, told in former}
            except (AttributeError, KeyError, TypeError):
                raise InputError(f"download: {SOURCES} of {source.uri} names no sources. Make it again.") from None
            found[key]["licence"] = ", ".join(sorted({told.get("licence", "not stated") for told in said.values()}))
            found |= {f"{key} ({inner})": told for inner, told in said.items()}
        return found

    def _is_artifact(self, key: str, source: Source) -> bool:
        return key.startswith(("data.image", "benchmarks.images")) and places.is_artifact(source)

    @abc.abstractmethod
    def fetch(self, output: Path, scratch: Path) -> dict[str, int]:
        """Write everything but the manifest.

        Args:
            output: the artifact's folder.
            scratch: an empty folder on the same file system, deleted afterwards.

        Returns:
            The counts for the manifest. With images, "images" and "missing" are among them.

        Raises:
            InputError: something cannot be had or is faulty.
        """


class Dataset(Download):
    """Conversations of one or several sets, and the images they name."""

    kind = "raw-dataset"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        data = config.data
        self._data = data
        self._sets, self.sources = sets.open_sets(data)
        self.config = {
            "format": [collect.FORMAT, sets.FORMAT],
            "max_image_bytes": data.max_image_bytes,
            "shard_bytes": data.shard_bytes,
            "max_faulty_fraction": data.max_faulty_fraction,
            "shares": [[share.count, share.weight] for share in (one.share for one in self._sets)],
            "columns": dict(data.columns),
            **choose.keys(data),
        }

    def _is_artifact(self, key: str, source: Source) -> bool:
        return sets.is_artifact(source) if key.startswith("data.conversations") else super()._is_artifact(key, source)

    def fetch(self, output: Path, scratch: Path) -> dict[str, int]:
        """Write the conversations, what became of each set, the image shards and `missing.jsonl`."""
        data = self._data
        rows = delivery.open_store(data.work_uri, "rows")
        found = {one.name: sets.read(one, data, scratch, rows) for one in self._sets}
        left = {name: one.left for name, one in found.items()}
        right = {name: one.right for name, one in found.items()}
        chosen = choose.choose(right, {one.name: one.share for one in self._sets}, left, data)
        embedded = {name: one.embedded for name, one in found.items()}
        chosen, places_ = sets.locate(chosen, self._sets, self.sources, embedded, data, scratch)
        conversations.write(output / conversations.FILE, chosen)
        table: dict[str, Any] = {}
        for name, one in found.items():
            whole = bool(one.former) and one.left.kept == one.left.given
            table |= one.former if whole else {name: dataclasses.asdict(one.left)}
        files.write_json(output / conversations.SETS, table)
        store = delivery.open_store(data.work_uri, "shards")
        collected = collect.collect(places_, data, output, scratch, store, not_an_image)
        given = sum(entry["given"] for entry in table.values())
        return {"given_conversations": given, "conversations": len(chosen), **collected}


class Benchmarks(Download):
    """The questions of POPE and VQA v2, and the images they are about."""

    kind = "benchmarks"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        data, asked = config.data, config.benchmarks
        if not asked.pope and not asked.vqa:
            raise InputError("download: benchmarks.pope and benchmarks.vqa are both empty. Give at least one location.")
        known = instances(asked)
        if known and not asked.pope:
            raise InputError("download: benchmarks.instances is of POPE's pictures. Give benchmarks.pope too.")
        self._data = data
        self._vqa_questions = asked.vqa_questions
        self.config = {
            "max_image_bytes": data.max_image_bytes,
            "max_image_pixels": data.max_image_pixels,
            "vqa_questions": asked.vqa_questions,
            "shard_bytes": data.shard_bytes,
            "format": collect.FORMAT,
        }
        locations = {"pope": asked.pope, "vqa": asked.vqa, "instances": known}
        locations["images"] = places.base(asked.images)
        self.sources = {f"benchmarks.{part}": sources.open(uri, data, part) for part, uri in locations.items() if uri}

    def _stamp(self, key: str, source: Source) -> str:
        part = key.removeprefix("benchmarks.")
        return source.fingerprint(*([] if part == "images" else benchmarks.published_names(source, part)))

    def fetch(self, output: Path, scratch: Path) -> dict[str, int]:
        """Write `pope/`, `vqa/`, `instances/`, the image shards and `missing.jsonl`."""
        if source := self.sources.get("benchmarks.pope"):
            benchmarks.fetch_pope(source, scratch / "pope")
        if source := self.sources.get("benchmarks.vqa"):
            benchmarks.fetch_vqa(source, scratch / "vqa")
            if self._vqa_questions is not None:
                benchmarks.draw_vqa(scratch / "vqa", self._vqa_questions)
        with _called(scratch, "the download"):
            pope = [question for setting in benchmarks.load_pope(scratch).values() for question in setting]
            vqa = benchmarks.load_vqa(scratch)
        seen = {question.image for question in pope}
        if source := self.sources.get("benchmarks.instances"):
            with _called(scratch, "the download"):
                benchmarks.fetch_instances(source, scratch / benchmarks.OBJECTS, seen)
        names = sorted(seen | {question.image for question in vqa})
        place, key = self.sources.get("benchmarks.images"), "benchmarks.images"
        own = places.sort_out(names, place, {}, key, 0.0).get("", {})
        where = [] if place is None else [places.place_of(place, key, own, scratch, self._data, "")]
        _move(scratch, output, [part for part in ("pope", "vqa", "instances") if (scratch / part).is_dir()])
        # No later stage looks at these images before they are scored on: each is decoded once, here.
        store = delivery.open_store(self._data.work_uri, "shards")
        collected = collect.collect(where, self._data, output, scratch, store, self._fault)
        return {"pope_questions": len(pope), "vqa_questions": len(vqa), **collected}

    def _fault(self, content: bytes) -> str:
        try:
            decode(content, Limits(self._data.max_image_bytes, self._data.max_image_pixels))
        except Unusable as error:
            return str(error)
        return ""


def instances(asked: BenchmarksConfig) -> str:
    """Return where the objects in POPE's pictures are told; "" for nowhere. The sample knows its own scenes alone."""
    of_sample = asked.instances.startswith("sample:") and not asked.pope.startswith("sample:")
    return "" if of_sample else asked.instances


class Models(Download):
    """The vision encoder and the language model to start from, and a trained projector or adapter if one is given."""

    kind = "base-models"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model = config.model
        locations = {part: getattr(model, part) for part in ("vision", "language", "projector", "adapter")}
        for part in ("vision", "language"):
            if not locations[part]:
                raise InputError(f"download: model.{part} is empty. Give the location of a stock model folder.")
        self.config = {}
        self.sources = {f"model.{part}": self._open(uri, config, part) for part, uri in locations.items() if uri}

    def _open(self, uri: str, config: Config, part: str) -> Source:
        if not uri.startswith("models:"):
            return sources.open(uri, config.data)
        if part in ("vision", "language"):
            raise InputError(
                f"download: model.{part}={uri} is a trained model of images and words. Give the location of a stock "
                f"{part} model, and {uri} as model.adapter or model.projector."
            )
        from multimodal_gemma.registry.resolve import Registered  # MLflow is there for those who ask it alone

        return Registered(uri, config)

    def fetch(self, output: Path, scratch: Path) -> dict[str, int]:
        """Write `vision/`, `language/` and, if given, `projector/` and `adapter/`."""
        for key, source in self.sources.items():
            part = key.removeprefix("model.")
            base_models.fetch(source, part, scratch / part)
        _move(scratch, output, [key.removeprefix("model.") for key in self.sources])
        return {"models": len(self.sources)}


KINDS: dict[str, type[Download]] = {"dataset": Dataset, "benchmarks": Benchmarks, "models": Models}


def write_lock(path: Path, downloads: Iterable[Download]) -> list[str]:
    """Ask every source what it holds, and write it down.

    Args:
        path: the lock file; it appears whole or not at all.
        downloads: everything that a run fetches.

    Returns:
        A line for each source.

    Raises:
        InputError: a source cannot be asked, or the file cannot be written.
    """
    held: dict[str, dict[str, Any]] = {}
    for download in downloads:
        for key, (uri, fingerprint) in download.asked.items():
            source = download.sources[key]
            told = source.describe()
            told.pop("uri", None)
            try:
                stated = source.facts()
            except Unavailable:  # a base that names are appended to
                stated = {}
            held[key] = {"uri": uri, "fingerprint": fingerprint, **told, "files": stated}
    try:
        files.write_json(path, {"schema": LOCK_SCHEMA, "sources": held})
    except OSError as error:
        raise files.unwritable(path, error) from error
    return [f"{key}: {one['uri']} {one.get('commit', one['fingerprint'][:_SHORT])}" for key, one in held.items()]


def locked_overrides(path: Path) -> list[str]:
    """Return the overrides that bind a run to a lock file.

    Raises:
        InputError: it is absent, or no such file.
    """
    value: Any = files.read_json(path, "lock") if path.is_file() else None
    try:
        assert value["schema"] == LOCK_SCHEMA
        entries = [_entry(key, one["uri"], one["fingerprint"]) for key, one in value["sources"].items()]
    except (AssertionError, AttributeError, KeyError, TypeError):
        raise InputError(f"lock: {path} is no lock file. Write one with {_AGAIN}.") from None
    return [f"data.locked=[{','.join(entries)}]"]


def _require(locked: Sequence[str], asked: Mapping[str, tuple[str, str]]) -> None:
    """Refuse sources that are not what data.locked says; an empty one locks nothing."""
    held = dict(entry.partition("-")[::2] for entry in locked)
    for key, (uri, fingerprint) in asked.items() if locked else ():
        name, _, identity = _entry(key, uri, fingerprint).partition("-")
        if name not in held:
            raise InputError(f"lock: {uri} ({key}) is not in the lock file. Write it again with {_AGAIN}.")
        if held[name] != identity:
            raise InputError(
                f"lock: {uri} ({key}) has changed since it was locked. Restore it, name the locked revision, or accept "
                f"what it holds now with {_AGAIN}."
            )


def _entry(key: str, uri: str, fingerprint: str) -> str:
    return f"k{files.digest_of([key, uri])[:_SHORT]}-{str(fingerprint)[:_SHORT]}"  # begins as no number does


def _move(scratch: Path, output: Path, parts: Iterable[str]) -> None:
    for part in parts:
        shutil.rmtree(output / part, ignore_errors=True)  # of an interrupted attempt
        (scratch / part).replace(output / part)


@contextlib.contextmanager
def _called(path: Path, name: str) -> Iterator[None]:
    """Let a sentence about a file in the scratch folder speak of the place that it came from."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from None
