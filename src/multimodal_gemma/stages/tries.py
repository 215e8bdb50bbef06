"""A task's work in a process of its own, tried again on the same disk.

A cluster sees no more of a task than that it failed, and gives the next pod an empty disk. Here it is known how the
work ended: a mistake of the user ends at once; what was killed, lost its connection or failed in a way nobody foresaw
is tried again where it stands, and a stage that is started again continues from what it finds. This process imports
nothing heavy and survives what its child does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multimodal_gemma import config as configuration
from multimodal_gemma.errors import InputError, Outage
from multimodal_gemma.stages import component

TRIES = {"download": 4, "preprocess": 2, "train": 3, "evaluate": 3, "record": 4, "register": 4, "export": 4, "fetch": 4}
TRIES["preflight"] = 3
RUN_ID = "MMGEMMA_RUN_ID"  # environment: the pipeline run, for work whose plan must not name it
LIMIT = "MMGEMMA_TRIES"  # environment: at most so many, e.g. 1 on a laptop, where a person waits for the failure
PAUSES = (10.0, 30.0, 90.0)  # seconds before the second, third and fourth try
_MEMORY = Path("/sys/fs/cgroup")  # of the container itself, on cgroup v2
_OUTAGE = 69  # EX_UNAVAILABLE of sysexits.h: how a child says that a server did not answer
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(stage: str, plan: str = "", **arguments: Any) -> dict[str, Any]:
    """Do a stage's work in a child process, as often as the stage may be tried.

    Args:
        stage: module of `stages`, whose `run` is called.
        plan: of the preflight; its configuration is `run`'s first argument. "": it takes none.
        arguments: of `run`, as JSON can hold them; paths as texts.

    Returns:
        The fields of what `run` returned.

    Raises:
        SystemExit: the work did not succeed: 2 for a mistake of the user or a server that never answered, 1 when no try
            is left, else what the child ended with after SIGTERM.
    """
    allowed = max(1, min(TRIES.get(stage, 1), int(os.environ.get(LIMIT) or 99)))
    asked = {"stage": stage, "plan": plan, "arguments": arguments}
    reasons: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mmgemma-") as scratch, _Child() as child:
        told = Path(scratch) / "result.json"
        for number in range(1, allowed + 1):
            header = f"--- {stage}: try {number} of {allowed}" if allowed > 1 else ""
            request = json.dumps({**asked, "header": header, "first": number == 1})
            killed_before = _killed_for_memory()
            code = child.run([sys.executable, "-m", __name__, str(told), str(os.getpid())], request)
            if code == 0:
                if number > 1:
                    _say(f"--- {stage}: done at try {number}")
                return dict(json.loads(told.read_text(encoding="utf-8")))
            if child.ended or code == component.INPUT_ERROR:
                raise SystemExit(code)
            reasons.append(_reason(code, told, _killed_for_memory() > killed_before))
            told.unlink(missing_ok=True)
            if number < allowed:
                pause = PAUSES[min(number, len(PAUSES)) - 1]
                _say(f"--- {stage}: {reasons[-1]}; tried again in {pause:.0f} s with what is on the disk")
                child.wait(pause)
    if code == _OUTAGE:  # it may never have been there: a mistake, as far as anybody can tell
        _say(f"{component.ERROR_MARK}{reasons[-1]}.")
        raise SystemExit(component.INPUT_ERROR)
    _say(f"{component.ERROR_MARK}{stage}: {_sentence(reasons)}")
    raise SystemExit(1)


class _Child:
    """The one process that works at a time; SIGTERM reaches it at once.

    Attributes:
        ended: SIGTERM came; nothing is tried again.
    """

    def __init__(self) -> None:
        self.ended = False
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _Child:
        self._before = signal.signal(signal.SIGTERM, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _asked(self, *_: object) -> None:
        self.ended = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        else:
            raise SystemExit(128 + signal.SIGTERM)

    def run(self, command: list[str], request: str) -> int:
        """Run a command to its end; return its exit code, 128 + n if signal n ended it."""
        # A group of its own, so that a signal to the group of this process reaches it once: through `_asked`.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as sink:
            sink.write(request)
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def wait(self, seconds: float) -> None:
        """Wait between two tries; SIGTERM ends this process at once."""
        self._process = None
        time.sleep(seconds)


def _reason(code: int, told: Path, for_memory: bool) -> str:
    """Say how a try ended."""
    if for_memory:
        return f"killed for want of memory (the container may have {_limit()})"
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(code - 128).name}"
    try:
        return str(json.loads(told.read_text(encoding="utf-8"))["failed"])
    except (OSError, ValueError, KeyError):
        return f"ended with exit code {code}"


def _sentence(reasons: list[str]) -> str:
    last = reasons[-1]
    if len(reasons) == 1:
        return f"{last}. What happened stands above."
    alike = "each time " if len(set(reasons)) == 1 else "the last time "
    return f"tried {len(reasons)} times, {alike}{last}. What happened stands above, under the number of each try."


def _killed_for_memory() -> int:
    """Return how many processes of this container were killed for want of memory; 0 where nobody counts.

    Where the whole container goes at once (memory.oom.group), this process goes too, and the pod says OOMKilled.
    """
    try:
        events = dict(line.split() for line in (_MEMORY / "memory.events").read_text().splitlines())
        return int(events["oom_kill"])
    except (OSError, ValueError, KeyError):
        return 0


def _limit() -> str:
    try:
        return f"{int((_MEMORY / 'memory.max').read_text()) / 2**30:.3g} GiB"
    except (OSError, ValueError):
        return "less"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _main(told: Path, parent: int) -> None:
    """Be the child: do what standard input asks for, and leave the result in a file."""
    _end_with(parent)
    asked = json.load(sys.stdin)
    with component.guarded():
        if asked["first"] and (place := _place(json.loads(asked["plan"] or "{}"))):
            _say(f"MLflow: {place}")  # the first line of a step's log, which the UI shows while the step runs
        if asked["header"]:
            _say(asked["header"])
        try:
            result = _call(asked["stage"], asked["plan"], asked["arguments"])
        except Exception as error:
            if isinstance(error, InputError) and not isinstance(error, Outage):  # its sentence is printed where all are
                raise
            if not isinstance(error, Outage):
                traceback.print_exc()
            failed = str(error).rstrip(".") if isinstance(error, Outage) else f"{type(error).__name__}: {error}"
            told.write_text(json.dumps({"failed": failed[:500]}), encoding="utf-8")
            raise SystemExit(_OUTAGE if isinstance(error, Outage) else 1) from None
    told.write_text(json.dumps(dataclasses.asdict(result), default=str), encoding="utf-8")


def _place(plan: Mapping[str, Any]) -> str:
    """Return the page of the run in MLflow; "" where there is none. A plan that must not name the run has it not."""
    run_id = os.environ.get(RUN_ID, "")
    if "mlflow" in plan or not (plan and run_id):
        return str(plan.get("mlflow", ""))
    from multimodal_gemma.registry import runs

    return runs.page_of(configuration.from_json(json.dumps(plan["config"])).registry, run_id)


def _call(stage: str, plan: str, arguments: Mapping[str, Any]) -> Any:
    work = importlib.import_module(f"multimodal_gemma.stages.{stage}").run
    wanted = inspect.signature(work).parameters
    taken = {
        name: Path(value) if str(wanted[name].annotation).startswith("Path") and value is not None else value
        for name, value in arguments.items()
    }
    if not plan:
        return work(**taken)
    if "run_id" in wanted:
        taken["run_id"] = json.loads(plan).get("run_id") or os.environ.get(RUN_ID, "")
    return work(configuration.from_json(json.dumps(json.loads(plan)["config"])), **taken)


def _end_with(parent: int) -> None:
    """Let this process end when its parent does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
