"""A tiny model that babbles, and a configuration that asks it on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from multimodal_gemma.config.schema import Config
from tests.unit.evaluation import tiny


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("babbler") / "model")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("MMGEMMA_CACHE", str(tmp_path / "cache"))
    made = Config()
    made.evaluation.device = "cpu"
    made.serving.max_new_tokens = 12
    return made


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    tiny.images(1)[0].save(path)
    return path
