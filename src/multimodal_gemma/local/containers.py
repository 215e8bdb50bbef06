"""A task's container: the image that a cluster would use, under the rules that a cluster would set.

kfp.local has a Docker runner of its own, which now and then takes a failed container for a good one: the engine has
removed the container before the runner reads its exit code. Here the docker client waits for its container, and ends
with the container's exit code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from multimodal_gemma.config import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.local import process
from multimodal_gemma.local.results import Record

USER = 10001  # of the images; a run that root starts continues as this one
_LOOK = 20.0  # seconds the engine may take to answer
# What a task inherits from whoever starts the run. Values go through the environment, where `ps` does not show them.
_INHERITED = re.compile(r"(MLFLOW|HF|AWS)_\w+|MMGEMMA_(PIPELINE_DIGEST|TRIES)|(HTTPS?|NO)_PROXY", re.IGNORECASE)


class Containers:
    """Runs each task in a container of its image.

    Args:
        writable: folders that tasks write to; seen in a container where they lie on this machine.
        readable: files and folders that tasks read.

    Raises:
        InputError: there is no Docker engine.
    """

    def __init__(self, writable: Iterable[Path], readable: Iterable[Path] = ()) -> None:
        if shutil.which("docker") is None:
            raise InputError("run: docker is not installed. Install it, or use --runner subprocess.")
        try:
            answer = _docker("info", "--format", "{{.ServerVersion}}", timeout=_LOOK)
        except subprocess.TimeoutExpired:
            raise InputError(f"run: the Docker engine does not answer within {_LOOK:.0f} s. Restart it.") from None
        if answer.returncode != 0:
            raise InputError(
                f"run: the Docker engine cannot be used: {_last_line(answer.stderr)}. Start it, then run again."
            )
        self._writable = [folder.absolute() for folder in writable]
        self._readable = [path.absolute() for path in readable]
        for folder in self._writable:
            folder.mkdir(parents=True, exist_ok=True)
            if os.getuid() == 0:
                _give(folder)

    def require(self, images: Iterable[str]) -> None:
        """Pull the images that are not on this machine.

        Raises:
            InputError: one of them cannot be pulled.
        """
        for image in images:
            if _docker("image", "inspect", image).returncode == 0:
                continue
            pulled = _docker("pull", "--quiet", image)
            if pulled.returncode != 0:
                said = _last_line(pulled.stderr)
                raise InputError(
                    f"run: the image {image} is not on this machine and cannot be pulled ({said}). "
                    "Build it with make images, or use --runner subprocess."
                )

    def launch(self, image: str, command: list[str], environment: dict[str, str], record: Record) -> int:
        """Run a component's command in a container of its image, and log what it says.

        Returns:
            The container's exit code; 128 + n if signal n ended it; 125 if the engine started no container.
        """
        inherited = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
        variables = {**inherited, **environment}
        name = f"mmgemma-{uuid.uuid4().hex[:12]}"
        try:
            return process.stream(self._arguments(name, image, command, variables), {**os.environ, **variables}, record)
        finally:
            _docker("rm", "--force", name)  # it has gone by itself unless it was interrupted

    def _arguments(self, name: str, image: str, command: Sequence[str], variables: Iterable[str]) -> list[str]:
        user = f"{os.getuid()}:{os.getgid()}" if os.getuid() != 0 else f"{USER}:{USER}"
        return [
            *("docker", "run", "--rm", "--init", "--name", name, "--user", user),
            # The restricted profile of a cluster, as far as it has a meaning here.
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only"),
            *("--tmpfs", "/tmp:rw,exec,mode=1777", "--shm-size", "2g"),
            *("--env", "TINI_KILL_PROCESS_GROUP=1"),  # a signal reaches the task, not only the shell that started it
            *(part for variable in sorted(variables) for part in ("--env", variable)),
            *(part for path in self._writable for part in ("--mount", _bind(path))),
            *(part for path in self._readable for part in ("--mount", _bind(path) + ",readonly")),
            image,
            *command,
        ]


def images(compiled: Path) -> list[str]:
    """Return the images that the tasks of a compiled pipeline run in."""
    executors = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))["deploymentSpec"]["executors"]
    return sorted({executor["container"]["image"] for executor in executors.values()})


def local_paths(config: Config) -> list[Path]:
    """Return the files and folders of this machine that a configuration names by `file://`, as far as they exist."""
    sections = (config.data, config.benchmarks, config.model)
    values = [value for section in sections for value in vars(section).values()]
    locations = [one for value in values for one in (value if isinstance(value, list) else [value])]
    named = [uri for uri in locations if isinstance(uri, str) and uri.startswith("file://")]
    return sorted({path for uri in named if (path := Path(unquote(urlsplit(uri).path))).exists()})


def _docker(*arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout
    )


def _bind(path: Path) -> str:
    if "," in str(path):
        raise InputError(f"run: Docker cannot mount {path}, because its name has a comma. Choose another folder.")
    return f"type=bind,source={path},target={path}"


def _give(folder: Path) -> None:
    """Let the images' user write to a folder and all that lies in it; root may write there in any case."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, USER, USER, follow_symlinks=False)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it said nothing"
