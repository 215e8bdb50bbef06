"""One database for all tests of the registry: making one takes seconds. Each test uses a model name of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from multimodal_gemma.config.schema import Config, RegistryConfig
from multimodal_gemma.registry import packaging
from tests.unit.registry import artifacts


@pytest.fixture(scope="session")
def database() -> str:
    return artifacts.database()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "model"))


@pytest.fixture
def config(database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    # MLflow loads each logged model to answer its example; tests/integration sees to that, once.
    monkeypatch.setattr(packaging, "example", lambda: None)
    made = Config()
    name = request.node.name.replace("/", "-")
    made.registry = RegistryConfig(tracking_uri=database, name=name, experiment=name, floors=None)
    return made


@pytest.fixture
def scored(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make an evaluation of the model with a share of right answers."""

    def make(accuracy: float, *, seed: int = 0, **others: object) -> Path:
        folder = tmp_path / f"evaluation-{accuracy}-{seed}-{len(others)}"
        return artifacts.evaluation_folder(folder, model, artifacts.answers(accuracy, seed=seed), **others)

    return make
