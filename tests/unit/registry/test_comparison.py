"""The page that holds a candidate against the champion begins with what came of it."""

from __future__ import annotations

from typing import Any

import pytest

from multimodal_gemma.registry import comparison


def rows(scores: list[float]) -> list[dict[str, Any]]:
    fields = {"benchmark": "pope/random", "question": "Is it there?", "answers": [], "label": "yes", "p_yes": None}
    return [
        {**fields, "question_id": n, "image": f"{n}.jpg", "image_id": str(n), "score": score, "prediction": "no"}
        for n, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([0.0] * 30 + [1.0] * 10, [1.0] * 40, "the candidate is worse in POPE random:"),
        ([1.0] * 40, [0.0] * 30 + [1.0] * 10, "the candidate is better in POPE random:"),
        ([1.0, 0.0] * 20, [0.0, 1.0] * 20, "the candidate is neither better nor worse:"),
    ],
)
def test_the_first_sentence_says_who_is_better(ours, theirs, verdict):
    pairs = list(zip(rows(ours), rows(theirs), strict=True))
    assert verdict in comparison.render("m", "1", pairs, confidence=0.95)
