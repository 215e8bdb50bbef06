"""POPE: does the model see objects that are not there? Official parsing and metrics, and a strict variant.

The official parser reads everything that does not say "no" as yes, the empty answer too. That is how published numbers
are made; the strict variant shows how many answers were neither yes nor no.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from multimodal_gemma.errors import InputError

Mode = Literal["official", "strict"]
_WORD = re.compile(r"[a-z']+")


def parse_answer(text: str, *, mode: Mode = "official") -> Literal["yes", "no"] | None:
    """Read a yes or a no out of an answer.

    Args:
        text: the model's answer.
        mode: "official" (Li et al., 2023): the text before the first period, without commas, split at spaces; "no" if
            one of the words No, not, no is there, else "yes". "strict": the first word must be yes or no, in any case,
            and the other one must not follow.

    Returns:
        "yes" or "no"; None, in strict mode only, where the answer is neither.
    """
    if mode == "official":
        words = text.split(".", 1)[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"
    found = _WORD.findall(text.lower())
    if not found or found[0] not in ("yes", "no") or {"yes", "no"} <= set(found):
        return None
    return "yes" if found[0] == "yes" else "no"


def pope_metrics(answers: Sequence[str], labels: Sequence[str], *, mode: Mode = "official") -> dict[str, float]:
    """Score the answers to a set of presence questions.

    Args:
        answers: the model's answers.
        labels: "yes" or "no", one an answer.
        mode: how answers are read, see `parse_answer`. An invalid answer is wrong and no part of the confusion counts.

    Returns:
        accuracy, precision, recall, f1, yes_ratio in [0, 1]; tp, fp, tn, fn, count; in strict mode invalid and
        invalid_rate too. A ratio without cases is 0.

    Raises:
        InputError: the lengths differ, nothing is there, or a label is neither yes nor no.
    """
    if len(answers) != len(labels) or not labels:
        raise InputError(f"pope: {len(answers)} answers do not fit {len(labels)} labels. Give one answer a question.")
    for number, label in enumerate(labels, start=1):
        if label not in ("yes", "no"):
            raise InputError(f"pope: label {number} is {label!r}, neither 'yes' nor 'no'. Check the question file.")
    pairs = [(parse_answer(answer, mode=mode), label) for answer, label in zip(answers, labels, strict=True)]
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    tn, fn = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, labels.count("yes"))
    metrics: dict[str, float] = {
        "accuracy": _ratio(tp + tn, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(tp + fp, len(pairs)),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "count": len(pairs),
    }
    if mode == "strict":
        invalid = len(pairs) - tp - fp - tn - fn
        metrics |= {"invalid": invalid, "invalid_rate": _ratio(invalid, len(pairs))}
    return metrics


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
