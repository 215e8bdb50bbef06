"""The questions that a model is scored on: POPE (Li et al., 2023) and VQA v2 (Goyal et al., 2017), as published.

POPE asks whether an object is in a picture, in three files that differ in how the absent objects were drawn; which
objects are in its pictures is taken from COCO's annotations. VQA v2 asks open questions, each answered by ten people.
The files are brought from wherever they are published into one layout, and every fault of a file is found here, before
a model is loaded. A part of VQA's questions can be drawn; a smaller draw is contained in a larger one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.data.conversations import IMAGE_TAG
from multimodal_gemma.data.shards import image_id
from multimodal_gemma.data.sources.archive import Archive
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.errors import InputError

OBJECTS = "instances/objects.json"  # in a benchmarks artifact
POPE_FILES = {setting: f"coco_pope_{setting}.json" for setting in ("random", "popular", "adversarial")}
VQA_ARCHIVES = {  # as published, and the file in each
    "v2_Questions_Val_mscoco.zip": "v2_OpenEnded_mscoco_val2014_questions.json",
    "v2_Annotations_Val_mscoco.zip": "v2_mscoco_val2014_annotations.json",
}
_VQA_FILES = {"questions": "questions.json", "annotations": "annotations.json"}
_MADE = Path(OBJECTS).name  # what is made here of COCO's annotations; a mirror offers it
_COCO = "annotations_trainval2014.zip"
_COCO_FILES = [
    [f"instances_{split}.json", f"captions_{split}.json"] for split in ("val2014", "train2014", "val2017", "train2017")
]
_PUBLISHED = {  # what a location may hold, the first that is whole is taken
    "pope": [[*POPE_FILES.values()], [f"{name}l" for name in POPE_FILES.values()]],  # some repackage it as .jsonl
    "vqa": [[*_VQA_FILES.values()], [*VQA_ARCHIVES.values()], [*VQA_ARCHIVES]],
    "instances": [[_MADE], *_COCO_FILES, [_COCO]],
}


@dataclasses.dataclass(frozen=True, slots=True)
class PopeQuestion:
    """Is this object in the image?"""

    question_id: int  # distinct within its setting
    image: str  # file name, as in the image shards
    text: str  # the question
    label: str  # "yes" or "no"


@dataclasses.dataclass(frozen=True, slots=True)
class VqaQuestion:
    """An open question with its annotators' answers."""

    question_id: int  # distinct
    image: str  # file name, as in the image shards
    image_id: str  # identity of the photograph, see `shards.image_id`
    question: str  # the question
    answers: list[str]  # one an annotator (ten in VQA v2), as written
    answer_type: str  # "yes/no", "number" or "other"
    question_type: str  # its first words, e.g. "how many"


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    """What is in a picture, as far as people have said."""

    image_id: str  # identity of the photograph, see `shards.image_id`
    objects: tuple[str, ...]  # categories that annotators have outlined
    captions: tuple[str, ...]  # what people have written about it


# From a benchmarks artifact


def load_pope(folder: Path) -> dict[str, list[PopeQuestion]]:
    """Read the POPE files of a benchmarks artifact, JSON lines in its `pope/`.

    Returns:
        Questions by setting, in the files' order; {} where the artifact has no `pope/`.

    Raises:
        InputError: a file is absent, empty or has a faulty line; the sentence names the line.
    """
    there = POPE_FILES if (folder / "pope").is_dir() else {}
    return {setting: _pope_setting(folder / "pope" / name) for setting, name in there.items()}


def load_vqa(folder: Path) -> list[VqaQuestion]:
    """Read the VQA v2 questions of a benchmarks artifact, in its `vqa/`, and join them with their annotations.

    Returns:
        Questions in the file's order; [] where the artifact has no `vqa/`.

    Raises:
        InputError: a file is absent or faulty, ids repeat, or a question has no annotation or the reverse.
    """
    if not (folder / "vqa").is_dir():
        return []
    path, other = (folder / "vqa" / name for name in _VQA_FILES.values())
    header, questions = _vqa_entries(path, "questions", {"question": str})
    _, annotations = _vqa_entries(other, "annotations", {"answers": list, "answer_type": str, "question_type": str})
    if questions.keys() != annotations.keys():
        alone = min(questions.keys() ^ annotations.keys())
        has, lacks = (path, other) if alone in questions else (other, path)
        raise InputError(f"vqa: question {alone} is in {has} but not in {lacks}. Give two files of the same release.")
    found = []
    for number, question in questions.items():
        annotation = annotations[number]
        if question["image_id"] != annotation["image_id"]:
            raise InputError(f"vqa: question {number} asks about another image than its annotation in {other}.")
        answers: list[Any] = [item.get("answer") if isinstance(item, dict) else None for item in annotation["answers"]]
        if not answers or not _are_texts(answers):
            raise InputError(f"vqa: the annotation of question {number} in {other} has no list of answers.")
        name = vqa_file_name(question["image_id"], str(header.get("data_subtype", "")))
        kinds = annotation["answer_type"], annotation["question_type"]
        found.append(VqaQuestion(number, name, image_id(name), question["question"], answers, *kinds))
    return found


