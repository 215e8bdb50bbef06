"""How a task's container is started, and what is said when it cannot be; with a Docker that only takes notes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from multimodal_gemma.config import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.local import containers
from multimodal_gemma.local.results import Record

FAKE = """#!/bin/sh
printf '%s\\n' "$@" "" >> "$NOTES"
case "$1" in
  info) echo "$INFO_SAYS" >&2; exit "${INFO:-0}" ;;
  image) exit "${IMAGE:-0}" ;;
  pull) echo "Error response from daemon: no such host." >&2; exit 1 ;;
  run) exit "${RUN:-0}" ;;
esac
"""


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "bin" / "docker"
    script.parent.mkdir()
    script.write_text(FAKE)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return tmp_path / "notes"


def _started(notes: Path) -> list[str]:
    (command,) = [call for call in notes.read_text().split("\n\n") if call.lstrip().startswith("run\n")]
    return command.split("\n")


def _launch(tmp_path: Path, **environment: str) -> int:
    made = containers.Containers([tmp_path / "runs"], [tmp_path / "bin"])
    return made.launch("registry/pipeline:1", ["sh", "-c", "true"], environment, Record("task", log=tmp_path / "log"))


def test_a_task_runs_under_a_clusters_rules(tmp_path: Path, notes: Path) -> None:
    assert _launch(tmp_path) == 0
    command = _started(notes)
    user = command[command.index("--user") + 1]
    assert user == f"{os.getuid() or containers.USER}:{os.getgid() if os.getuid() else containers.USER}"
    assert command[command.index("--cap-drop") + 1] == "ALL"
    assert command[command.index("--security-opt") + 1] == "no-new-privileges"
    assert "--read-only" in command
    assert command[-4:] == ["registry/pipeline:1", "sh", "-c", "true"]
    assert f"type=bind,source={tmp_path}/runs,target={tmp_path}/runs" in command
    assert f"type=bind,source={tmp_path}/bin,target={tmp_path}/bin,readonly" in command


def test_a_secret_is_on_no_command_line(tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command lines are in `ps`, for everybody on the machine."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("UNRELATED", "kept out")
    _launch(tmp_path, MMGEMMA_IMAGE="registry/pipeline:1")
    command = _started(notes)
    assert "hf_secret" not in notes.read_text()
    assert [command[i + 1] for i, part in enumerate(command) if part == "--env"] == [
        "TINI_KILL_PROCESS_GROUP=1",
        *sorted({"HF_TOKEN", "MMGEMMA_IMAGE"} | {name for name in os.environ if containers._INHERITED.fullmatch(name)}),
    ]
    assert "UNRELATED" not in command


def test_the_exit_code_is_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "137")
    assert _launch(tmp_path) == 137


def test_each_container_is_removed_by_its_name(tmp_path: Path, notes: Path) -> None:
    _launch(tmp_path)
    command = _started(notes)
    assert f"rm\n--force\n{command[command.index('--name') + 1]}\n" in notes.read_text()


def test_no_docker_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"docker is not installed\. Install it, or use --runner subprocess\."):
        containers.Containers([tmp_path])


def test_no_engine_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFO", "1")
    monkeypatch.setenv("INFO_SAYS", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    with pytest.raises(InputError, match=r"cannot be used: Cannot connect .*docker\.sock\. Start it"):
        containers.Containers([tmp_path])


def test_an_image_that_cannot_be_had_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE", "1")
    made = containers.Containers([tmp_path])
    with pytest.raises(
        InputError, match=r"registry/none:1 is not on this machine .*no such host\)\. Build it with make"
    ):
        made.require(["registry/none:1"])


def test_a_folder_that_docker_cannot_name_is_a_sentence(tmp_path: Path) -> None:
    made = containers.Containers([tmp_path / "a,b"])
    with pytest.raises(InputError, match="has a comma"):
        made.launch("registry/pipeline:1", ["true"], {}, Record("task", log=tmp_path / "log"))


def test_only_files_of_this_machine_are_shown_to_tasks(tmp_path: Path) -> None:
    """Those in lists too, with what is drawn of them."""
    for name in ("two words", "images"):
        (tmp_path / name).mkdir()
    asked = Config()
    asked.data.conversations = [f"file://{tmp_path}/two%20words#*2", f"file://{tmp_path}/absent", "sample://"]
    asked.data.images, asked.benchmarks.images = ["hf://x/y@z"], f"file://{tmp_path}/images"
    assert containers.local_paths(asked) == [tmp_path / "images", tmp_path / "two words"]


def test_the_images_of_a_pipeline_are_read_from_its_file(tmp_path: Path) -> None:
    compiled = tmp_path / "pipeline.yaml"
    compiled.write_text(
        "deploymentSpec:\n  executors:\n    exec-a: {container: {image: 'r/pipeline:1'}}\n"
        "    exec-b: {container: {image: 'r/trainer:1'}}\n    exec-c: {container: {image: 'r/pipeline:1'}}\n"
        "---\nplatforms: {}\n"
    )
    assert containers.images(compiled) == ["r/pipeline:1", "r/trainer:1"]
