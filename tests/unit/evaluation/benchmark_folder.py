"""A small benchmarks artifact, written as the benchmark download leaves it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from multimodal_gemma import manifest
from multimodal_gemma.data.shards import write_image_shards
from tests.unit.evaluation import tiny

OBJECTS = ("dog", "cat", "car", "snowboard")
IMAGES = 4


def name(number: int) -> str:
    """The file name of an image."""
    return f"COCO_val2014_{number:012d}.jpg"


def write(folder: Path, *, images: int = IMAGES, shards: int | None = None) -> Path:
    """Four presence questions an image (two in the popular setting) and two open ones, one with ten answers.

    Args:
        folder: where it goes.
        images: how many are asked about.
        shards: how many are there; None for all.
    """
    contents = []
    for number, image in enumerate(tiny.images(images)):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        contents.append((name(number), stream.getvalue()))
    write_image_shards(folder, contents[:shards])
    (folder / "pope").mkdir()
    for setting in ("random", "popular", "adversarial"):
        lines = [
            {"image": name(number), "text": f"Is there a {thing} in the image?", "label": ("no", "yes")[place % 2]}
            for number in range(images)
            for place, thing in enumerate(OBJECTS[: 2 if setting == "popular" else 4])
        ]
        text = "".join(json.dumps({"question_id": index + 1, **line}) + "\n" for index, line in enumerate(lines))
        (folder / "pope" / f"coco_pope_{setting}.json").write_text(text)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(images):
        for place, (question, kind) in enumerate([("what color is the dog ?", "other"), ("how many cat ?", "number")]):
            ids = {"image_id": number, "question_id": 10 * number + place}
            answers = ["red"] * 8 + ["blue"] * 2 if kind == "other" else ["2", "2", "3"]
            questions.append({**ids, "question": question})
            annotations.append(
                {
                    **ids,
                    "answer_type": kind,
                    "question_type": " ".join(question.split()[:2]),
                    "answers": [{"answer": answer, "answer_id": index} for index, answer in enumerate(answers)],
                }
            )
    (folder / "vqa").mkdir()
    (folder / "vqa" / "questions.json").write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    (folder / "vqa" / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    manifest.write(folder, "benchmarks", config={})
    return folder
