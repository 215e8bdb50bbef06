"""POPE and VQA v2 files about held-out scenes, in the structure in which the two benchmarks are published.

POPE asks, of each image, for as many kinds that are there as for kinds that are not. The three settings differ in the
kinds that are not there: drawn at random, the most frequent ones, or those that most often keep company with what is
there, both as counted over the training scenes. VQA v2 gives each question ten annotators, of whom a few sometimes
dissent.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

from multimodal_gemma.sample import questions as ask
from multimodal_gemma.sample.questions import Question
from multimodal_gemma.sample.scenes import KINDS, Scene

POPE_SETTINGS = ("random", "popular", "adversarial")
POPE_PAIRS = 3  # at most so many present and as many absent kinds an image, as published
ANNOTATORS = 10
UNANIMOUS_SHARE = 0.7
MOST_DISSENTERS = 3
# How many questions of each family a scene gets, where it has so many to ask.
VQA_FAMILIES: dict[str, tuple[Callable[[Scene, random.Random], list[Question]], int]] = {
    "color_of": (lambda scene, rng: ask.color_of(scene), 2),
    "kind_by_color": (lambda scene, rng: ask.kind_by_color(scene), 1),
    "kind_by_place": (lambda scene, rng: ask.kind_by_place(scene), 1),
    "place_of": (lambda scene, rng: ask.place_of(scene), 1),
    "color_check": (ask.color_check, 1),
    "count_all": (lambda scene, rng: [ask.count_all(scene)], 1),
}


def pope_lines(
    scenes: dict[str, Scene], training: Sequence[Scene], setting: str, rng: random.Random
) -> list[dict[str, object]]:
    """Return the lines of one POPE file.

    Args:
        scenes: held-out scenes by image file name.
        training: the scenes over which frequency and company are counted.
        setting: "random", "popular" or "adversarial".
        rng: draws the present kinds and, in the random setting, the absent ones.

    Returns:
        {"question_id", "image", "text", "label"} a line, yes and no alternating.
    """
    frequency = Counter(kind for scene in training for kind in scene.kinds)
    company = Counter(pair for scene in training for pair in combinations(scene.kinds, 2))
    lines: list[dict[str, object]] = []
    for image, scene in scenes.items():
        absent = [kind for kind in KINDS if kind not in scene.kinds]
        rng.shuffle(absent)
        if setting == "popular":
            absent.sort(key=lambda kind: -frequency[kind])
        elif setting == "adversarial":
            absent.sort(key=lambda kind: -sum(company[_pair(kind, present)] for present in scene.kinds))
        present = rng.sample(scene.kinds, min(POPE_PAIRS, len(scene.kinds), len(absent)))
        for there, missing in zip(present, absent, strict=False):
            for kind in (there, missing):
                question = ask.presence(scene, kind)
                entry = {"question_id": len(lines) + 1, "image": image, "text": question.text, "label": question.answer}
                lines.append(entry)
    return lines


def vqa_files(scenes: dict[int, Scene], rng: random.Random) -> tuple[dict[str, object], dict[str, object]]:
    """Return the contents of questions.json and annotations.json.

    Args:
        scenes: held-out scenes by image id.
        rng: draws the questions and the dissenting annotators.

    Returns:
        The two published structures; question ids are image id * 1000 + running number.
    """
    header = {
        "info": {"description": "generated scenes, in VQA v2 format"},
        "data_type": "sample",
        "data_subtype": "held_out",
    }
    questions, annotations = [], []
    for image_id, scene in scenes.items():
        asked = [
            question for family, most in VQA_FAMILIES.values() for question in _some(family(scene, rng), most, rng)
        ]
        for number, question in enumerate(asked):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            questions.append({**ids, "question": question.text})
            annotations.append(
                {
                    "question_type": question.question_type,
                    "multiple_choice_answer": question.answer,
                    "answers": _annotate(question, rng),
                    **ids,
                    "answer_type": question.answer_type,
                }
            )
    return {**header, "task_type": "Open-Ended", "questions": questions}, {**header, "annotations": annotations}


def _pair(first: str, second: str) -> tuple[str, str]:
    return (first, second) if KINDS.index(first) < KINDS.index(second) else (second, first)


def _some(asked: list[Question], most: int, rng: random.Random) -> list[Question]:
    return rng.sample(asked, min(most, len(asked)))


def _annotate(question: Question, rng: random.Random) -> list[dict[str, object]]:
    dissenters = 0 if rng.random() < UNANIMOUS_SHARE else rng.randint(1, MOST_DISSENTERS)
    answers = [question.answer] * (ANNOTATORS - dissenters)
    answers += [rng.choice(question.mistakes) for _ in range(dissenters)]
    rng.shuffle(answers)
    return [
        {"answer": answer, "answer_confidence": "yes" if answer == question.answer else "maybe", "answer_id": number}
        for number, answer in enumerate(answers, start=1)
    ]
