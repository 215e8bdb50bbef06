"""An export that lost something on the way is found out before anybody loads it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodal_gemma import cli
from multimodal_gemma.config.schema import Config
from multimodal_gemma.export import verifier, verify
from multimodal_gemma.stages import export
from tests.unit.registry import artifacts


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    model = artifacts.model_folder(root / "model")
    scored = artifacts.evaluation_folder(root / "evaluation", model, artifacts.answers(0.8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.verify, "run", lambda _: None)
        export.run(Config(), model, scored, None, root / "export")
    return root / "export"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "export"))


def sum_again(folder: Path) -> None:
    """State the checksums of what lies there now, as whoever made the mistake would have."""
    names = [line[66:] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def change(folder: Path, name: str, by: float) -> None:
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] + torch.tensor(by, dtype=tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    sum_again(folder)


def compare(folder: Path) -> tuple[str, dict[str, Any]]:
    return verifier.compare(folder)


def test_an_export_answers_as_the_trained_model_in_a_process_without_this_package(sound: Path) -> None:
    figures = verify.run(sound)
    assert figures["prompts"] == 3
    assert figures["logit_difference"] <= 1e-4


def test_the_script_that_is_shipped_is_the_one_that_runs(sound: Path) -> None:
    assert (sound / "verify.py").read_bytes() == Path(verifier.__file__).read_bytes()
    assert "import multimodal_gemma" not in (sound / "verify.py").read_text()


def test_a_changed_weight_changes_an_answer(folder: Path) -> None:
    assert compare(folder)[0] == ""
    change(folder, "multi_modal_projector.linear_2.bias", 0.5)
    assert verifier.check_files(folder) == ""
    assert "logits differ" in compare(folder)[0]


def test_weights_under_a_wrong_name_do_not_load_silently(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["multi_modal_projector.linear_9.bias"] = tensors.pop("multi_modal_projector.linear_2.bias")
    save_file(tensors, path, metadata={"format": "pt"})
    sum_again(folder)
    with pytest.raises(SystemExit, match="do not fit"):
        compare(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model/model.safetensors", b"cut", "model/model.safetensors differs from its sha256"),
        ("NOTICE", None, "NOTICE is missing"),
        ("model/modeling_llava.py", b"import os", "model/modeling_llava.py is not in SHA256SUMS"),
        ("SHA256SUMS", None, "no SHA256SUMS"),
    ],
)
def test_files_that_are_not_what_was_exported(folder: Path, name: str, content: bytes | None, said: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert said in verifier.check_files(folder)


def test_a_mistake_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--verify", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert cli.main(["export"]) == 2
    assert "--verify DIR" in capsys.readouterr().err
