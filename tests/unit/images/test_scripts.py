"""The scripts around a Docker engine, with one that only takes notes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from multimodal_gemma import __version__

REPOSITORY = Path(__file__).parents[3]
DIGEST = {"pipeline": "sha256:" + "a" * 64, "trainer": "sha256:" + "b" * 64}

# Answers as a client of Docker 20.10 does. RepoDigests is what its inspect prints after a push.
FAKE = """#!/bin/sh
echo "$@" >> "$NOTES"
case "$*" in
  *Client.Version*) echo "${CLIENT:-20.10.24}" ;;
  buildx*imagetools*) echo "$BASE_DIGEST" ;;
  buildx*) exit "${BUILDX:-1}" ;;
  *RepoDigests*pipeline:*) printf '%b' "$PIPELINE_DIGESTS" ;;
  *RepoDigests*trainer:*) printf '%b' "$TRAINER_DIGESTS" ;;
  *Size*) echo 2295000000 ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    script = tmp_path / "bin" / "docker"
    script.parent.mkdir()
    script.write_text(FAKE)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    for tool in ("bash", "cut", "dirname", "git", "grep", "head", "mv", "sed"):  # and no other docker
        (script.parent / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is not installed"))
    return {
        "PATH": str(script.parent),
        "NOTES": str(tmp_path / "notes"),
        "IMAGE_REGISTRY": "registry.example.com/team",
        "IMAGE_TAG": "1.2.3",
        "PIPELINE_DIGESTS": f"mirror.example.com/pipeline@sha256:{'c' * 64}\\n"
        f"registry.example.com/team/pipeline@{DIGEST['pipeline']}\\n",
        "TRAINER_DIGESTS": f"registry.example.com/team/trainer@{DIGEST['trainer']}\\n",
    }


def _run(environment: dict[str, str], script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(REPOSITORY / "images" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def _notes(environment: dict[str, str]) -> list[str]:
    return Path(environment["NOTES"]).read_text().splitlines()


def test_pushing_writes_down_what_the_registry_stored(environment: dict[str, str], tmp_path: Path) -> None:
    """An image pushed to two registries has two digests; a compiled task must name the one of its own registry."""
    done = _run(environment, "push.sh", str(tmp_path / "digests.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "digests.json").read_text()) == {
        kind: f"registry.example.com/team/{kind}@{digest}" for kind, digest in DIGEST.items()
    }
    assert [line for line in _notes(environment) if line.startswith("push")] == [
        "push --quiet registry.example.com/team/pipeline:1.2.3",
        "push --quiet registry.example.com/team/trainer:1.2.3",
    ]


def test_a_push_without_a_digest_leaves_the_file_as_it_was(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "digests.json").write_text("{}")
    done = _run({**environment, "TRAINER_DIGESTS": ""}, "push.sh", str(tmp_path / "digests.json"))
    assert done.returncode == 1
    assert "without telling its digest" in done.stderr
    assert (tmp_path / "digests.json").read_text() == "{}"


def test_an_image_is_called_as_a_compiled_task_calls_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from components import images

    for name in ("IMAGE_REGISTRY", "IMAGE_TAG", "IMAGE_DIGEST_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    plain = {key: value for key, value in environment.items() if not key.startswith("IMAGE_")}
    done = _run(plain, "build.sh", "pipeline")
    assert done.returncode == 0, done.stderr
    (built,) = [line.split() for line in _notes(environment) if line.startswith("build --")]
    assert built[built.index("--tag") + 1] == images.image_of("pipeline")
    assert f"VERSION={__version__}" in built


@pytest.mark.parametrize("script", ["build.sh", "push.sh"])
def test_a_moving_tag_is_refused(environment: dict[str, str], script: str) -> None:
    done = _run({**environment, "IMAGE_TAG": "latest"}, script)
    assert (done.returncode, "names another image every day" in done.stderr) == (2, True)


def test_a_client_that_cannot_build_is_passed_over(environment: dict[str, str]) -> None:
    """A client since 23 without its plugin fails in the middle of a build, with a word about a flag."""
    done = _run({**environment, "CLIENT": "28.2.2"}, "build.sh")
    assert (done.returncode, "no docker client that can build" in done.stderr) == (2, True)
    assert _run({**environment, "CLIENT": "28.2.2", "BUILDX": "0"}, "build.sh").returncode == 0


def test_a_base_that_a_registry_knows_is_built_from_by_its_digest(environment: dict[str, str]) -> None:
    digest = "sha256:" + "d" * 64
    assert _run({**environment, "BASE_DIGEST": digest}, "build.sh", "trainer").returncode == 0
    assert f"BASE_IMAGE=python:3.11-slim-bookworm@{digest} " in _notes(environment)[-2]
    assert _run({**environment, "BASE_IMAGE": "mine:1"}, "build.sh", "trainer").returncode == 0
    assert "BASE_IMAGE=mine:1 " in _notes(environment)[-2]


def test_the_cpu_image_is_told_where_cpu_builds_of_torch_are(environment: dict[str, str]) -> None:
    done = _run({**environment, "TORCH_CPU_INDEX": "https://index.example.com/cpu"}, "build.sh")
    assert done.stderr == ""
    assert "TORCH_CPU_INDEX=https://index.example.com/cpu" in _notes(environment)[-2]
    assert "CUDA libraries that it never uses" in _run(environment, "build.sh").stderr
    assert _run(environment, "build.sh", "trainer").stderr == ""


def test_scripts_can_be_started() -> None:
    for name in ("build.sh", "push.sh", "wheels.sh", "hashes.sh", "base.sh", "test.sh"):
        assert os.access(REPOSITORY / "images" / name, os.X_OK), name
