"""Components are labels on doors: thin, documented, and nothing but wiring."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from components import describe

FOLDER = Path(__file__).parents[3] / "components"
COMPONENTS = sorted(path.parent for path in FOLDER.glob("*/component.py"))


def function(folder: Path) -> ast.FunctionDef:
    tree = ast.parse((folder / "component.py").read_text())
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("folder", COMPONENTS, ids=lambda folder: folder.name)
class TestComponent:
    def test_is_named_like_its_folder(self, folder):
        assert function(folder).name == folder.name

    def test_body_is_at_most_twenty_lines_without_logic_of_its_own(self, folder):
        body = function(folder).body
        assert body[-1].end_lineno - body[0].lineno < 20
        kinds = {type(node) for statement in body for node in ast.walk(statement)}
        assert not kinds & {ast.Try, ast.For, ast.While, ast.If, ast.Lambda}

    def test_readme_and_metadata_are_what_the_code_says(self, folder):
        for name, text in describe.described(folder).items():
            assert (folder / name).read_text() == text, "python -m components.describe"

    def test_readme_names_every_input(self, folder):
        readme = (folder / "README.md").read_text()
        for argument in function(folder).args.args:
            assert re.search(rf"^\| `{argument.arg}`", readme, re.MULTILINE), argument.arg


def test_there_is_a_component_for_every_step():
    names = {folder.name for folder in COMPONENTS}
    assert {"preflight", "download_models", "download_dataset", "download_benchmarks", "preprocess_dataset"} <= names
    assert {"train_model", "evaluate_model", "register_model", "export_model", "report_run"} <= names


def test_the_example_of_the_page_compiles(tmp_path):
    from kfp import compiler

    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(code)  # the SDK reads a component's source from its file
    spec = importlib.util.spec_from_file_location("example", tmp_path / "example.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    compiler.Compiler().compile(module.conversations, str(tmp_path / "example.yaml"))
    assert "download-dataset" in (tmp_path / "example.yaml").read_text()