def load_objects(path: Path) -> tuple[list[str], dict[str, Described]]:
    """Read which objects are in the pictures that a model is to describe.

    Args:
        path: {"categories": [name], "images": {file name: {"objects": [name], "captions": [text]}}}.

    Returns:
        All categories, and what is known of each picture by file name; nothing where there is no such file.

    Raises:
        InputError: the file is faulty.
    """
    if not path.is_file():
        return [], {}
    found = files.read_json(path, "chair")
    described = {}
    try:
        categories = found["categories"]
        for image, entry in found["images"].items():
            objects, captions = entry["objects"], entry["captions"]
            if not all(isinstance(value, list) and _are_texts(value) for value in (categories, objects, captions)):
                raise TypeError
            if unknown := sorted({*objects} - {*categories}):
                raise InputError(f"chair: {image} in {path} holds {unknown[0]!r}, which is none of its categories.")
            described[image] = Described(image_id(image), tuple(objects), tuple(captions))
    except (KeyError, TypeError, AttributeError):
        shape = "{'categories': [name], 'images': {file: {'objects': [name], 'captions': [text]}}}"
        raise InputError(f"chair: {path} is not {shape}.") from None
    return categories, described


def _pope_setting(path: Path) -> list[PopeQuestion]:
    fields = {"question_id": int, "image": str, "text": str, "label": str}
    questions = []
    rows = _checked("pope", path, files.read_jsonl(path, "pope"), fields)
    for place, (number, row) in enumerate(rows.items(), start=1):
        label = row["label"].strip().lower()
        if label not in ("yes", "no"):
            raise InputError(f"pope: question {place} of {path} has the label {row['label']!r}; yes and no are known.")
        questions.append(PopeQuestion(number, row["image"], row["text"], label))
    if not questions:
        raise InputError(f"pope: {path} holds no question. Give a file in the format of POPE.")
    return questions


