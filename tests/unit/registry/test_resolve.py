"""Where a model is looked for, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server
from multimodal_gemma.registry.resolve import resolve_model


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
        ("models:/name/champion", "asks for version 'champion'"),
        ("models:/name@latest", "reserves the alias 'latest'"),
        ("models:/name@v3", "reserves the alias 'v3'"),
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
