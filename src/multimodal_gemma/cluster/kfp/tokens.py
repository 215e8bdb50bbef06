"""Where a bearer token for KFP comes from, and how a new one is had when it has expired.

A file is read again and a command is run again; a token from an option or the environment cannot be renewed. No token
is ever printed or logged.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

from multimodal_gemma.errors import InputError

_VOLUME = "/var/run/secrets/kubeflow/pipelines/token"  # where KFP's documentation projects a pod's token
_VOLUME_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # the KFP SDK's name for another place
_COMMAND_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Gives the token of the moment.

    Attributes:
        fixed: a token that never changes; "" without one.
        file: file whose content is the token, read at each renewal.
        command: shell words that print the token, run at each renewal.
    """

    fixed: str = dataclasses.field(default="", repr=False)
    file: Path | None = None
    command: str = ""

    @property
    def renewable(self) -> bool:
        """Whether a refused token can be replaced by another."""
        return bool(self.file or self.command)

    def get(self) -> str:
        """Return a token, or "" where none is used.

        Raises:
            InputError: the file cannot be read, or the command fails.
        """
        if self.file is not None:
            try:
                return self.file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(
                    f"token: {self.file} cannot be read ({type(error).__name__}). Check --token-file."
                ) from None
        return _printed(self.command) if self.command else self.fixed


def choose(token: str = "", file: Path | None = None, command: str = "") -> Tokens:
    """Return the source of tokens: what was given, else the environment's, else the pod's own token volume.

    Args:
        token: a token from an option.
        file: a token file from an option.
        command: a command from an option.
    """
    if sum(map(bool, (token, file, command))) > 1:
        raise InputError("token: give only one of --token, --token-file and --token-command.")
    if token or file or command:
        return Tokens(token, file, command)
    if named := os.environ.get("KFP_TOKEN_FILE"):
        return Tokens(file=Path(named))
    if given := os.environ.get("KFP_TOKEN"):
        return Tokens(given)
    volume = Path(os.environ.get(_VOLUME_VARIABLE) or _VOLUME)
    return Tokens(file=volume if volume.is_file() else None)


def _printed(command: str) -> str:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"token: --token-command could not be run ({type(error).__name__}). Try it in a shell."
        ) from None
    if done.returncode != 0 or not done.stdout.strip():
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise InputError(f"token: --token-command ended with exit code {done.returncode}: {said}. Try it in a shell.")
    return done.stdout.strip()