def _vqa_entries(path: Path, key: str, fields: Mapping[str, type]) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Return one VQA v2 file, and its entries by question id; `key` is what it lists."""
    document = files.read_json(path, "vqa")
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"vqa: {path} holds no list {key!r}. Give a file in the format of VQA v2.")
    return document, _checked("vqa", path, entries, {"question_id": int, "image_id": int, **fields})


def _checked(what: str, path: Path, entries: Iterable[Any], fields: Mapping[str, type]) -> dict[int, dict[str, Any]]:
    """Return entries by question id, if each has its fields and no text has the tag that stands for an image."""
    by_id: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries, start=1):
        for name, kind in fields.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise InputError(f"{what}: question {place} of {path} has no {name!r} of type {kind.__name__}.")
            if name in ("question", "text") and IMAGE_TAG in entry[name]:
                raise InputError(
                    f"{what}: question {place} of {path} has {IMAGE_TAG} in its text. Remove it: it is put there."
                )
        if entry["question_id"] in by_id:
            raise InputError(
                f"{what}: question_id {entry['question_id']} stands twice in {path}. Ids must be distinct."
            )
        by_id[entry["question_id"]] = entry
    return by_id


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(text, str) for text in values)


# To a benchmarks artifact


def published_names(source: Source, part: str) -> list[str]:
    """Return the names of the files of "pope", "vqa" or "instances" that lie at a location.

    Raises:
        InputError: none of the layouts in which they are published lies there whole.
    """
    try:
        for names in _PUBLISHED[part]:
            if all(source.exists(name) for name in names):
                return names
    except Unavailable as error:
        raise InputError(f"benchmarks.{part}: {source.uri} cannot be had ({error}). Check the address.") from None
    known = ", nor ".join(" and ".join(names) for names in _PUBLISHED[part])
    raise InputError(f"benchmarks.{part}: {source.uri} holds neither {known}. Give the place of these files.")


def fetch_pope(source: Source, folder: Path) -> None:
    """Write the three POPE files.

    Raises:
        InputError: one of them cannot be had.
    """
    for name, published in zip(POPE_FILES.values(), published_names(source, "pope"), strict=True):
        _fetch(source, published, folder / name, "pope")


def fetch_vqa(source: Source, folder: Path) -> None:
    """Write `questions.json` and `annotations.json`.

    Raises:
        InputError: they cannot be had.
    """
    for name, published in zip(_VQA_FILES.values(), published_names(source, "vqa"), strict=True):
        if published in VQA_ARCHIVES:
            with tempfile.TemporaryDirectory(prefix="mmgemma-vqa-") as scratch:
                packed = Path(scratch) / published
                _fetch(source, published, packed, "vqa")
                archive = Archive(packed, f"{source.uri.rstrip('/')}/{published}")
                _fetch(archive, VQA_ARCHIVES[published], folder / name, "vqa")
        else:
            _fetch(source, published, folder / name, "vqa")


def draw_vqa(folder: Path, count: int) -> None:
    """Keep `count` of the questions in `folder`, and their annotations, or all if there are no more.

    Questions are ranked by a hash of their id, so the draw does not depend on their order or number.

    Raises:
        InputError: `questions.json` or `annotations.json` in `folder` is no list of questions.
    """
    documents = {key: _vqa_entries(folder / name, key, {}) for key, name in _VQA_FILES.items()}
    ids = documents["questions"][1]
    if len(ids) <= count:
        return
    kept = set(sorted(ids, key=lambda number: hashlib.sha256(f"vqa/{number}".encode()).digest())[:count])
    for key, (document, entries) in documents.items():
        left = [entry for number, entry in entries.items() if number in kept]
        files.write_json(folder / _VQA_FILES[key], {**document, key: left})


def fetch_instances(source: Source, path: Path, images: Iterable[str]) -> None:
    """Write which objects are in some pictures, and what their captions say, see `load_objects`.

    Args:
        source: where the annotations lie: COCO's files, its archive, or what was made of them here.
        path: the file to write.
        images: file names of the pictures.

    Raises:
        InputError: the annotations cannot be had, are faulty, or do not know one of the pictures.
    """
    wanted = sorted(set(images))
    names = published_names(source, "instances")
    with tempfile.TemporaryDirectory(prefix="mmgemma-instances-") as scratch:
        folder = Path(scratch)
        for name in names:
            _fetch(source, name, folder / name, "instances")
        if names == [_COCO]:
            names, packed = _COCO_FILES[0], Archive(folder / _COCO, f"{source.uri.rstrip('/')}/{_COCO}")
            for name in names:
                _fetch(packed, name, folder / name, "instances")
        if names == [_MADE]:
            categories, known = load_objects(folder / _MADE)
            found = {image: {"objects": [*one.objects], "captions": [*one.captions]} for image, one in known.items()}
        else:
            categories, found = _of_coco(folder / names[0], folder / names[1], wanted)
    missing = [image for image in wanted if image not in found]
    if missing:
        raise InputError(
            f"benchmarks.instances: {source.uri} does not know {len(missing):,} of the {len(wanted):,} pictures of "
            f"POPE, the first is {missing[0]}. Give the annotations of the same release."
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


def _fetch(source: Source | Archive, name: str, destination: Path, part: str) -> None:
    try:
        source.fetch(name, destination)
    except Unavailable as error:
        raise InputError(
            f"benchmarks.{part}: {name} at {source.uri} cannot be had ({error}). Check the location."
        ) from None


def vqa_file_name(number: int, subtype: str) -> str:
    """Return the file name of a VQA v2 question's image.

    Args:
        number: the question's `image_id`.
        subtype: `data_subtype` of the question file; releases of 2014 put their name before the digits.

    Returns:
        E.g. "COCO_val2014_000000310196.jpg" for val2014, "000000310196.jpg" for train2017.
    """
    prefix = f"COCO_{subtype}_" if subtype.endswith("2014") else ""
    return f"{prefix}{number:012d}.jpg"
