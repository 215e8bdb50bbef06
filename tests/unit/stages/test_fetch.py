"""A registered model comes back as it went in, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from multimodal_gemma import manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import resolve
from multimodal_gemma.stages import fetch
from tests.unit.registry import artifacts


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the registry gives for any location."""
    folder = artifacts.model_folder(tmp_path / "kept")
    monkeypatch.setattr(resolve, "resolve_model", lambda *_: folder)
    return folder


def test_a_fetch_that_was_cut_short_is_done_again(kept: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(kept, output)
    (output / "manifest.json").unlink()
    (output / "config.json").write_text("half")
    summary = fetch.run(Config(), "models:/name@champion", output)
    assert not summary.cached
    assert manifest.verify(output, "model").digest == manifest.read(kept).digest == summary.digest


def test_a_damaged_copy_is_refused(kept: Path, tmp_path: Path) -> None:
    (kept / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json differs from its sha256"):
        fetch.run(Config(), "models:/name@champion", tmp_path / "out")


def test_what_names_no_registered_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no registered model"):
        fetch.run(Config(), "/some/folder", tmp_path / "out")
