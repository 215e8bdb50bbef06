"""VQA v2 accuracy as the official scorer computes it, and what a model that ignores the image would get.

An answer counts as right as far as the ten annotators gave it too: three of the nine others are enough for full marks.
Numbers in papers come from the official scorer, so the quirks of its normalisation are kept: a punctuation mark becomes
a space unless it stands beside one, or unless the text holds a number like "1,000" anywhere; only the first 32 periods
go; "eleven" stays a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from multimodal_gemma.errors import InputError

_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # ':' and "'" are not among them
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_MOST_PERIODS = 32  # the official scorer passes re.UNICODE, which is 32, where the count belongs
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
# Each is recognised with exactly one of its apostrophes left out ("couldnt've", "couldn'tve"). The table is applied to
# lower-case text, so the official entries with a capital I never take effect and are not repeated here.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CORRECTED = {
    word[: match.start()] + word[match.end() :]: word
    for word in _CONTRACTIONS.split()
    for match in re.finditer("'", word)
}
_CORRECTED["somebody'd"] = "somebodyd"  # turned round in the official table


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


def strip(text: str) -> str:
    """Return `text` on one line, without space around it: what the official scorer does to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalized(text: str) -> str:
    """Return an answer without punctuation, articles and case, with digits for number words and whole contractions.

    Source: processPunctuation and processDigitArticle of the official VQA v2 evaluation (Goyal et al., 2017).
    """
    has_number, result = _NUMBER_WITH_COMMA.search(text) is not None, text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or has_number else " ")
    bare = _PERIOD.sub("", result, count=_MOST_PERIODS)
    digits = (_DIGITS.get(word, word) for word in bare.lower().split())
    return " ".join(_CORRECTED.get(word, word) for word in digits if word not in _ARTICLES)
