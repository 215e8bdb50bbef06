"""New scores of a registered model: found beside the old ones, changing neither alias nor gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma import manifest
from multimodal_gemma.config.schema import Config, RegistryConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import packaging, server, versions
from multimodal_gemma.stages import fetch, record, register
from tests.unit.registry import artifacts

NAME = "scored again"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.model_folder(tmp_path_factory.mktemp("record") / "model")


@pytest.fixture(scope="module")
def config(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A registry with one version of the model, champion with 0.8."""
    made = Config()
    made.registry = RegistryConfig(tracking_uri=artifacts.database(), name=NAME, experiment=NAME, floors=None)
    folder = tmp_path_factory.mktemp("registered")
    evaluation = artifacts.evaluation_folder(folder / "evaluation", model, artifacts.answers(0.8))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.setattr(packaging, "example", lambda: None)
        register.run(made, model, evaluation, folder / "out", run_id="first")
    return made


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MMGEMMA_CACHE", str(tmp_path / "cache"))


def test_what_was_registered_is_fetched_scored_and_recorded(config: Config, model: Path, tmp_path: Path) -> None:
    location = f"models:/{NAME}@champion"
    fetched = fetch.run(config, location, tmp_path / "fetched")
    assert fetched.digest == manifest.read(model).digest
    assert fetch.run(config, location, tmp_path / "fetched").cached
    evaluation = artifacts.evaluation_folder(tmp_path / "evaluation", tmp_path / "fetched", artifacts.answers(0.3))
    for _ in range(2):  # a retried task changes nothing
        made = record.run(config, NAME, tmp_path / "fetched", evaluation, tmp_path / "out", run_id="second")
    value = json.loads((tmp_path / "out" / "record.json").read_text())
    assert value == {"name": NAME, "versions": [1], "run_id": made.facts["run_id"]}
    with server.connected(config.registry) as client:
        version = client.get_model_version(NAME, "1")
        run = client.get_run(made.facts["run_id"])
        logged = client.get_logged_model(version.tags[versions.LOGGED_MODEL])
        pages = {entry.path for entry in client.list_artifacts(run.info.run_id, "evaluation")}
        assert versions.aliases(client, NAME) == {"champion": "1"}
    assert run.info.status == "FINISHED"
    assert run.data.metrics["pope_accuracy"] == pytest.approx(0.3)
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == ["e" * 36]
    assert version.tags[record.LAST_EVALUATION] == run.info.run_id != version.run_id
    assert version.tags["gate"] == "passed"
    assert {metric.value for metric in logged.metrics if metric.key == "pope_accuracy"} == {0.8, 0.3}
    assert "evaluation/predictions.jsonl" in pages


def test_scores_of_a_model_that_is_not_registered_are_refused(config: Config, tmp_path: Path) -> None:
    other = artifacts.model_folder(tmp_path / "other", seed=1)
    evaluation = artifacts.evaluation_folder(tmp_path / "evaluation", other, artifacts.answers(0.5))
    with pytest.raises(InputError, match="has no version with model"):
        record.run(config, NAME, other, evaluation, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_of_another_model_are_refused(config: Config, model: Path, tmp_path: Path) -> None:
    other = artifacts.model_folder(tmp_path / "other", seed=1)
    evaluation = artifacts.evaluation_folder(tmp_path / "evaluation", other, artifacts.answers(0.5))
    with pytest.raises(InputError, match="scored another model"):
        record.run(config, NAME, model, evaluation, tmp_path / "out")
