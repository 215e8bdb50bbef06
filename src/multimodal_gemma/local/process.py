"""A task's process: everything it says goes to its log, what is meant for people also to the terminal.

On a terminal the process gets a terminal of its own for standard error, so that its progress bars are bars; the log
keeps the last state of each bar, not every repaint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from typing import IO

from multimodal_gemma.local.results import Record

_GRACE = 30.0  # seconds between asking a process to end and ending it: a training saves its state meanwhile
_PIECE = 1 << 16  # bytes
# Runs a command in a shell that asks it to end, and then ends it, when this process has gone without saying "done" on
# standard input, however it went.
_KEPT = f"""exec 3<&0 </dev/null
(trap '' TERM; [ "$(cat <&3)" = done ] && exit; kill -TERM 0; sleep {_GRACE:.0f}; kill -KILL 0) >/dev/null 2>&1 &
"$@" 3<&-
"""


def launch(image: str, command: list[str], environment: dict[str, str], record: Record) -> int:
    """Run a component's command with this interpreter, in place of its image's, and log what it says.

    As the image is not used, it is not passed on as a fact about the run.

    Returns:
        The exit code; 128 + n if signal n ended it.
    """
    kept = {name: value for name, value in environment.items() if name != "MMGEMMA_IMAGE"}
    # The start script writes its program into a temporary folder and leaves it there.
    with tempfile.TemporaryDirectory(prefix="mmgemma-", ignore_cleanup_errors=True) as scratch:
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": scratch, **kept}
        return stream([_own_python(part) for part in command], variables, record)


def stream(command: list[str], environment: dict[str, str], record: Record) -> int:
    """Run a command to its end; its standard error is shown and logged, its standard output only logged."""
    assert record.log is not None
    reading, writing = _terminal() if sys.stderr.isatty() else os.pipe()
    lifeline, alive = os.pipe()
    with record.log.open("wb", buffering=0) as sink:
        lock = threading.Lock()
        with subprocess.Popen(
            ["sh", "-c", _KEPT, "sh", *command],
            env=environment,
            stdin=lifeline,
            stdout=subprocess.PIPE,
            stderr=writing,
            start_new_session=True,  # so that the shell and what it started end together
        ) as process:
            os.close(writing)
            os.close(lifeline)
            assert process.stdout is not None
            readers = [
                threading.Thread(target=_log, args=(process.stdout, sink, lock)),
                threading.Thread(target=_show, args=(reading, sink, lock, record)),
            ]
            for reader in readers:
                reader.start()
            try:
                code = process.wait()
            except BaseException:
                _end(process, readers)
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):  # the watching shell was killed with the rest
                    os.write(alive, b"done")
                os.close(alive)
                for reader in readers:
                    reader.join()
                os.close(reading)
    return code if code >= 0 else 128 - code


def _terminal() -> tuple[int, int]:
    """Open a terminal as wide as this process's own."""
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, termios.tcgetwinsize(sys.stderr.fileno()))
    return reading, writing


def _log(source: IO[bytes], sink: IO[bytes], lock: threading.Lock) -> None:
    for line in source:
        with lock, contextlib.suppress(OSError):  # a full disk must not stop whoever speaks
            sink.write(line)


def _show(source: int, sink: IO[bytes], lock: threading.Lock, record: Record) -> None:
    line = b""
    for piece in _pieces(source):
        with contextlib.suppress(OSError):  # the terminal was closed: what the process says is logged all the same
            sys.stderr.write(piece.decode("utf-8", errors="replace"))
            sys.stderr.flush()
        *ended, line = (line + piece).split(b"\n")
        for whole in ended:
            _keep(whole, sink, lock, record)
    if line:
        _keep(line, sink, lock, record)


def _pieces(source: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(source, _PIECE)
        except OSError as error:
            if error.errno == errno.EIO:  # how a terminal says that its last writer has gone
                return
            raise
        if not piece:
            return
        yield piece


def _keep(line: bytes, sink: IO[bytes], lock: threading.Lock, record: Record) -> None:
    """Log a line; of one that was painted over and over, its last state."""
    last = line.rstrip(b"\r").rpartition(b"\r")[2]
    with lock, contextlib.suppress(OSError):
        sink.write(last + b"\n")
    text = last.decode("utf-8", errors="replace").rstrip()
    if text:
        record.said.append(text)


def _end(process: subprocess.Popen[bytes], readers: list[threading.Thread]) -> None:
    """Ask the process and what it started to end, and end them when they take too long.

    The shell goes at once, while a training that it started still saves its state: it has gone when it no longer
    holds its standard error, which is when the readers are done.
    """
    os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    for reader in readers:
        reader.join(max(deadline - time.monotonic(), 0))
    if any(reader.is_alive() for reader in readers):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _own_python(part: str) -> str:
    """Name this interpreter where the start script says python3; the component's own source stays as it is."""
    own = f"{shlex.quote(sys.executable)} -m kfp.dsl"
    return part.replace("python3 -m kfp.dsl", own) if "ephemeral_component.py" in part else part
