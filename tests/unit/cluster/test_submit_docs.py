"""What docs/cluster.md shows of `mmgemma submit` is what the command does."""

from __future__ import annotations

import argparse
import datetime
import io
import json
import re
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
import yaml
from rich.console import Console

from multimodal_gemma import cli
from multimodal_gemma.cluster.kfp import pipeline as pipelines
from multimodal_gemma.cluster.kfp.screen import picture
from multimodal_gemma.cluster.kfp.story import snapshot
from multimodal_gemma.config.flat import bare
from multimodal_gemma.local.runner import compiled_pipeline
from tests.servers.kfp_nodes import details, training
from tests.unit.manifests import schemas

PAGE = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text(encoding="utf-8")


def shown(elapsed: float, state: str) -> str:
    now = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)
    story = training(gate="refused", tried={"train-model": ("",)})
    answer = {"state": state, "run_details": {"task_details": details("wf-r", story, elapsed, now)}}
    run: Any = kfp_server_api.ApiClient()._ApiClient__deserialize(answer, "V2beta1Run")  # type: ignore[attr-defined]
    console = Console(file=io.StringIO(), width=100)
    spec = pipelines.read(compiled_pipeline()).spec
    console.print(picture(snapshot(run, spec, now), "llava-150k-20261123-105000"))
    return re.sub(r" +\n", "\n", console.file.getvalue())  # type: ignore[attr-defined]


def test_the_table_of_the_page_is_the_table_of_the_command() -> None:
    assert f"```text\n{shown(10_000, 'SUCCEEDED')}```" in PAGE


def test_the_picture_of_the_page_shows_the_same_run_on_its_way() -> None:
    picture_file = Path(__file__).parents[3] / "docs" / "submit.svg"
    drawn = picture_file.read_text(encoding="utf-8").replace("&#160;", " ")
    words = [word for line in shown(4_200, "RUNNING").splitlines() for word in re.split(r"  +", line.strip())]
    assert all(word in drawn for word in words)
    assert "url(" not in re.sub(r"url\(#", "", drawn)  # nothing is fetched to show it


@pytest.mark.parametrize(("cluster", "column"), [("kind", 1), ("gke-a100", 2)])
def test_the_parameter_files_are_the_columns_of_the_side_by_side_table(
    cluster: str, column: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(__file__).parents[3] / "pipelines" / "parameters" / f"{cluster}.yaml"
    assert cli.main(["submit", "--dry-run", "--params", str(file)]) == 0
    sent = json.loads(capsys.readouterr().out)["parameters"]
    declared = pipelines.read(compiled_pipeline()).parameters
    part = PAGE.split("side by side\n")[1].split("`overrides` takes")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    table = {name.strip("`"): cells for name, *cells in rows}
    assert len(table) == 3
    full = {bare(name): name for name in declared}
    for name, cells in table.items():
        text = re.search(r"`([^`]*)`", cells[column - 1]).group(1)  # type: ignore[union-attr]
        wanted = text if declared[full[name]]["parameterType"] == "STRING" else json.loads(text)
        assert sent.get(full[name], declared[full[name]].get("defaultValue")) == wanted, name
    assert {bare(name) for name in sent} <= set(table)


def test_every_option_that_the_page_names_exists() -> None:
    parser = cli._parser()
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    known = {
        option
        for name in ("submit", "schedule")
        for action in subparsers.choices[name]._actions
        for option in action.option_strings
    }
    part = PAGE[PAGE.index("## Submit") : PAGE.index("```yaml")]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", part)) <= known


def test_the_cronjob_of_the_page_is_valid_and_confined() -> None:
    job = yaml.safe_load(re.search(r"```yaml\n(apiVersion: batch.*?)```", PAGE, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert schemas.complaints(job) == []
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    command = container["command"]
    assert command[0] == "mmgemma"
    cli._parser().parse_args(command[1:])
