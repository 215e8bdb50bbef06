"""The offline sample: the promise of the README's first command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import summary_of

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, mmgemma: Run) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "runs"
    done = mmgemma("run", "--preset", "sample", "--runs", str(folder))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def summary(runs: Path) -> dict[str, Any]:
    return summary_of(runs)


@pytest.mark.parametrize("setting", ["random", "popular", "adversarial"])
def test_held_out_scenes_are_recognised(summary: dict[str, Any], setting: str) -> None:
    scores = summary["scores"]["pope"][setting]
    assert scores["accuracy"] >= 0.90
    assert 0.40 <= scores["yes_ratio"] <= 0.60


def test_answers_beat_the_majority(summary: dict[str, Any]) -> None:
    scores = summary["scores"]["vqa"]
    assert scores["accuracy"] >= 0.75
    assert scores["accuracy"] >= scores["majority_baseline"] + 0.3


def test_a_version_is_champion(summary: dict[str, Any]) -> None:
    assert summary["status"] == "succeeded"
    assert summary["registry"]["gate"] == "passed"
    assert summary["registry"]["alias"] == "champion"
    import mlflow

    client = mlflow.MlflowClient(summary["mlflow_uri"])
    version = client.get_model_version_by_alias(summary["registry"]["name"], "champion")
    assert str(version.version) == str(summary["registry"]["version"])


def test_reports_are_there(summary: dict[str, Any]) -> None:
    report = Path(summary["report"]).read_text()
    assert "<script" not in report
    for stage in summary["stages"]:
        assert stage["name"] in report


def test_a_second_run_reuses_the_data(runs: Path, summary: dict[str, Any], mmgemma: Run) -> None:
    done = mmgemma("run", "--preset", "sample", "--runs", str(runs), "training.max_steps=2", "registry.floors=null")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    cached = {stage["name"] for stage in summary_of(runs)["stages"] if stage["cached"]}
    assert {"download-dataset", "download-benchmarks", "download-models", "preprocess-dataset"} <= cached
    assert "reused" in done.stdout
