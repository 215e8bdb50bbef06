"""The images themselves: what a cluster with strict rules can see of them, and what it would refuse."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from multimodal_gemma import __version__
from tests.images.conftest import Run

KINDS = ("pipeline", "trainer")
RESTRICTED = ("--rm", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only")


@pytest.fixture(params=KINDS)
def image(request: pytest.FixtureRequest, images: dict[str, str]) -> str:
    return images[request.param]


def _config(docker: Run, image: str) -> dict[str, Any]:
    return json.loads(docker("image", "inspect", image).stdout)[0]["Config"]


def test_the_user_is_a_number_that_is_not_root(docker: Run, image: str) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _config(docker, image)["User"])


def test_labels_say_what_is_inside(docker: Run, image: str) -> None:
    labels = _config(docker, image)["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert re.fullmatch(r"[0-9a-f]{40}(-modified)?|unknown", labels["org.opencontainers.image.revision"])


def test_any_user_can_run_it_with_nothing_writable_but_scratch(docker: Run, image: str) -> None:
    """OpenShift gives a namespace a user number of its own; a cluster may make every root file system read-only."""
    done = docker("run", *RESTRICTED, "--tmpfs", "/tmp", "--user", "987654:0", image, "mmgemma", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"mmgemma {__version__}"), done.stderr


def test_kubeflows_mounts_can_be_written(docker: Run, image: str) -> None:
    """KFP mounts empty folders, open to all, at these places; a task's artifacts and caches go there."""
    places = ("/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config")
    mounts = [part for place in places for part in ("--tmpfs", f"{place}:mode=0777")]
    script = "set -e; for place in " + " ".join(places) + " /tmp; do touch $place/x; done; id -u"
    done = docker("run", *RESTRICTED, "--tmpfs", "/tmp", *mounts, image, "sh", "-c", script)
    assert (done.returncode, done.stdout.strip()) == (0, "10001"), done.stderr


def test_a_task_finds_kfp_without_installing_it(docker: Run, image: str) -> None:
    done = docker("run", *RESTRICTED, "--tmpfs", "/tmp", image, "python3", "-m", "kfp.dsl.executor_main", "--help")
    assert done.returncode == 0, done.stderr


def test_nothing_of_the_checkout_is_inside_but_the_package(docker: Run, image: str) -> None:
    script = "find / -xdev \\( -name '.git' -o -name '.env' -o -name conftest.py -path '*tests*' -o -name '*.whl' \\) "
    done = docker("run", "--rm", "--user", "0", image, "sh", "-c", script + "-not -path '*/site-packages/*' | head")
    # Debian's python3-venv keeps the wheels of pip and setuptools.
    assert [
        line for line in done.stdout.splitlines() if "/python-wheels/" not in line and "/ensurepip/" not in line
    ] == []


def test_a_trainer_can_compile(docker: Run, images: dict[str, str]) -> None:
    """torch.compile calls a compiler: without one, training on a GPU fails at its first step."""
    code = "import torch; f = torch.compile(lambda x: torch.sin(x) + 1); print(float(f(torch.zeros(3)).sum()))"
    done = docker("run", *RESTRICTED, "--tmpfs", "/tmp:exec", images["trainer"], "python3", "-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "3.0"), done.stderr[-2000:]
