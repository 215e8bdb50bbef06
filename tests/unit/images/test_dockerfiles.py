"""What a Dockerfile must keep to, read from the file; images/test.sh tries the same on the images that come of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[3] / "images"
KINDS = ("pipeline", "trainer")


def complaints(text: str) -> list[str]:
    """Return what is wrong with a Dockerfile."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#(?! syntax=).*\n", "", text, flags=re.MULTILINE)).splitlines()
    found = ["`# syntax=` pulls from a registry" for line in lines if line.startswith("# syntax=")]
    steps = [line.partition(" ") for line in lines if line.strip() and not line.startswith("#")]
    bases = {rest.split(" AS ")[0] for name, _, rest in steps if name == "FROM"}
    if bases - {"${BASE_IMAGE}", "scratch", "requirements", "wheels-${WHEELS}"}:
        found.append("starts from an image that BASE_IMAGE does not choose")
    defaults = [rest for name, _, rest in steps if name == "ARG" and rest.startswith("BASE_IMAGE=")]
    if not defaults or any(rest.endswith(":latest") or ":" not in rest for rest in defaults):
        found.append("the default base names another image tomorrow")
    users = [rest for name, _, rest in steps if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the last user is no number, or root")
    final = steps[max(i for i, step in enumerate(steps) if step[0] == "FROM") :]
    names = [name for name, _, _ in final]
    if "USER" in names and "LABEL" in names and names.index("LABEL") < names.index("USER"):
        found.append("a label, which every commit changes, stands before layers that it would make again")
    if any(name in ("ADD", "COPY") for name in names):
        found.append("copies into the image what a mount would only show it")
    for name, _, rest in final:
        if name == "RUN" and "pip install" in rest and "--no-cache-dir" not in rest:
            found.append("keeps pip's cache in a layer")
        if name == "RUN" and "pip install" in rest and "constraints.txt" not in rest and "--no-deps" not in rest:
            found.append("installs versions that nobody has tested")
        if name == "RUN" and "apt-get install" in rest and "rm -rf /var/lib/apt/lists" not in rest:
            found.append("keeps apt's lists in a layer")
        if name in ("ARG", "ENV") and re.search(r"TOKEN|PASSWORD|SECRET", rest):
            found.append("a secret in an argument or variable is in the image's history")
    if not any(name == "RUN" and "python3 /check.py" in rest for name, _, rest in final[names.index("USER") :]):
        found.append("nobody checks, as the final user, that its imports work")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_dockerfile_keeps_to_every_rule(kind: str) -> None:
    assert complaints((IMAGES / kind / "Dockerfile").read_text()) == []


BROKEN: list[tuple[Callable[[str], str], str]] = [
    (lambda text: "# syntax=docker/dockerfile:1\n" + text, "syntax"),
    (lambda text: text.replace("FROM scratch AS", "FROM busybox AS"), "BASE_IMAGE does not choose"),
    (lambda text: text.replace("python:3.11-slim-bookworm", "python:latest"), "tomorrow"),
    (lambda text: text.replace("USER 10001:10001", "USER mmgemma"), "no number"),
    (lambda text: text.replace("USER 10001:10001", "USER 0:0"), "or root"),
    (lambda text: text.replace("USER 10001", "LABEL revision=${REVISION}\nUSER 10001"), "every commit changes"),
    (lambda text: text.replace("WORKDIR /tmp", "WORKDIR /tmp\nCOPY . /source"), "mount"),
    (lambda text: text.replace(" --no-cache-dir", ""), "pip's cache"),
    (lambda text: text.replace(" -c /wanted/constraints.txt", ""), "nobody has tested"),
    (lambda text: text.replace("ENV PATH", "ENV HF_TOKEN=x PATH"), "secret"),
    (lambda text: text.replace("python3 /check.py", "true"), "imports work"),
    (lambda text: text.replace("USER 10001", "RUN apt-get install -y git\nUSER 10001"), "apt's lists"),
]


@pytest.mark.parametrize(("breaking", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_a_broken_dockerfile_is_found_out(breaking: Callable[[str], str], said: str) -> None:
    text = breaking((IMAGES / "pipeline" / "Dockerfile").read_text())
    assert any(said in line for line in complaints(text)), complaints(text)


def test_both_images_install_the_same_way() -> None:
    """The libraries' layer is the same, so where both come from the same wheels it is built and stored once."""
    layers = [
        re.search(r"^ENV PATH.*?^# The package", (IMAGES / k / "Dockerfile").read_text(), re.M | re.S) for k in KINDS
    ]
    first, second = (found[0] for found in layers if found is not None)
    assert first == second


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
        "!build/wheels",
    }
