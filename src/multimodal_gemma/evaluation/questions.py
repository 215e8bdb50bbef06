"""All questions of a benchmarks artifact in one shape, the distinct ones among them, and what came of each.

POPE's three settings share many questions: of 9,000 published ones 5,127 are distinct. Each distinct pair of image and
question is asked once, and its answer scored wherever it stands. No score is made before it is known whether the model
has learnt from the images. Two models are compared on the questions that both have answered.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.pope import parse_answer
from multimodal_gemma.evaluation.statistics import Estimate, paired_difference
from multimodal_gemma.evaluation.vqa import normalized, strip, vqa_accuracy

if TYPE_CHECKING:
    from multimodal_gemma.evaluation.asking import Answer

Row = dict[str, Any]
PREDICTIONS = "predictions.jsonl"
VQA = "vqa"
_SHOWN = 10  # ids that an error lists
_PUBLISHED = {"pope": ("AoiDragon/POPE/", "POPE"), "vqa": ("/cvmlp/vqa/mscoco/vqa", "VQA v2")}
_POPE = "pope/"
_OBJECT = re.compile(r"is there (?:an? |any )?(.+?)(?: in the (?:image|picture|photo|scene))?\s*\?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a benchmark."""

    benchmark: str  # "vqa", or "pope/" and the setting, e.g. "pope/random"
    question_id: int  # distinct within its benchmark
    image: str  # file name in the image shards
    image_id: str  # identity of the photograph
    text: str  # the question
    label: str = ""  # POPE's "yes" or "no"; "" for VQA
    answers: tuple[str, ...] = ()  # VQA's annotators; () for POPE
    answer_type: str = ""  # VQA's "yes/no", "number" or "other"; "" for POPE
    question_type: str = ""  # VQA's first words, e.g. "how many"; "" for POPE

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
    from multimodal_gemma.data.benchmarks import load_pope, load_vqa
    from multimodal_gemma.data.shards import image_id

    questions = [
        Question(f"{_POPE}{setting}", asked.question_id, asked.image, image_id(asked.image), asked.text, asked.label)
        for setting, settings in load_pope(benchmarks).items()
        for asked in settings
    ] + [
        Question(VQA, *(vqa.question_id, vqa.image, vqa.image_id, vqa.question, ""), tuple(vqa.answers),
                 vqa.answer_type, vqa.question_type)
        for vqa in load_vqa(benchmarks)
    ]  # fmt: skip
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


def names(benchmarks: Path) -> dict[str, str]:
    """Return what the questions of "pope" and "vqa" are called: by the benchmark only where they are its own."""
    path = benchmarks / "sources.json"
    origins = files.read_json(path, "benchmarks").get("sources", {}) if path.is_file() else {}
    found = {}
    for kind, (place, published) in _PUBLISHED.items():
        uri = str(origins.get(f"benchmarks.{kind}", {}).get("uri", ""))
        form = f"{kind.upper()}-format questions"
        if uri.startswith("sample:"):
            found[kind] = f"{form} on sample scenes"
        elif place in uri:
            found[kind] = published
        else:
            name = uri.rstrip("/").rpartition("/")[2]
            found[kind] = f"{form} of {name}" if name else form
    return found


def contamination(model: Path, dataset: Path | None, images: Iterable[str], policy: str) -> dict[str, Any]:
    """Compare the images that a model was trained on with those that it is to be asked about.

    Args:
        model: folder that may hold training_images.txt, one image id a line.
        dataset: processed dataset that it was trained on, read where the model lists none.
        images: image ids of all questions.
        policy: data.contamination; "allow" records hits, anything else refuses them.

    Returns:
        `status`: "clean", "allowed" or "unknown" (nothing states the training images); `images`: the ids of the hits.

    Raises:
        InputError: a training image is in the benchmark; the sentence lists the ids.
    """
    path = model / "training_images.txt"
    if path.is_file():
        trained = path.read_text(encoding="utf-8").split("\n")
    elif dataset is not None:
        from multimodal_gemma.data.processed import ProcessedDataset

        trained = list(ProcessedDataset(dataset).split("train").image_ids)
    else:
        return {"status": "unknown", "images": []}
    hits = sorted(set(images) & (set(trained) - {""}))
    if hits and policy != "allow":
        more = f" and {len(hits) - _SHOWN:,} more" if len(hits) > _SHOWN else ""
        raise InputError(
            f"evaluate: {len(hits):,} images of the benchmarks were in the training split, so a score would mean "
            f"nothing: {', '.join(hits[:_SHOWN])}{more}. Preprocess with data.contamination=drop and train again, or "
            "accept it with data.contamination=allow."
        )
    return {"status": "allowed" if hits else "clean", "images": hits}


