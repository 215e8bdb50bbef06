"""Download of base models: what training needs of a folder, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma import manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import download


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).write_bytes(name.encode())
    for name in ("pytorch_model.bin", "training_args.bin", "README.md", "flax_model.msgpack"):
        (folder / name).write_bytes(b"not needed")
    return folder


def test_only_what_training_needs_is_taken_of_a_model(model_folder: Path, tmp_path: Path) -> None:
    config = configuration.compose("sample", [f"model.vision={model_folder}", f"model.language={model_folder}"])
    summary = download.run(config, "models", tmp_path / "models")
    needed = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert set(manifest.read(tmp_path / "models").files) == {
        f"{part}/{name}" for part in ("vision", "language") for name in needed
    }
    assert (tmp_path / "models/vision/model.safetensors").samefile(model_folder / "model.safetensors")
    again = download.run(config, "models", tmp_path / "models")
    assert again == dataclasses.replace(summary, cached=True)


def test_weights_in_several_files_are_taken_by_their_index(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        (model_folder / name).write_bytes(b"part")
    (model_folder / "adapter_model.safetensors").write_bytes(b"not named by the index")
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = configuration.compose("sample", [f"model.vision={model_folder}", f"model.language={model_folder}"])
    download.run(config, "models", tmp_path / "models")
    weights = sorted(path.name for path in (tmp_path / "models" / "vision").glob("*.safetensors"))
    assert weights == names
    (model_folder / names[1]).unlink()
    with pytest.raises(InputError, match=f"lacks {names[1]}, which its model.safetensors.index.json names"):
        download.run(config, "models", tmp_path / "again")


def test_a_model_folder_without_weights_is_a_sentence(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    config = configuration.compose("sample", [f"model.vision={model_folder}", f"model.language={model_folder}"])
    with pytest.raises(InputError, match="model.vision: model folder .* holds no safetensors weights"):
        download.run(config, "models", tmp_path / "models")
    assert not (tmp_path / "models").exists()
    (model_folder / "config.json").unlink()
    with pytest.raises(InputError, match="holds no config.json"):
        download.run(config, "models", tmp_path / "models")


def test_the_projector_of_a_trained_model_comes_along(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "adapter").mkdir()
    (model_folder / "adapter" / "projector.safetensors").write_bytes(b"projector")
    parts = [f"model.{part}={model_folder}" for part in ("vision", "language", "projector")]
    download.run(configuration.compose("sample", parts), "models", tmp_path / "models")
    (projector,) = (path for path in (tmp_path / "models" / "projector").rglob("*") if path.is_file())
    assert (projector.name, projector.read_bytes()) == ("projector.safetensors", b"projector")


def test_the_packaged_bases_are_a_model_like_any_other(bases: Path, tmp_path: Path) -> None:
    if not (bases / "language" / "model.safetensors").is_file():
        pytest.skip("the packaged bases are not built yet")
    download.run(configuration.compose("sample"), "models", tmp_path / "models")
    assert (tmp_path / "models" / "language" / "tokenizer.json").is_file()
    assert (tmp_path / "models" / "vision" / "preprocessor_config.json").is_file()
