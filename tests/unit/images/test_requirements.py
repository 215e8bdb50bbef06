"""An image installs the versions that the tests ran with, and all of what the package asks for."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "images" / "requirements.py"


def _printed(*extras: str) -> list[Requirement]:
    done = subprocess.run([sys.executable, SCRIPT, *extras], capture_output=True, text=True, check=True, timeout=300)
    return [Requirement(line) for line in done.stdout.splitlines()]


def test_extras_of_extras_are_resolved() -> None:
    requirements = runpy.run_path(str(SCRIPT))["requirements"]
    project = {
        "name": "a-b",
        "dependencies": ["one>=1"],
        "optional-dependencies": {"x": ["a-b[y]", "two"], "y": ["three[z]", "one>=1"], "unused": ["four"]},
    }
    assert requirements(project, ["x"]) == ["one>=1", "three[z]", "two"]


def test_an_image_installs_what_pip_would_install_for_the_package() -> None:
    """Held against the metadata that the build backend wrote for the installed package."""
    wanted = {
        canonicalize_name(Requirement(line).name)
        for line in importlib.metadata.requires("multimodal-gemma") or []
        if (marker := Requirement(line).marker) is None
        or any(marker.evaluate({"extra": extra}) for extra in ("train", "pipeline"))
    }
    printed = {canonicalize_name(one.name) for one in _printed("train", "pipeline")}
    assert wanted - {"multimodal-gemma"} <= printed


def test_each_is_pinned() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(found[1]) for line in lines if (found := re.match(r"([\w.-]+)==", line))}
    backend = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    known = {canonicalize_name(Requirement(line).name) for line in backend}
    assert {canonicalize_name(one.name) for one in _printed("train", "pipeline")} - known <= pinned
