"""All questions of a benchmarks artifact in one shape, and the distinct ones among them.

POPE's three settings share many questions: of 9,000 published ones 5,127 are distinct. Each distinct pair of image and
question is asked once, and its answer scored wherever it stands.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from multimodal_gemma.data.benchmarks import load_pope, load_vqa
from multimodal_gemma.data.image_names import image_id
from multimodal_gemma.errors import InputError

VQA = "vqa"
_POPE = "pope/"
_OBJECT = re.compile(r"is there (?:an? |any )?(.+?)(?: in the (?:image|picture|photo|scene))?\s*\?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        benchmark: "vqa", or "pope/" and the setting, e.g. "pope/random".
        question_id: distinct within its benchmark.
        image: file name in the image shards.
        image_id: identity of the photograph.
        text: the question.
        label: POPE's "yes" or "no"; "" for VQA.
        answers: VQA's annotators; () for POPE.
        answer_type: VQA's "yes/no", "number" or "other"; "" for POPE.
        question_type: VQA's first words, e.g. "how many"; "" for POPE.
    """

    benchmark: str
    question_id: int
    image: str
    image_id: str
    text: str
    label: str = ""
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    question_type: str = ""

    @property
    def setting(self) -> str:
        """POPE's setting, e.g. "random"; "" for VQA."""
        return self.benchmark.removeprefix(_POPE) if self.benchmark.startswith(_POPE) else ""

    @property
    def object(self) -> str:
        """What a presence question asks for, e.g. "snowboard"; the whole text where it is asked differently."""
        match = _OBJECT.fullmatch(self.text.strip())
        return match.group(1) if match else self.text


def load(benchmarks: Path) -> list[Question]:
    """Read the questions of POPE's settings, then those of VQA.

    Raises:
        InputError: a file is faulty, or the artifact asks nothing.
    """
    questions = [
        Question(f"{_POPE}{setting}", asked.question_id, asked.image, image_id(asked.image), asked.text, asked.label)
        for setting, settings in load_pope(benchmarks).items()
        for asked in settings
    ]
    for vqa in load_vqa(benchmarks):
        kinds = vqa.answer_type, vqa.question_type
        questions.append(
            Question(VQA, vqa.question_id, vqa.image, vqa.image_id, vqa.question, "", tuple(vqa.answers), *kinds)
        )
    if not questions:
        raise InputError(
            f"evaluate: {benchmarks} asks nothing: it has neither pope/ nor vqa/. Give benchmarks.pope or "
            "benchmarks.vqa and download again."
        )
    return questions


def distinct(questions: Iterable[Question]) -> dict[str, list[str]]:
    """Return the distinct texts asked about each image, images by file name, texts in their first order."""
    by_image: dict[str, dict[str, None]] = {}
    for question in questions:
        by_image.setdefault(question.image, {})[question.text] = None
    return {image: list(by_image[image]) for image in sorted(by_image)}
