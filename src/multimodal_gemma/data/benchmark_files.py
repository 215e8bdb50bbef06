"""The question files of POPE and VQA v2, from wherever they are published into one layout.

VQA v2 is published as zip archives with long names, and as plain `questions.json` and `annotations.json` by those who
repackage it. Either is taken. A part of its questions can be drawn; a smaller draw is contained in a larger one.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.data.benchmarks import POPE_SETTINGS, pope_file
from multimodal_gemma.data.sources.archive import ZipSource
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.errors import InputError

PLAIN = {"questions": "questions.json", "annotations": "annotations.json"}
OFFICIAL = {  # archive, and the validation file in it
    "questions": ("v2_Questions_Val_mscoco.zip", "v2_OpenEnded_mscoco_val2014_questions.json"),
    "annotations": ("v2_Annotations_Val_mscoco.zip", "v2_mscoco_val2014_annotations.json"),
}


def pope_names(source: Source) -> dict[str, str]:
    """Return the published name (`.json`, or `.jsonl` as some repackage it) by the name in the artifact."""
    found = {}
    for name in (pope_file(setting) for setting in POPE_SETTINGS):
        try:
            lines = not source.exists(name) and source.exists(f"{name}l")
        except Unavailable as error:
            raise InputError(f"benchmarks.pope: {source.uri} cannot be had ({error}). Check the address.") from None
        found[name] = f"{name}l" if lines else name
    return found


UNPACKED = {key: member for key, (_, member) in OFFICIAL.items()}


def vqa_names(source: Source) -> list[str]:
    """Return the names of the VQA v2 files that lie at a location: the plain ones, else the official archives.

    Raises:
        InputError: neither lies there.
    """
    official = [archive for archive, _ in OFFICIAL.values()]
    try:
        for names in (list(PLAIN.values()), list(UNPACKED.values()), official):
            if all(source.exists(name) for name in names):
                return names
    except Unavailable as error:
        raise InputError(f"benchmarks.vqa: {source.uri} cannot be had ({error}). Check the address.") from None
    raise InputError(
        f"benchmarks.vqa: {source.uri} holds neither {' and '.join(PLAIN.values())} nor {' and '.join(official)}. "
        "Give the place of the VQA v2 files."
    )


def fetch_pope(source: Source, folder: Path) -> None:
    """Write the three POPE files.

    Raises:
        InputError: one of them cannot be had.
    """
    for name, published in pope_names(source).items():
        _fetch(source, published, folder / name, "benchmarks.pope")


def fetch_vqa(source: Source, folder: Path) -> None:
    """Write `questions.json` and `annotations.json`.

    Raises:
        InputError: they cannot be had.
    """
    found = vqa_names(source)
    if found != [archive for archive, _ in OFFICIAL.values()]:
        for name, published in zip(PLAIN.values(), found, strict=True):
            _fetch(source, published, folder / name, "benchmarks.vqa")
        return
    with tempfile.TemporaryDirectory(prefix="mmgemma-vqa-") as scratch:
        for key, (archive, member) in OFFICIAL.items():
            packed = Path(scratch) / archive
            _fetch(source, archive, packed, "benchmarks.vqa")
            _fetch(ZipSource(packed, source), member, folder / PLAIN[key], "benchmarks.vqa")


def draw_vqa(folder: Path, count: int) -> None:
    """Keep `count` of the questions in `folder`, and their annotations.

    Questions are ranked by a hash of their id, so the draw does not depend on their order or number.

    Args:
        folder: holds `questions.json` and `annotations.json`; both are replaced.
        count: how many to keep; nothing changes if there are no more.

    Raises:
        InputError: a file has no such list, or lists an entry without a question id.
    """
    documents = {key: _document(folder / name, key) for key, name in PLAIN.items()}
    ids = [entry["question_id"] for entry in documents["questions"]["questions"]]
    if len(ids) <= count:
        return
    kept = set(sorted(ids, key=lambda number: hashlib.sha256(f"vqa/{number}".encode()).digest())[:count])
    for key, document in documents.items():
        entries = [entry for entry in document[key] if entry["question_id"] in kept]
        files.write_json(folder / PLAIN[key], {**document, key: entries})


def _document(path: Path, key: str) -> dict[str, Any]:
    document = files.read_json(path, "vqa")
    entries = document.get(key) if isinstance(document, dict) else None
    whole = isinstance(entries, list) and all(isinstance(entry, dict) and "question_id" in entry for entry in entries)
    if not whole:
        raise InputError(f"vqa: {path} holds no list {key!r} with question ids. Give a file in the format of VQA v2.")
    return dict(document)


def _fetch(source: Source, name: str, destination: Path, key: str) -> None:
    try:
        source.fetch(name, destination)
    except Unavailable as error:
        raise InputError(f"{key}: {name} at {source.uri} cannot be had ({error}). Check the location.") from None
