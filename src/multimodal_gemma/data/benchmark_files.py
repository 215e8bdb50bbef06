"""The question files of POPE and VQA v2, from wherever they are published into one layout.

Which objects are in POPE's pictures is taken from COCO's annotations, as far as those pictures go.
VQA v2 is published as zip archives with long names, and as plain `questions.json` and `annotations.json` by those who
repackage it. Either is taken. A part of its questions can be drawn; a smaller draw is contained in a larger one.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.data.benchmarks import POPE_SETTINGS, load_objects, pope_file
from multimodal_gemma.data.image_names import image_id
from multimodal_gemma.data.sources.archive import ZipSource
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.errors import InputError

PLAIN = {"questions": "questions.json", "annotations": "annotations.json"}
OFFICIAL = {  # archive, and the validation file in it
    "questions": ("v2_Questions_Val_mscoco.zip", "v2_OpenEnded_mscoco_val2014_questions.json"),
    "annotations": ("v2_Annotations_Val_mscoco.zip", "v2_mscoco_val2014_annotations.json"),
}

OWN = "objects.json"  # what is made here of COCO's annotations; a mirror offers it
_ANNOTATIONS = "annotations_trainval2014.zip"
_SPLITS = ("val2014", "train2014", "val2017", "train2017")


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


def instances_names(source: Source) -> list[str]:
    """Return the names of the files that tell which objects are in which picture: ours, COCO's, or COCO's archive.

    Raises:
        InputError: none of them lies there.
    """
    pairs = [[f"{kind}_{split}.json" for kind in ("instances", "captions")] for split in _SPLITS]
    try:
        for names in ([OWN], *pairs, [_ANNOTATIONS]):
            if all(source.exists(name) for name in names):
                return names
    except Unavailable as error:
        raise InputError(f"benchmarks.instances: {source.uri} cannot be had ({error}). Check the address.") from None
    raise InputError(
        f"benchmarks.instances: {source.uri} holds neither {OWN}, nor {' and '.join(pairs[0])}, nor {_ANNOTATIONS}. "
        "Give the place of COCO's annotations."
    )


def fetch_instances(source: Source, path: Path, images: Iterable[str]) -> None:
    """Write which objects are in some pictures, and what their captions say.

    Args:
        source: where the annotations lie.
        path: the file, see `benchmarks.load_objects`.
        images: file names of the pictures.

    Raises:
        InputError: the annotations cannot be had, are faulty, or do not know one of the pictures.
    """
    wanted = sorted(set(images))
    names, key = instances_names(source), "benchmarks.instances"
    with tempfile.TemporaryDirectory(prefix="mmgemma-instances-") as scratch:
        folder = Path(scratch)
        for name in names:
            _fetch(source, name, folder / name, key)
        if names == [OWN]:
            categories, known = load_objects(folder / OWN)
            found = {image: {"objects": [*one.objects], "captions": [*one.captions]} for image, one in known.items()}
        else:
            if names == [_ANNOTATIONS]:
                names = [f"{kind}_{_SPLITS[0]}.json" for kind in ("instances", "captions")]
                for name in names:
                    _fetch(ZipSource(folder / _ANNOTATIONS, source), name, folder / name, key)
            categories, found = _of_coco(folder / names[0], folder / names[1], wanted)
    missing = [image for image in wanted if image not in found]
    if missing:
        raise InputError(
            f"{key}: {source.uri} does not know {len(missing):,} of the {len(wanted):,} pictures of POPE, the first is "
            f"{missing[0]}. Give the annotations of the same release."
        )
    files.write_json(path, {"categories": categories, "images": {image: found[image] for image in wanted}})


def _of_coco(instances: Path, captions: Path, wanted: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the categories, and objects and captions of the wanted pictures that COCO's two files know."""
    by_id = {image_id(image): image for image in wanted}
    found: dict[str, dict[str, list[str]]] = {}
    texts: dict[str, list[str]] = defaultdict(list)
    try:
        document = files.read_json(captions, "benchmarks.instances")
        for entry in document["annotations"]:
            texts[f"{entry['image_id']:012d}"].append(str(entry["caption"]))
        document = files.read_json(instances, "benchmarks.instances")
        named = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
        for entry in document["images"]:
            if image := by_id.get(image_id(str(entry["file_name"]))):
                found[image] = {"objects": [], "captions": texts[image_id(image)]}
        for entry in document["annotations"]:
            image = by_id.get(f"{entry['image_id']:012d}")
            if image in found and named[entry["category_id"]] not in found[image]["objects"]:
                found[image]["objects"].append(named[entry["category_id"]])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"benchmarks.instances: {instances.name} or {captions.name} is not as COCO writes it ({error!r}). "
            "Give COCO's own files."
        ) from None
    return sorted(named.values()), found


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
