"""VQA v2 accuracy against outputs of the official scorer, and rules worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.vqa import majority_answer, normalized, vqa_accuracy


def test_every_golden_accuracy_of_the_official_scorer_is_reproduced(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "golden" / "vqa_accuracy.jsonl").read_text().splitlines()]
    ours = [100 * vqa_accuracy(row["prediction"], row["answers"]) for row in rows]
    assert ours == pytest.approx([row["accuracy"] for row in rows], abs=1e-6)


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators_give_the_five_official_scores(matches: int, expected: float) -> None:
    answers = ["dog"] * matches + ["cat"] * (10 - matches)
    assert vqa_accuracy("dog", answers) == pytest.approx(expected)


def test_fewer_than_ten_answers_are_scored_by_the_same_rule() -> None:
    # Two of five: leaving out a match leaves 1 of 3 needed, leaving out another leaves 2: (2 * 1/3 + 3 * 2/3) / 5.
    assert vqa_accuracy("dog", ["dog", "dog", "cat", "cow", "hen"]) == pytest.approx(8 / 15)
    assert vqa_accuracy("dog", ["dog"]) == 0.0


def test_unanimous_answers_are_compared_as_they_stand_unless_asked_otherwise() -> None:
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes.", ["yes"] * 10, normalize="always") == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    assert vqa_accuracy(" yes\n", ["yes"] * 10) == 1.0  # line breaks and outer space go in any case


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs, eleven cats", "2 dogs eleven cats"),
        ("none", "0"),
        ("t-shirt", "t shirt"),  # no space beside the mark: it becomes one
        ("t- shirt", "t shirt"),  # a space beside it: it vanishes
        ("1,000 t-shirts", "1000 tshirts"),  # a number with a comma makes every mark vanish
        ("3.5 m.", "3.5 m"),  # only a period before a digit stays
        ("it's 5:30", "it's 5:30"),  # colon and apostrophe stay
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # both apostrophes missing: unknown to the official table
        ("yalldve", "yalldve"),
        ("y'all'dve", "y'all'd've"),
        ("somebody'd", "somebodyd"),  # turned round in the official table
        ("ow's'at", "'ow's'at"),
        ("ive", "ive"),  # the official key is 'Ive', which no lower-case word meets
        ("a an the", ""),
        ("." * 40, "." * 8),  # the official call removes at most 32 periods
    ],
)
def test_normalisation_keeps_the_official_quirks(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_the_most_frequent_answer_is_counted_as_it_is_scored() -> None:
    assert majority_answer([["yes"] * 4 + ["2"] * 6, ["Yes."] * 3]) == "yes"
    assert majority_answer([["dog"], ["cat"]]) == "cat"


def test_a_question_without_answers_is_refused() -> None:
    with pytest.raises(InputError, match="no annotators' answers"):
        vqa_accuracy("dog", [])
