"""What a Dockerfile must keep to, read from the file; images/test.sh tries the same on the images that come of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[3] / "images"
DOCKERFILE = IMAGES / "Dockerfile"
KINDS = ("pipeline", "trainer")
Step = tuple[str, str]


def stages(text: str) -> dict[str, list[Step]]:
    """Return the steps of every stage by its name, after those of the stage that it starts from."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found: dict[str, list[Step]] = {"": []}
    current = ""
    for line in filter(str.strip, lines):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, _, current = rest.partition(" AS ")
            found[current] = [*found.get(base, []), (name, base)]
        else:
            found[current].append((name, rest))
    return found


def complaints(text: str) -> list[str]:
    """Return what is wrong with the Dockerfile that a linter does not look for."""
    found = ["`# syntax=` pulls from a registry"] if "# syntax=" in text else []
    every = stages(text)
    bases = {rest for steps in every.values() for name, rest in steps if name == "FROM"}
    if bases - {"${BASE_IMAGE}", "scratch"} - set(every) - {f"{kind}-wheels-${{WHEELS}}" for kind in KINDS}:
        found.append("starts from an image that BASE_IMAGE does not choose")
    defaults = [rest for name, rest in every[""] if name == "ARG" and rest.startswith("BASE_IMAGE=")]
    if not defaults or any(rest.endswith(":latest") or ":" not in rest for rest in defaults):
        found.append("the default base names another image tomorrow")
    return found + [f"{kind}: {line}" for kind in KINDS for line in _of_image(every[kind])]


def _of_image(steps: list[Step]) -> list[str]:
    found = []
    names = [name for name, _ in steps]
    users = [rest for name, rest in steps if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the last user is no number, or root")
    if "USER" in names and names.index("LABEL") < names.index("USER"):
        found.append("a label, which every commit changes, stands before layers that it would make again")
    if any(name in ("ADD", "COPY") for name in names):
        found.append("copies into the image what a mount would only show it")
    if not any(name == "ENV" and "PIP_NO_CACHE_DIR=1" in rest for name, rest in steps):
        found.append("keeps pip's cache in a layer")
    for name, rest in steps:
        if name == "RUN" and "pip install" in rest and "constraints.txt" not in rest and "--no-deps" not in rest:
            found.append("installs versions that nobody has tested")
        if name in ("ARG", "ENV") and re.search(r"TOKEN|PASSWORD|SECRET", rest):
            found.append("a secret in an argument or variable is in the image's history")
    if "USER" in names and not any("python3 /check.py" in rest for _, rest in steps[names.index("USER") :]):
        found.append("nobody checks, as the final user, that its imports work")
    return found


def test_the_dockerfile_keeps_to_every_rule() -> None:
    assert set(KINDS) <= set(stages(DOCKERFILE.read_text()))
    assert complaints(DOCKERFILE.read_text()) == []


BROKEN: list[tuple[Callable[[str], str], str]] = [
    (lambda text: "# syntax=docker/dockerfile:1\n" + text, "syntax"),
    (lambda text: text.replace("FROM scratch AS", "FROM busybox AS"), "BASE_IMAGE does not choose"),
    (lambda text: text.replace("python:3.11-slim-bookworm", "python:latest"), "tomorrow"),
    (lambda text: text.replace("USER 10001:10001", "USER mmgemma"), "trainer: the last user is no number"),
    (lambda text: text.replace("USER 10001:10001", "USER 0:0"), "or root"),
    (lambda text: text.replace("WORKDIR /tmp", "LABEL revision=x\nWORKDIR /tmp"), "every commit changes"),
    (lambda text: text.replace("WORKDIR /tmp", "WORKDIR /tmp\nCOPY . /source"), "pipeline: copies"),
    (lambda text: text.replace("PIP_NO_CACHE_DIR=1", "X=1"), "pip's cache"),
    (lambda text: text.replace(" -c /wanted/constraints.txt", ""), "nobody has tested"),
    (lambda text: text.replace("ENV PATH", "ENV HF_TOKEN=x PATH"), "secret"),
    (lambda text: text.replace("python3 /check.py", "true"), "imports work"),
]


@pytest.mark.parametrize(("breaking", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_a_broken_dockerfile_is_found_out(breaking: Callable[[str], str], said: str) -> None:
    text = breaking(DOCKERFILE.read_text())
    assert any(said in line for line in complaints(text)), complaints(text)


def _lint(path: Path) -> str:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed; the extra dev brings it")
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_hadolint_finds_nothing() -> None:
    assert _lint(DOCKERFILE) == ""


def test_hadolint_would_find_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp\n")
    assert "DL3007" in _lint(tmp_path / "Dockerfile")


def test_what_is_installed_by_hash_is_the_version_that_constraints_say() -> None:
    pins = dict(line.split("==") for line in _lines(IMAGES.parent / "constraints.txt") if "==" in line)
    pins = {_normal(name): version for name, version in pins.items()}
    hashed = {}
    for line in _lines(*IMAGES.glob("hashes*.txt")):
        found = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert found, line
        hashed[_normal(found[1])] = found[2]
    assert hashed == {name: pins[name] for name in hashed}
    wanted = subprocess.run(
        [sys.executable, IMAGES / "requirements.py", "train", "pipeline", "int8", "nf4"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    names = {_normal(re.split(r"[><=\[ ]", line)[0]) for line in wanted.splitlines()}
    assert names <= hashed.keys()


def test_the_cpu_image_installs_nothing_of_cuda() -> None:
    shared = _lines(IMAGES / "hashes.txt")
    assert [line for line in shared if re.match(r"torch==|triton|nvidia|cuda", line)] == []
    assert any(line.startswith("nvidia-nccl") for line in _lines(IMAGES / "hashes-cuda.txt"))


def _lines(*paths: Path) -> list[str]:
    return [line for path in paths for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_build_sees_only_what_it_installs() -> None:
    lines = (IMAGES.parent / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {line for line in rules if line.startswith("!")} == {
        "!src",
        "!pipelines/compiled",
        "!pyproject.toml",
        "!constraints.txt",
        "!README.md",
        "!LICENSE",
        "!images/requirements.py",
        "!images/check.py",
        "!images/wheels.sh",
        "!images/hashes.txt",
        "!images/hashes-cuda.txt",
        "!build/wheels",
    }
