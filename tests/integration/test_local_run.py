"""The compiled pipelines, the very files that are uploaded to a cluster, run to their ends on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma.local import runner

SMALL = (
    "data.sample.train_scenes=40",
    "data.sample.held_out_scenes=6",
    "data.validation_fraction=0.2",
    "training.max_steps=3",
    "training.validations_per_epoch=1",
    "registry.floors=null",
)
STAGES = [
    "preflight",
    "download-benchmarks",
    "download-dataset",
    "download-models",
    "preprocess-dataset",
    "train-model",
    "evaluate-model",
    "register-model",
    "export-model",
    "report-run",
]


@pytest.fixture(scope="module")
def runs(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (bases / "language" / "config.json").is_file():
        pytest.skip("the packaged base models are not there")
    return tmp_path_factory.mktemp("local") / "runs"


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory):
    """Neither the user's MLflow nor the user's cache takes part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MMGEMMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def execute(runs: Path, *overrides: str, pipeline: str = "training") -> dict[str, Any]:
    code = runner.run("sample", [*SMALL, *overrides], runs, compiled=runner.compiled_pipeline(pipeline))
    summary = json.loads((runs / "latest" / "summary.json").read_text())
    return {**summary, "code": code, "folder": (runs / "latest").resolve()}


@pytest.fixture(scope="module")
def first(runs: Path) -> dict[str, Any]:
    return execute(runs)


def statuses(summary: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in summary["stages"]}


def test_every_stage_of_the_training_pipeline_runs(first):
    assert first["code"] == 0
    assert first["status"] == "succeeded"
    assert statuses(first) == dict.fromkeys(STAGES, "succeeded")


def test_the_summary_says_what_machines_ask_for(first):
    assert set(first["scores"]["pope"]) == {"random", "popular", "adversarial"}
    assert {"accuracy", "f1", "yes_ratio"} <= first["scores"]["pope"]["random"].keys()
    assert {"accuracy", "majority_baseline"} <= first["scores"]["vqa"].keys()
    assert first["registry"] == {"name": "multimodal-gemma", "version": "1", "alias": "champion", "gate": "passed"}
    assert (Path(first["model"]) / "config.json").is_file()
    assert (Path(first["export"]) / "manifest.json").is_file()
    assert Path(first["report"]).is_file()


def test_the_report_shows_graph_scores_curves_examples_data_and_decision(first):
    page = Path(first["report"]).read_text()
    for heading in ("Scores", "Steps", "Training", "Examples", "Dataset", "The gate&#39;s decision", "Configuration"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<svg") == 5  # the graph, a matrix for each POPE setting, the losses
    links = re.findall(r'<a href="(artifacts/[^"]+)">', page)
    assert len(links) == 3  # evaluation, curves and dataset; there was no champion to be compared with
    assert all((Path(first["report"]).parent / link).is_file() for link in links)
    assert page.count("data:image/jpeg;base64,") >= 6
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")  # nothing is loaded from elsewhere


def test_the_exit_handler_reports_the_end(first):
    report = first["folder"] / "artifacts" / "report-run" / "report"
    assert "The model passed the gate: version 1 of multimodal-gemma is champion." in report.read_text()


def test_kfp_is_given_metrics_matrices_pages_and_metadata(first):
    output = json.loads((first["folder"] / "artifacts" / "evaluate-model" / "executor_output.json").read_text())
    artifacts = {name: entry["artifacts"][0] for name, entry in output["artifacts"].items()}
    assert artifacts["metrics"]["metadata"]["02_vqa_accuracy"] == first["scores"]["vqa"]["accuracy"]
    matrix = artifacts["pope_random"]["metadata"]["confusionMatrix"]
    assert [spec["displayName"] for spec in matrix["annotationSpecs"]] == ["yes", "no"]
    assert sum(sum(row["row"]) for row in matrix["rows"]) == first["scores"]["pope"]["random"]["count"]
    assert len(artifacts["evaluation"]["metadata"]["digest"]) == 64
    assert Path(artifacts["report"]["uri"]).stat().st_size > 100


def test_a_refused_stage_is_told_and_what_other_settings_do_not_shape_is_reused(runs, first, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    second = execute(runs, "training.projector_lr=0.002", "training.device=cuda")
    reused = {stage["name"] for stage in second["stages"] if stage["cached"]}
    assert reused == {"download-benchmarks", "download-dataset", "download-models", "preprocess-dataset"}
    assert second["code"] == 2
    assert statuses(second)["train-model"] == "failed"
    assert statuses(second)["register-model"] == "skipped"
    out = capfd.readouterr().out
    assert "train-model failed" in out
    assert "training.device" in out
    assert "Traceback" not in out
    assert (second["folder"] / "artifacts" / "report-run" / "report").read_text().count("The run failed.") == 1


def test_a_registered_version_is_scored_again_and_the_scores_join_it(runs, first):
    again = execute(runs, pipeline="reevaluation")
    assert again["code"] == 0
    assert set(statuses(again)) == {
        "preflight",
        "fetch-registered-model",
        "download-benchmarks",
        "evaluate-model",
        "record-evaluation",
        "report-run",
    }
    record = json.loads((again["folder"] / "artifacts" / "record-evaluation" / "record" / "record.json").read_text())
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs}/mlflow/mlflow.db")
    run = client.get_run(record["run_id"])
    assert run.data.metrics["vqa_accuracy"] == again["scores"]["vqa"]["accuracy"]
    version = client.get_model_version("multimodal-gemma", str(record["versions"][-1]))
    assert version.tags["mmgemma.last_evaluation"] == record["run_id"]
