"""The Space is a folder that stands alone: everything the page can come to import, and nothing else of this project."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from multimodal_gemma.config.schema import Config
from multimodal_gemma.export import space
from multimodal_gemma.stages import export
from tests.unit.registry import artifacts

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("space") / "space"
    space.write(place, name="ours", published="hf://me/ours", licence="gemma")
    return place


def test_its_front_matter_is_what_the_hub_reads(folder: Path) -> None:
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert front["models"] == ["me/ours"]
    assert front["license"] == "gemma"
    assert isinstance(front["python_version"], str)


def test_every_requirement_is_pinned_to_what_is_tested_here(folder: Path) -> None:
    pinned = dict(line.split("==") for line in (folder / "requirements.txt").read_text().splitlines())
    tested = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
    )
    tested = {re.sub("[-_.]+", "-", name).lower(): version for name, version in tested.items()}
    assert pinned == {name: tested[name] for name in pinned}
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["sdk_version"] == pinned["gradio"]


def test_it_is_one_file_that_needs_nothing_of_this_project(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    text = (folder / "app.py").read_text()
    assert '"me/ours"' in text
    assert len(text.splitlines()) <= 120
    modules = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert modules - sys.stdlib_module_names == {"PIL", "gradio", "torch", "transformers"}


def test_an_export_has_it_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.verify, "run", lambda _: None)
    model = artifacts.model_folder(tmp_path / "model")
    evaluation = artifacts.evaluation_folder(tmp_path / "evaluation", model, artifacts.answers(0.8))
    config = Config()
    export.run(config, model, evaluation, None, tmp_path / "without")
    assert not (tmp_path / "without" / "space").exists()
    config.export.formats = ["space"]
    export.run(config, model, evaluation, None, tmp_path / "export")
    assert (tmp_path / "export" / "space" / "app.py").is_file()
    assert not (tmp_path / "export" / "adapter").exists()
    assert " space/app.py\n" in (tmp_path / "export" / "SHA256SUMS").read_text()
