"""POPE against outputs of the official evaluation, and what its parsing hides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.pope import parse_answer, pope_metrics


def test_every_golden_parse_and_metric_is_reproduced(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "pope.json").read_text())
    for entry in golden["parse"]:
        assert parse_answer(entry["answer"]) == entry["parsed"], entry["answer"]
    for entry in golden["sets"]:
        metrics = pope_metrics(entry["answers"], entry["labels"])
        expected = {key: value for key, value in entry.items() if key not in ("answers", "labels")}
        assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes", "yes"),
        ("yes, there is a dog.", "yes"),
        ("NO!", "no"),
        ("No, there is no dog.", "no"),
        ("Yes, there is no dog", None),  # says both
        ("There is not a dog.", None),
        ("", None),
        ("dunno", None),
        ("Know it: yes", None),
    ],
)
def test_strict_parsing_tells_apart_what_official_parsing_calls_yes(text: str, parsed: str | None) -> None:
    assert parse_answer(text, mode="strict") == parsed


def test_strict_metrics_count_invalid_answers_as_wrong() -> None:
    metrics = pope_metrics(["yes", "dunno", "no", "maybe"], ["yes", "yes", "no", "no"], mode="strict")
    assert metrics["accuracy"] == 0.5
    assert metrics["invalid_rate"] == 0.5
    assert metrics["recall"] == 0.5  # the dunno missed a yes
    assert (metrics["tp"], metrics["fp"], metrics["tn"], metrics["fn"]) == (1, 0, 1, 0)


def test_always_yes_scores_two_thirds_f1_so_the_yes_ratio_must_be_reported() -> None:
    metrics = pope_metrics(["yes"] * 4, ["yes", "no", "yes", "no"])
    assert metrics["f1"] == pytest.approx(2 / 3)
    assert (metrics["accuracy"], metrics["yes_ratio"]) == (0.5, 1.0)


def test_ratios_without_cases_are_zero_and_finite() -> None:
    metrics = pope_metrics(["no"], ["no"])
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.0, 0.0, 0.0)


def test_unknown_labels_and_lost_answers_are_refused() -> None:
    with pytest.raises(InputError, match="label 1 is 'maybe'"):
        pope_metrics(["yes"], ["maybe"])
    with pytest.raises(InputError, match="1 answers do not fit 2 labels"):
        pope_metrics(["yes"], ["yes", "no"])
