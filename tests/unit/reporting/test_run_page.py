"""The page of a run: escaped, complete without what is not known, and in the order in which one reads."""

from __future__ import annotations

import re

import pytest

from multimodal_gemma.reporting import run_page
from multimodal_gemma.reporting.page import Link
from multimodal_gemma.reporting.run_page import RunPage, Step

METRICS = {
    "pope": {"random": {"accuracy": 0.966, "interval": [0.95, 0.98], "majority_baseline": 0.5, "count": 1526}},
    "vqa": {"accuracy": 0.892, "interval": [0.87, 0.91], "majority_baseline": 0.1, "count": 710},
}


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_verdict_reason_and_scores_come_before_everything_else():
    page = RunPage(
        "sample-1",
        "refused",
        "The gate refused the model.",
        run_page.refusals([{"name": "floor", "reason": "0.59 is below 0.85", "passed": False}]),
        scores=run_page.scores(METRICS, {"pope_random_accuracy": 0.97}),
        facts={"preset": "sample"},
        steps=[Step("train-model", "succeeded", 185.0, 2), Step("export-model", "skipped")],
        links={"MLflow run": "http://mlflow:5000/#/experiments/1/runs/2"},
        commands={"ask the model": "mmgemma ask PICTURE"},
    )
    said = text(run_page.render(page))
    order = [
        "The gate refused the model.",
        "floor: 0.59 is below 0.85.",
        "0.966",
        "MLflow run",
        "preset",
        "train-model",
    ]
    assert [said.index(part) for part in order] == sorted(said.index(part) for part in order)
    assert "POPE-format random 0.966 0.950&ndash;0.980 0.970 0.500 1,526" in said
    assert "VQA-format 0.892 0.870&ndash;0.910 - 0.100 710" in said  # the champion was not asked these questions
    assert "On POPE-format questions; VQA-format questions." in said
    assert "succeeded (try 2) 3 min 05 s" in said


def test_a_column_without_a_figure_and_a_line_on_nothing_are_left_out():
    page = RunPage("r", "passed", "v", scores=run_page.scores(METRICS, {}), steps=[Step("train-model", "succeeded")])
    html = run_page.render(page)
    assert "champion</th>" not in html
    assert "Champion:" not in html
    assert "A reused step" not in html


def test_what_was_no_published_benchmark_is_not_called_by_its_name():
    """The sample's scenes have questions in POPE's format; their scores are not POPE's."""
    names = {"pope": "POPE-format questions on sample scenes", "vqa": "VQA v2"}
    rows = run_page.scores({**METRICS, "names": names}, {})
    assert [(row.name, row.asked) for row in rows] == [
        ("POPE-format random", "POPE-format questions on sample scenes"),
        ("VQA v2", "VQA v2"),
    ]


def test_each_rule_that_refused_has_its_own_line():
    rules = [{"name": name, "reason": "low", "passed": name == "b"} for name in "abc"]
    assert run_page.refusals(rules) == "a: low.\nc: low."


def test_a_page_of_the_same_run_is_one_click_away():
    page = RunPage(
        "r", "passed", "v", links={"dataset": Link("artifacts/a b/report.html", "artifacts/a%20b/report.html")}
    )
    assert '<a href="artifacts/a%20b/report.html">artifacts/a b/report.html</a>' in run_page.render(page)


@pytest.mark.parametrize("outcome", ["passed", "done", "refused", "failed", "stopped", "unknown"])
def test_every_outcome_has_a_page_though_nothing_else_is_known(outcome):
    page = run_page.render(RunPage("r", outcome, "So it ended."))
    assert "So it ended." in page
    assert "<h2>" not in page


def test_what_others_wrote_is_text():
    evil = "<script>alert(1)</script>"
    said = dict.fromkeys(("verdict", "reason", "advice"), evil) | {"links": {evil: evil}, "facts": {evil: evil}}
    page = run_page.render(
        RunPage(evil, "failed", **said, said=[evil], steps=[Step(evil, evil)], commands={evil: evil})
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'href="javascript' not in run_page.render(RunPage("r", "done", "v", links={"a": "javascript:alert(1)"}))


def test_a_page_needs_nothing_from_elsewhere():
    page = run_page.render(RunPage("r", "done", "So it ended.", scores=run_page.scores(METRICS, {})))
    assert not re.search(r"(src|href)=|@import|url\(", page)
