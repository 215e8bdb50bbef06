"""Where a model is looked for, and what is said when it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma.config import compose
from multimodal_gemma.config.schema import Config
from multimodal_gemma.data import base_models
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server, versions
from multimodal_gemma.registry.resolve import resolve_model
from multimodal_gemma.stages import download


def test_a_folder_is_itself(config: Config, model: Path) -> None:
    assert resolve_model(str(model), config) == model
    assert resolve_model(model.as_uri(), config) == model


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("ftp://host/model", "cannot be loaded from here"),
        ("models:/", "names no registered model"),
        ("models:/name", "names no registered model"),
        ("models:/name@champion/3", "names no registered model"),
        ("models:/name/champion", "Write models:/NAME@champion or models:/NAME/3"),
        ("models:/name@latest", "has no alias 'latest'"),
        ("models:/name@v3", "Write models:/NAME/3 for a version"),
        ("models:/nobody@champion", "has no alias 'champion'"),
        ("models:/nobody/3", "has no version 3"),
        ("models:/nobody/latest", "has no versions"),
    ],
)
def test_what_is_not_there_is_named(config: Config, location: str, words: str) -> None:
    with pytest.raises(InputError, match="model|registry") as error:
        resolve_model(location, config)
    assert words in str(error.value)


def test_a_folder_without_a_model_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path), config)


def test_a_version_of_another_tool_is_refused(config: Config) -> None:
    name = config.registry.name
    with server.connected(config.registry) as client:
        client.create_registered_model(name)
        client.create_model_version(name, "mlflow-artifacts:/x")
    with pytest.raises(InputError, match="was not registered by this project"):
        resolve_model(f"models:/{name}/1", config)


def test_a_training_starts_from_a_registered_model(config: Config, tmp_path: Path, monkeypatch) -> None:
    """The alias is asked each time: one that moves on is another model to start from."""
    name, base = config.registry.name, tmp_path / "base"
    monkeypatch.setenv("MMGEMMA_CACHE", str(tmp_path / "cache"))
    base.mkdir()
    for file in ("config.json", "model.safetensors"):
        (base / file).write_bytes(b"{}")
    with server.connected(config.registry) as client:
        client.create_registered_model(name)
        for number, digest in enumerate(("a" * 64, "b" * 64), start=1):
            client.create_model_version(name, "mlflow-artifacts:/x", tags={versions.MODEL_DIGEST: digest})
            adapter = tmp_path / "cache" / "models" / digest / "adapter"
            adapter.mkdir(parents=True)
            (adapter.parent / "manifest.json").write_text("{}")
            for file in base_models.ADAPTER:
                (adapter / file).write_text(f"{file} of {number}")
        client.set_registered_model_alias(name, "champion", "1")
        asked = [f"model.vision={base}", f"model.language={base}", f"model.adapter=models:/{name}@champion"]
        started = compose("sample", [*asked, f"registry.tracking_uri={config.registry.tracking_uri}"])
        assert started.model.adapter == f"models:/{name}@champion"
        download.run(started, "models", tmp_path / "models")
        for number in ("1", "2"):
            client.set_registered_model_alias(name, "champion", number)
            again = download.run(started, "models", tmp_path / "models")
            assert again.cached == (number == "1")
            for file in base_models.ADAPTER:
                assert (tmp_path / "models" / "adapter" / file).read_text() == f"{file} of {number}"
    record = json.loads((tmp_path / "models" / download.SOURCES).read_text())["sources"]["model.adapter"]
    assert record == {"uri": f"models:/{name}@champion", "version": "2"}
    refused = compose("sample", [f"model.vision=models:/{name}/1", f"model.language={base}"])
    with pytest.raises(InputError, match="as model.adapter or model.projector"):
        download.run(refused, "models", tmp_path / "refused")
