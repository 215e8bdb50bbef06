"""A port-forward to KFP's API for as long as a command needs it."""

from __future__ import annotations

import contextlib
import re
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO

from multimodal_gemma.errors import InputError

_WAIT = 20.0  # seconds until kubectl listens
_PORT = "8888"  # of the Service ml-pipeline


class Forward:
    """Runs `kubectl port-forward` on a free port, and again when it has ended.

    Args:
        target: NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT.

    Raises:
        InputError: the target is misspelt.
    """

    def __init__(self, target: str) -> None:
        match = re.fullmatch(r"([a-z0-9-]+)/([a-z0-9.-]+)(?::(\d+))?", target)
        if match is None:
            raise InputError(f"port-forward: {target!r} is no NAMESPACE/SERVICE. Give e.g. kubeflow/ml-pipeline.")
        self._namespace, self._service, port = match.groups()
        self._port = port or _PORT
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    def address(self) -> str:
        """Return the local address; start kubectl where it does not run.

        Raises:
            InputError: there is no kubectl, or it cannot reach the service.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        return self._address

    def end(self) -> None:
        """End kubectl."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _start(self) -> None:
        command = ["kubectl", "-n", self._namespace, "port-forward", f"service/{self._service}", f":{self._port}"]
        with tempfile.TemporaryFile("w+") as errors:
            try:
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            except OSError:
                raise InputError(
                    "port-forward: kubectl is not on the PATH. Install it, or give --host instead."
                ) from None
            assert self._process.stdout is not None
            port = _listening(self._process.stdout)
            if port is None:
                self.end()
                errors.seek(0)
                said = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
                raise InputError(
                    f"port-forward: kubectl could not reach {self._namespace}/{self._service}: {said}. "
                    "Check the namespace, the service and your context."
                )
        # It says a line a connection: unread, they would fill the pipe and stop it after some hours.
        threading.Thread(target=self._process.stdout.read, daemon=True).start()
        self._address = f"http://127.0.0.1:{port}"


def _listening(output: IO[str]) -> str | None:
    """Return the port that kubectl says it listens on, or None when it ends or takes too long."""
    deadline = time.monotonic() + _WAIT
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([output], [], [], left)[0]:
            break
        line = output.readline()
        if not line:
            break
        if match := re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line):
            return match.group(1)
    return None


@contextlib.contextmanager
def forwarded(target: str) -> Iterator[Forward]:
    """Yield a running port-forward, and end it afterwards."""
    forward = Forward(target)
    try:
        forward.address()
        yield forward
    finally:
        forward.end()
