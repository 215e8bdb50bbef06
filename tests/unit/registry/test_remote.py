"""A model on a hub, fetched once and held to what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry.resolve import resolve_model
from tests.unit.data.serving import COMMIT, Clock, Server, serve
from tests.unit.evaluation import tiny


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from huggingface_hub import constants

    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        Clock(monkeypatch)
        monkeypatch.setenv("MMGEMMA_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield server


def content(folder: Path) -> dict[str, bytes]:
    model = tiny.save(folder)
    return {path.name: path.read_bytes() for path in model.iterdir()}


def test_a_hub_name_is_the_model_at_its_commit_without_files_that_run_code(hub: Server, tmp_path: Path) -> None:
    published = content(tmp_path / "source")
    extra = {"modeling_evil.py": b"import os", "pytorch_model.bin": b"pickle", "nested/config.json": b"{}"}
    hub.add_hub_repository("models", "ours/tiny", "main", {**published, **extra})
    folder = resolve_model("ours/tiny", Config())
    assert {path.name for path in folder.iterdir()} == set(published)
    assert (folder / "model.safetensors").read_bytes() == published["model.safetensors"]
    asked = sum(hub.asked.values())
    assert resolve_model(f"hf://ours/tiny@{COMMIT}", Config()).is_dir()
    assert resolve_model("ours/tiny@main", Config()).is_dir()
    assert sum(hub.asked.values()) > asked  # another name may mean another model: it is asked what it means now


def test_what_is_no_model_is_one_sentence(hub: Server) -> None:
    hub.add_hub_repository("models", "ours/empty", "main", {"README.md": b"nothing"})
    with pytest.raises(InputError, match=r"ours/empty holds no config\.json"):
        resolve_model("ours/empty", Config())
    hub.errors["/api/models/ours/gated/revision/main"] = "GatedRepo"
    with pytest.raises(InputError, match="is gated"):
        resolve_model("ours/gated", Config())


def test_a_run_an_export_and_a_model_are_all_the_model(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "export" / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(f'{{"export": "{tmp_path / "export"}", "model": "{tmp_path}"}}')
    for place in (model, tmp_path / "export", tmp_path / "run"):
        assert resolve_model(str(place), Config()) == model
    (tmp_path / "run" / "summary.json").write_text('{"status": "failed"}')
    with pytest.raises(InputError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path / "run"), Config())
