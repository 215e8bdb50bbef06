"""How a stage's outcome leaves a component: a sentence, an exit code, pages and scores."""

import json
import math
from pathlib import Path

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import component
from multimodal_gemma.stages.summary import Summary

ROOT = Path(__file__).parents[3]


def test_a_mistake_of_the_user_ends_as_one_marked_sentence_and_code_2(capsys):
    with pytest.raises(SystemExit) as end, component.guarded():
        raise InputError("train: there is no data. Give some.")
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: train: there is no data. Give some."


def test_any_other_failure_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), component.guarded():
        _ = 1 / 0


class Matrix:
    def log_confusion_matrix(self, labels, rows):
        self.labels, self.rows = labels, rows


def test_confusion_matrices_have_the_truth_in_rows_and_settings_not_asked_stay_empty(tmp_path):
    scores = {"pope": {"random": {"tp": 1, "fn": 2, "fp": 3, "tn": 4}}}
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    asked, other = Matrix(), Matrix()
    component.log_confusion(str(tmp_path), {"random": asked, "popular": other})
    assert asked.labels == ["yes", "no"]
    assert asked.rows == [[1, 2], [3, 4]]  # truly yes: answered yes, no; truly no: answered yes, no
    assert not hasattr(other, "rows")


class Metrics(dict):
    metadata: dict[str, object]

    def log_metric(self, name, value):
        self[name] = value


def test_what_is_no_finite_number_never_reaches_the_metadata(tmp_path):
    numbers = {"loss": math.nan, "best": math.inf, "steps": 3.0}
    summary, metrics = Summary("train", tmp_path, "abc", numbers), Metrics()
    metrics.metadata = {}
    summary.log_to(metrics)
    summary.describe(metrics)
    assert metrics == {"steps": 3.0}
    assert metrics.metadata == {"digest": "abc", "steps": 3.0}


def test_runs_are_compared_by_ten_scores_at_most(tmp_path):
    numbers = {f"pope_random_{number}": 0.5 for number in range(30)} | {"pope_accuracy": 0.9, "vqa_accuracy": 0.8}
    kept = component.headline(Summary("evaluate", tmp_path, "abc", numbers)).numbers
    assert kept == {"01_pope_accuracy": 0.9, "02_vqa_accuracy": 0.8}


def test_the_ten_come_first_and_in_their_order_in_a_page_that_sorts_by_name(tmp_path):
    shown = list(
        component.headline(Summary("evaluate", tmp_path, "abc", dict.fromkeys(component._HEADLINE, 0.5))).numbers
    )
    assert len(shown) == 10
    assert shown == sorted(shown)
    assert [name[3:] for name in shown] == list(component._HEADLINE)


def test_only_the_evaluation_logs_metrics_so_that_no_other_row_comes_before_the_ten():
    """The UI lists the metrics of a run's tasks in the order of the tasks: training's would stand above the scores."""
    from multimodal_gemma.local import graph

    spec = graph.documents(ROOT / "pipelines" / "compiled" / "training.yaml")[0]
    logging = [
        name
        for name, component in spec["components"].items()
        for output in component.get("outputDefinitions", {}).get("artifacts", {}).values()
        if output["artifactType"]["schemaTitle"] == "system.Metrics"
    ]
    assert logging == ["comp-evaluate-model"]
