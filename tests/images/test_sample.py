"""The compiled sample pipeline, each task in a container of its image, as a cluster would run it."""

from __future__ import annotations

import json
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


@pytest.fixture(scope="module")
def runs(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for parent in folder.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)  # the images' user passes through; pytest lets only its own in
    folder.chmod(0o755)
    return folder / "runs"


def _run(runs: Path, *overrides: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        code = runner.run("sample", [*SMALL, *overrides], runs, runner="docker")
    summary = json.loads((runs / "latest" / "summary.json").read_text())
    return {**summary, "code": code, "by_name": {stage["name"]: stage["status"] for stage in summary["stages"]}}


@pytest.fixture(scope="module")
def whole(runs: Path) -> dict[str, Any]:
    return _run(runs)


def test_every_task_ends_well(whole: dict[str, Any]) -> None:
    assert whole["code"] == 0
    assert set(whole["by_name"].values()) == {"succeeded"}, whole["by_name"]
    assert whole["registry"]["gate"] == "passed"


def test_no_task_ran_as_root(whole: dict[str, Any], runs: Path) -> None:
    """Artifacts belong to whoever wrote them; the tasks' own folders are made by the runner."""
    artifacts = (runs / "latest" / "artifacts").resolve()
    written = [path for path in artifacts.rglob("*") if path.is_file() and path.name != "executor_input.json"]
    assert written
    assert 0 not in {path.stat().st_uid for path in written}


def test_a_failing_task_fails_the_run_and_the_last_task_still_reports(whole: dict[str, Any], runs: Path) -> None:
    failed = _run(runs, "model.lora.targets=[no_such_layer]")
    assert failed["code"] != 0
    assert failed["status"] == "failed"
    assert failed["by_name"]["train-model"] == "failed"
    assert failed["by_name"]["evaluate-model"] == "skipped"
    assert failed["by_name"]["export-model"] == "skipped"
    assert failed["by_name"]["report-run"] == "succeeded"
    (report,) = (runs / "latest" / "artifacts" / "report-run").rglob("report")
    assert "The run failed." in report.read_text()
