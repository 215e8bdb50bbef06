"""Real containers of the images that images/test.sh has just built."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from multimodal_gemma.local.containers import Containers

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """The built images by kind."""
    names = os.environ.get("MMGEMMA_TEST_IMAGES")
    if names is None:
        pytest.skip("the images are not built; make test-images builds and tests them")
    registry, tag = names.split()
    return {kind: f"{registry}/{kind}:{tag}" for kind in ("pipeline", "trainer")}


@pytest.fixture(scope="session")
def docker() -> Run:
    """Run a docker command and return the finished process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=1800)

    return run


@pytest.fixture
def containers(images: dict[str, str], tmp_path: Path) -> Containers:
    """What runs a task in a container, with one folder to write to."""
    return Containers([tmp_path])
