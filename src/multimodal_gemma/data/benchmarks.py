"""The questions that a model is scored on: POPE (Li et al., 2023) and VQA v2 (Goyal et al., 2017), as published.

POPE asks whether an object is in a picture, in three files that differ in how the absent objects were drawn. VQA v2
asks open questions, each answered by ten people. Every fault of a file is found here, before a model is loaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.data.conversations import IMAGE_TAG
from multimodal_gemma.data.image_names import image_id, vqa_file_name
from multimodal_gemma.errors import InputError

OBJECTS = "instances/objects.json"  # in a benchmarks artifact
POPE_SETTINGS = ("random", "popular", "adversarial")


@dataclasses.dataclass(frozen=True, slots=True)
class PopeQuestion:
    """Is this object in the image?

    Attributes:
        question_id: distinct within its setting.
        image: file name, as in the image shards.
        text: the question.
        label: "yes" or "no".
    """

    question_id: int
    image: str
    text: str
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class VqaQuestion:
    """An open question with its annotators' answers.

    Attributes:
        question_id: distinct.
        image: file name, as in the image shards.
        image_id: identity of the photograph, see `image_names.image_id`.
        question: the question.
        answers: one an annotator (ten in VQA v2), as written.
        answer_type: "yes/no", "number" or "other".
        question_type: its first words, e.g. "how many".
    """

    question_id: int
    image: str
    image_id: str
    question: str
    answers: list[str]
    answer_type: str
    question_type: str


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    """What is in a picture, as far as people have said.

    Attributes:
        image_id: identity of the photograph, see `image_names.image_id`.
        objects: categories that annotators have outlined.
        captions: what people have written about it.
    """

    image_id: str
    objects: tuple[str, ...]
    captions: tuple[str, ...]


def pope_file(setting: str) -> str:
    """Return the published file name of a POPE setting."""
    return f"coco_pope_{setting}.json"


def load_pope(folder: Path) -> dict[str, list[PopeQuestion]]:
    """Read the POPE files of a benchmarks artifact.

    Args:
        folder: the artifact; its `pope/` holds `coco_pope_{random,popular,adversarial}.json`, one JSON object a line.

    Returns:
        Questions by setting, in the files' order; {} where the artifact has no `pope/`.

    Raises:
        InputError: a file is absent, empty or has a faulty line; the sentence names the line.
    """
    if not (folder / "pope").is_dir():
        return {}
    return {setting: _pope_setting(folder / "pope" / pope_file(setting)) for setting in POPE_SETTINGS}


def load_vqa(folder: Path) -> list[VqaQuestion]:
    """Read the VQA v2 questions of a benchmarks artifact and join them with their annotations.

    Args:
        folder: the artifact; its `vqa/` holds `questions.json` and `annotations.json`.

    Returns:
        Questions in the file's order; [] where the artifact has no `vqa/`.

    Raises:
        InputError: a file is absent or faulty, ids repeat, or a question has no annotation or the reverse.
    """
    if not (folder / "vqa").is_dir():
        return []
    path = folder / "vqa" / "questions.json"
    header, questions = vqa_entries(path, "questions", {"question": str})
    other = folder / "vqa" / "annotations.json"
    _, annotations = vqa_entries(other, "annotations", {"answers": list, "answer_type": str, "question_type": str})
    if questions.keys() != annotations.keys():
        alone = min(questions.keys() ^ annotations.keys())
        has, lacks = (path, other) if alone in questions else (other, path)
        raise InputError(f"vqa: question {alone} is in {has} but not in {lacks}. Give two files of the same release.")
    subtype = str(header.get("data_subtype", ""))
    return [_vqa_question(entry, annotations[number], subtype, other) for number, entry in questions.items()]


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
    wrong = InputError(
        f"chair: {path} is not {{'categories': [name], 'images': {{file: {{'objects': [name], 'captions': [text]}}}}}}."
    )
    if not isinstance(found, dict) or not isinstance(found.get("images"), dict):
        raise wrong
    categories: Any = found.get("categories")
    described = {}
    for image, entry in found["images"].items():
        objects: Any = entry.get("objects") if isinstance(entry, dict) else None
        captions: Any = entry.get("captions") if isinstance(entry, dict) else None
        if not all(_is_texts(value) for value in (categories, objects, captions)):
            raise wrong
        if unknown := sorted({*objects} - {*categories}):
            raise InputError(f"chair: {image} in {path} holds {unknown[0]!r}, which is none of its categories.")
        described[image] = Described(image_id(image), tuple(objects), tuple(captions))
    return list(categories or []), described


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def vqa_entries(path: Path, key: str, fields: dict[str, type]) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Read the entries of one VQA v2 file.

    Args:
        path: the file.
        key: what it lists, "questions" or "annotations".
        fields: what each entry must hold besides its two ids, and of which type.

    Returns:
        The whole document, and its entries by question id.

    Raises:
        InputError: the file is faulty or an id repeats.
    """
    document = files.read_json(path, "vqa")
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"vqa: {path} holds no list {key!r}. Give a file in the format of VQA v2.")
    wanted = {"question_id": int, "image_id": int, **fields}
    by_id: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        for name, kind in wanted.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise InputError(f"vqa: entry {index} of {key!r} in {path} has no {name!r} of type {kind.__name__}.")
        if entry["question_id"] in by_id:
            raise InputError(f"vqa: question_id {entry['question_id']} stands twice in {path}. Ids must be distinct.")
        by_id[entry["question_id"]] = entry
    return document, by_id


def _vqa_question(question: dict[str, Any], annotation: dict[str, Any], subtype: str, path: Path) -> VqaQuestion:
    number = question["question_id"]
    if question["image_id"] != annotation["image_id"]:
        raise InputError(f"vqa: question {number} asks about another image than its annotation in {path}.")
    given = [item.get("answer") if isinstance(item, dict) else None for item in annotation["answers"]]
    answers = [answer for answer in given if isinstance(answer, str)]
    if not answers or len(answers) < len(given):
        raise InputError(f"vqa: the annotation of question {number} in {path} has no list of answers.")
    if IMAGE_TAG in question["question"]:
        raise InputError(f"vqa: question {number} has {IMAGE_TAG} in its text; the image is put there. Remove it.")
    name = vqa_file_name(question["image_id"], subtype)
    kinds = annotation["answer_type"], annotation["question_type"]
    return VqaQuestion(number, name, image_id(name), question["question"], answers, *kinds)


def _pope_setting(path: Path) -> list[PopeQuestion]:
    questions = []
    seen = set()
    for line, row in enumerate(files.read_jsonl(path, "pope"), start=1):
        for name, kind in {"question_id": int, "image": str, "text": str, "label": str}.items():
            if not isinstance(row.get(name), kind):
                raise InputError(f"pope: question {line} of {path} has no {name!r} of type {kind.__name__}.")
        if IMAGE_TAG in row["text"]:
            raise InputError(f"pope: question {line} of {path} has {IMAGE_TAG}; the image is put there. Remove it.")
        label = row["label"].strip().lower()
        if label not in ("yes", "no"):
            raise InputError(f"pope: question {line} of {path} has the label {row['label']!r}; yes and no are known.")
        if row["question_id"] in seen:
            raise InputError(f"pope: question_id {row['question_id']} stands twice in {path}. Ids must be distinct.")
        seen.add(row["question_id"])
        questions.append(PopeQuestion(row["question_id"], row["image"], row["text"], label))
    if not questions:
        raise InputError(f"pope: {path} holds no question. Give a file in the format of POPE.")
    return questions