def seen(metrics: Mapping[str, Any]) -> str:
    """Say what metrics.json knows of training images in the benchmarks."""
    found = metrics.get("contamination", {})
    if found.get("status") == "clean":
        return "No image of the training split is in a benchmark."
    if found.get("status") == "allowed":
        return (
            f"{len(found['images']):,} of the benchmarks' images were in the training split, which the configuration "
            "allowed: the scores overstate what the model can do."
        )
    return "It is unknown whether training images are in a benchmark: the model does not state what it learnt from."


def rows(questions: Sequence[Question], answers: Mapping[str, Mapping[str, Answer]]) -> list[Row]:
    """Return the scored rows of all questions, in their order; equal questions about an image share their answer.

    Keys: benchmark, question_id, image, image_id, question, prediction, parsed, p_yes, score and strict_score in
    [0, 1]; POPE adds label and object, VQA answers, answer_type and question_type. `score` is the official one.
    """
    return [_row(question, answers[question.image][question.text]) for question in questions]


def _row(question: Question, answer: Answer) -> Row:
    row = {
        "benchmark": question.benchmark,
        "question_id": question.question_id,
        "image": question.image,
        "image_id": question.image_id,
        "question": question.text,
        "prediction": answer.text,
        "p_yes": None if answer.p_yes is None else round(answer.p_yes, 6),
    }
    if question.label:
        parsed = parse_answer(answer.text)
        return row | {
            "parsed": parsed,
            "label": question.label,
            "object": question.object,
            "score": float(parsed == question.label),
            "strict_score": float(parse_answer(answer.text, mode="strict") == question.label),
        }
    return row | {
        "parsed": normalized(strip(answer.text)),
        "answers": list(question.answers),
        "answer_type": question.answer_type,
        "question_type": question.question_type,
        "score": vqa_accuracy(answer.text, question.answers),
        "strict_score": vqa_accuracy(answer.text, question.answers, normalize="always"),
    }


def read_rows(evaluation: Path) -> list[Row]:
    """Read the rows of a finished evaluation."""
    return files.read_jsonl(evaluation / PREDICTIONS, "predictions")


def of(scored: Iterable[Row], benchmark: str) -> list[Row]:
    """Return the rows of "vqa", of one POPE setting such as "pope/random", or of "pope" as a whole."""
    return [one for one in scored if benchmark in (one["benchmark"], one["benchmark"].partition("/")[0])]


def pairs(ours: Iterable[Row], theirs: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Return the rows of the questions that two models have both answered, in the order of ours.

    Identifiers are only unique within a benchmark's file, and another file may reuse them: image and text count too.
    """
    other = {_key(one): one for one in theirs}
    return [(one, other[_key(one)]) for one in ours if _key(one) in other]


def difference(paired: Sequence[tuple[Row, Row]], *, confidence: float = 0.95) -> Estimate:
    """Return the paired difference ours - theirs of `pairs`, clustered by image; each benchmark weighs the same."""
    sizes = Counter(ours["benchmark"] for ours, _ in paired)
    return paired_difference(
        [float(ours["score"]) for ours, _ in paired],
        [float(theirs["score"]) for _, theirs in paired],
        [str(ours["image"]) for ours, _ in paired],
        confidence=confidence,
        weights=[1 / sizes[ours["benchmark"]] for ours, _ in paired],
    )


def compare(ours: Iterable[Row], theirs: Iterable[Row], *, confidence: float) -> dict[str, dict[str, Any]]:
    """Compare two evaluations on the very same questions.

    Returns:
        By `pope_accuracy` and `vqa_accuracy`, where asked: `ours` and `theirs`, their `difference` with its `interval`
        (see `difference`), and how many `questions` about how many `images` were asked.
    """
    both, found = pairs(ours, theirs), {}
    for benchmark in ("pope", "vqa"):
        if asked := [pair for pair in both if of(pair[:1], benchmark)]:
            against = difference(asked, confidence=confidence)
            found[f"{benchmark}_accuracy"] = {
                "ours": sum(row["score"] for row, _ in asked) / len(asked),
                "theirs": sum(row["score"] for _, row in asked) / len(asked),
                "difference": against.mean,
                "interval": list(against.interval or ()),
                "questions": len(asked),
                "images": against.clusters,
            }
    return found


def _key(one: Row) -> tuple[str, int, str, str]:
    return one["benchmark"], one["question_id"], one["image"], one["question"]
