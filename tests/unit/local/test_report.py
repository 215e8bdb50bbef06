"""report.html of a local run: what came of it first, then a way to every other page, and nothing that is not there."""

from __future__ import annotations

from multimodal_gemma import config
from multimodal_gemma.local import report
from multimodal_gemma.local.graph import Task
from multimodal_gemma.local.results import Record, Results

RULES = [
    {"name": "floor of pope_accuracy", "passed": False, "reason": "0.5957 is below 0.85"},
    {"name": "champion in pope_accuracy", "passed": True, "reason": "not worse"},
]


def render(tmp_path, registration, status="succeeded", record=None, **folders) -> str:
    for name, page in (("model", "curves.html"), ("registration", "comparison.html")):
        folders[name] = tmp_path / "run" / name
        folders[name].mkdir(parents=True)
        (folders[name] / page).write_text("")
    settings = config.compose(
        "sample", ["training.epochs=7", f"registry.tracking_uri=http://user:secret@{tmp_path.name}"]
    )
    records = {"train-model": record or Record("train-model", "succeeded", 3.0)}
    results = Results({}, registration, folders)
    return report.render(
        status, records, [Task("train-model", ())], results, settings, tmp_path / "run", "sqlite:////r/mlflow.db"
    )


def test_the_pages_of_the_stages_are_one_click_away(tmp_path):
    registered = {"name": "m", "version": "2", "alias": "challenger", "gate": "failed", "rules": RULES}
    page = render(tmp_path, registered)
    assert "floor of pope_accuracy: 0.5957 is below 0.85.<" in page.replace("\n<", "<")
    assert "Nothing was exported." in page
    assert '<a href="model/curves.html">' in page
    assert '<a href="registration/comparison.html">' in page
    assert "mlflow server --backend-store-uri sqlite:////r/mlflow.db" in page


def test_a_comparison_with_nobody_is_not_offered(tmp_path):
    page = render(tmp_path, {"name": "m", "version": "1", "alias": "champion", "gate": "passed", "rules": []})
    assert "comparison.html" not in page


def test_the_configuration_shows_what_differs_and_no_password(tmp_path):
    page = render(tmp_path, {})
    assert "<td>training.epochs</td><td>7</td>" in page
    assert "<details><summary>Every key" in page
    assert "secret" not in page


def test_a_failed_task_is_named_with_its_sentence_its_log_and_what_to_do(tmp_path):
    record = Record("train-model", "failed", 3.0, 2, tmp_path / "run" / "logs" / "train model.log")
    record.said.append("error: train: no room. Free 3 GB.")
    page = render(tmp_path, {}, "failed", record)
    assert "<h1>train-model failed.</h1>" in page
    assert "train: no room. Free 3 GB." in page
    assert '<a href="logs/train%20model.log">logs/train model.log</a>' in page
    assert "the same command then continues this run" in page
