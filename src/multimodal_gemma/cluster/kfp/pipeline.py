"""A compiled pipeline as it is uploaded: its bytes, its digest, its parameters and its tasks."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import yaml

from multimodal_gemma import __version__
from multimodal_gemma.local import graph

_GIT_SECONDS = 10
_TITLE_DIGITS = 7
_NAME_DIGITS = 40  # of the digest in a version's name: names may have to fit a Kubernetes label (63 characters)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled pipeline.

    Attributes:
        name: of the pipeline.
        description: of the pipeline.
        content: the YAML that is uploaded.
        parameters: by name, as the specification defines them (parameterType, defaultValue, description).
        spec: the pipeline specification.
        commit: of the repository that holds the file just so; "" where none does.
        platform: whether a specification of the platform stands behind it: Secrets, selectors, volumes.
    """

    name: str
    description: str
    content: str
    parameters: dict[str, dict[str, Any]]
    spec: dict[str, Any] = dataclasses.field(repr=False)
    commit: str = ""
    platform: bool = False

    @property
    def digest(self) -> str:
        """The sha256 of what is uploaded."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def version(self) -> str:
        """The name of its version on the server, which decides whether it is there already."""
        return f"sha256-{self.digest[:_NAME_DIGITS]}"

    @property
    def title(self) -> str:
        """The name of its version for people, e.g. 0.1.0+52047be."""
        return f"{__version__}+{self.commit or self.digest[:_TITLE_DIGITS]}"


def read(path: Path, *, cache: bool = True) -> Compiled:
    """Read a compiled pipeline.

    Args:
        path: the YAML file.
        cache: False compiles every task's cache out of what is uploaded. (A run cannot switch it off for a version,
            and the SDK's own switch reaches only the outermost tasks.)

    Raises:
        InputError: the file is absent or no compiled pipeline.
    """
    documents = graph.documents(path)
    content = path.read_text(encoding="utf-8")
    if not cache:
        for dag in _dags(documents[0]):
            for task in dag["tasks"].values():
                task["cachingOptions"] = {}
        content = yaml.safe_dump_all(documents, sort_keys=True)
    made = of_spec(documents[0], content)
    return dataclasses.replace(made, commit=_commit(path) if cache else "", platform=len(documents) > 1)


def of_spec(spec: dict[str, Any], content: str = "") -> Compiled:
    """Return the pipeline of a specification, as a file or a server holds it."""
    spec = spec.get("pipeline_spec", spec)
    info = spec.get("pipelineInfo", {})
    parameters = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    return Compiled(info.get("name", ""), info.get("description", ""), content, parameters, spec)


def _commit(path: Path) -> str:
    """Return the commit that holds a file as it is; "" where git does not know it, or knows it otherwise."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(path.resolve().parent), *command],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", path.name)
        git("diff", "--quiet", "HEAD", "--", path.name)
        return git("rev-parse", f"--short={_TITLE_DIGITS}", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return ""


def _dags(spec: dict[str, Any]) -> list[dict[str, Any]]:
    components = (component.get("dag") for component in spec["components"].values())
    return [dag for dag in (spec["root"].get("dag"), *components) if dag]
