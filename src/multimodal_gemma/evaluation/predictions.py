"""One row a question: what was asked, said and scored; and two models compared on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.answers import Answer
from multimodal_gemma.evaluation.normalization import normalize, strip
from multimodal_gemma.evaluation.pope import parse_answer
from multimodal_gemma.evaluation.questions import Question
from multimodal_gemma.evaluation.statistics import Estimate, paired_difference
from multimodal_gemma.evaluation.vqa import vqa_accuracy

NAME = "predictions.jsonl"
Row = dict[str, Any]


def row(question: Question, answer: Answer) -> Row:
    """Return the scored row of one question.

    Keys: benchmark, question_id, image, image_id, question, prediction, parsed, p_yes, score and strict_score in [0,
        1]; POPE
    adds label and object, VQA answers, answer_type and question_type. `score` is the official one.
    """
    common = {
        "benchmark": question.benchmark,
        "question_id": question.question_id,
        "image": question.image,
        "image_id": question.image_id,
        "question": question.text,
        "prediction": answer.text,
        "p_yes": None if answer.p_yes is None else round(answer.p_yes, 6),
    }
    if question.setting:
        parsed = parse_answer(answer.text)
        strict = parse_answer(answer.text, mode="strict")
        return common | {
            "parsed": parsed,
            "label": question.label,
            "object": question.object,
            "score": float(parsed == question.label),
            "strict_score": float(strict == question.label),
        }
    return common | {
        "parsed": normalize(strip(answer.text)),
        "answers": list(question.answers),
        "answer_type": question.answer_type,
        "question_type": question.question_type,
        "score": vqa_accuracy(answer.text, question.answers),
        "strict_score": vqa_accuracy(answer.text, question.answers, normalize="always"),
    }


def rows(questions: Sequence[Question], answers: Mapping[str, Mapping[str, Answer]]) -> list[Row]:
    """Return the rows of all questions, in their order; equal questions about an image share their answer."""
    return [row(question, answers[question.image][question.text]) for question in questions]


def load(evaluation: Path) -> list[Row]:
    """Read the rows of a finished evaluation."""
    return files.read_jsonl(evaluation / NAME, "predictions")


def compare(ours: Sequence[Row], theirs: Sequence[Row], benchmark: str, *, confidence: float = 0.95) -> Estimate:
    """Return the paired difference ours - theirs of two models on one benchmark.

    Args:
        ours: rows of one evaluation.
        theirs: rows of the other.
        benchmark: "vqa", one POPE setting such as "pope/random", or "pope" for all settings.
        confidence: probability that the interval covers.

    Raises:
        InputError: the two were not asked the same questions, or none of that benchmark.
    """
    mine, other = _by_question(ours, benchmark), _by_question(theirs, benchmark)
    if not mine or mine.keys() != other.keys():
        raise InputError(
            f"evaluate: the two evaluations cannot be compared on {benchmark}: {len(mine.keys() & other.keys()):,} "
            f"questions in common, {len(mine.keys() ^ other.keys()):,} in one only. Evaluate both models on the same "
            "benchmarks."
        )
    order = list(mine)
    return paired_difference(
        [mine[key]["score"] for key in order],
        [other[key]["score"] for key in order],
        [mine[key]["image_id"] for key in order],
        confidence=confidence,
    )


def _by_question(scored: Sequence[Row], benchmark: str) -> dict[tuple[str, int, str], Row]:
    inside = [
        entry for entry in scored if entry["benchmark"].split("/")[0] == benchmark or entry["benchmark"] == benchmark
    ]
    return {(entry["benchmark"], entry["question_id"], entry["question"]): entry for entry in inside}
