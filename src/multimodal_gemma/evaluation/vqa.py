"""VQA v2 accuracy as the official scorer computes it, and what a model that ignores the image would get.

An answer counts as right as far as the ten annotators gave it too: three of the nine others are enough for full marks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.normalization import normalize as normalized
from multimodal_gemma.evaluation.normalization import strip


def vqa_accuracy(
    prediction: str, answers: Sequence[str], *, normalize: Literal["official", "always"] = "official"
) -> float:
    """Score one answer against its annotators (Goyal et al., 2017).

    The mean, over each annotator left out in turn, of min(1, matching others / 3). With ten annotators, 0, 1, 2, 3 and
    4 matches give 0, 0.3, 0.6, 0.9 and 1. Fewer annotators are scored by the same rule.

    Args:
        prediction: the model's answer.
        answers: one answer an annotator, usually ten.
        normalize: "official" normalises both sides only where the annotators disagree, so that "Yes" fails against ten
            times "yes", as in published numbers; "always" normalises in any case.

    Returns:
        Accuracy in [0, 1].

    Raises:
        InputError: there are no answers.
    """
    if not answers:
        raise InputError("vqa: a question has no annotators' answers, so nothing can be scored. Check the annotations.")
    given, truths = strip(prediction), [strip(answer) for answer in answers]
    if normalize == "always" or len(set(truths)) > 1:
        given, truths = normalized(given), [normalized(truth) for truth in truths]
    matches = sum(truth == given for truth in truths)
    scores = [min(1.0, (matches - (truth == given)) / 3) for truth in truths]
    return sum(scores) / len(scores)


def majority_answer(answers: Iterable[Sequence[str]]) -> str:
    """Return the normalised answer that annotators gave most often over a set of questions; ties go alphabetically."""
    counts = Counter(normalized(strip(answer)) for given in answers for answer in given)
    if not counts:
        raise InputError("vqa: there are no questions, so there is no most frequent answer.")
    return min(counts, key=lambda answer: (-counts[answer], answer))


def majority_baseline(answers: Sequence[Sequence[str]]) -> float:
    """Return the official accuracy of giving the most frequent answer to every question, in [0, 1]."""
    constant = majority_answer(answers)
    return sum(vqa_accuracy(constant, given) for given in answers) / len(answers)
