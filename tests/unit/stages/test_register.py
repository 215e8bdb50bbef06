"""What the register stage takes, what it refuses and what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from multimodal_gemma import manifest
from multimodal_gemma.config.schema import Config, RegistryConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import packaging
from multimodal_gemma.stages import register
from tests.unit.registry import artifacts

Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("artifacts")
    model = artifacts.model_folder(root / "model")
    return model, artifacts.evaluation_folder(root / "evaluation", model, artifacts.answers(0.8))


@pytest.fixture
def unreachable() -> Config:
    config = Config()
    config.registry.tracking_uri = "http://127.0.0.1:9"
    return config


def test_registration_states_version_alias_and_every_rule(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setattr(packaging, "example", lambda: None)
    config = Config()
    config.registry = RegistryConfig(
        tracking_uri=artifacts.database(), name="of the stage", experiment="of the stage", floors={"pope_accuracy": 0.5}
    )
    summary = register.run(config, *made, tmp_path / "out", run_id="pipeline-1")
    value = json.loads((tmp_path / "out" / "registration.json").read_text())
    assert set(value) == {"name", "version", "alias", "gate", "run_id", "experiment_id", "rules"}
    assert (value["name"], value["version"], value["alias"], value["gate"]) == (
        "of the stage",
        "1",
        "champion",
        "passed",
    )
    assert [rule["name"] for rule in value["rules"]] == [
        "finite", "required", "floor of pope_accuracy", "champion", "contamination",
    ]  # fmt: skip
    written = manifest.verify(tmp_path / "out", "registration")
    assert written.inputs == {"model": manifest.read(made[0]).digest, "evaluation": manifest.read(made[1]).digest}
    assert "tracking_uri" not in json.dumps(written.config)
    assert summary.numbers == {"gate_passed": 1.0, "version": 1.0}
    assert (summary.facts["version"], summary.facts["alias"]) == ("1", "champion")


def test_a_server_that_is_down_is_one_sentence_and_leaves_nothing(
    made: Made, unreachable: Config, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        register.run(unreachable, *made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_of_another_model_are_refused(made: Made, unreachable: Config, tmp_path: Path) -> None:
    other = artifacts.model_folder(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="scored another model"):
        register.run(unreachable, other, made[1], tmp_path / "out")


def test_a_dataset_that_the_model_never_saw_is_refused(made: Made, unreachable: Config, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    manifest.write(dataset, "processed-dataset", config={})
    with pytest.raises(InputError, match="did not learn from"):
        register.run(unreachable, *made, tmp_path / "out", dataset=dataset)


def test_unfinished_artifacts_are_refused(made: Made, unreachable: Config, tmp_path: Path) -> None:
    half = Path(shutil.copytree(made[0], tmp_path / "half"))
    (half / "manifest.json").unlink()
    with pytest.raises(InputError, match="is not a finished model"):
        register.run(unreachable, half, made[1], tmp_path / "out")


@pytest.mark.parametrize("text", ['{"metrics": []}', "[]", "{}"])
def test_an_evaluation_without_metrics_is_refused(made: Made, unreachable: Config, tmp_path: Path, text: str) -> None:
    broken = Path(shutil.copytree(made[1], tmp_path / "broken"))
    (broken / "metrics.json").write_text(text)
    manifest.write(broken, "evaluation", config={})
    with pytest.raises(InputError, match="holds no metrics"):
        register.run(unreachable, made[0], broken, tmp_path / "out")


def test_a_damaged_evaluation_is_refused(made: Made, unreachable: Config, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(made[1], tmp_path / "broken"))
    (broken / "predictions.jsonl").write_text("")
    with pytest.raises(InputError, match=r"predictions\.jsonl differs from its sha256"):
        register.run(unreachable, made[0], broken, tmp_path / "out")
