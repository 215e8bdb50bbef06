"""The two places where kfp.local is given a voice.

kfp.local runs the compiled file faithfully, but prints everything into one stream, forgets exit codes, and tells
nobody when a task begins or ends. While `watched` is open, the function through which it executes each task, and the
class that starts a task's process, are ours: tasks are recorded, each has its log, and a run's folders have stable
names.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from multimodal_gemma.local.results import Record

ARTIFACTS = "artifacts"  # folder of a run that holds one folder a task

Launcher = Callable[[str, list[str], dict[str, str], Record], int]  # image, command, environment -> exit code


class Watch:
    """Records the tasks that kfp.local executes.

    Args:
        records: one a task, by name.
        run_id: what the tasks are told as the id of this run.
        logs: folder of the tasks' logs.
        launch: runs a task's command to its end.
        begun: called with a task that begins.
        ended: called with a task that ended.
    """

    def __init__(
        self,
        records: dict[str, Record],
        run_id: str,
        logs: Path,
        launch: Launcher,
        *,
        begun: Callable[[Record], None],
        ended: Callable[[Record], None],
    ) -> None:
        self._records, self.run_id, self._logs, self._launch = records, run_id, logs, launch
        self._begun, self._ended = begun, ended
        self._current: Record | None = None

    def execute(self, original: Callable[..., Any], **call: Any) -> Any:
        """Execute one task as `original` would, and record how it went."""
        record = self._records[call["task_name"]]
        self._current = record
        # Retries are for a cluster's weather. Here a failure is shown at once instead of a minute later.
        spec = type(call["task_spec"])()
        spec.CopyFrom(call["task_spec"])
        spec.ClearField("retry_policy")
        self._begun(record)
        start = time.monotonic()
        record.status = "failed"  # unless it is seen to end well
        try:
            outputs, status = original(**{**call, "task_spec": spec, "unique_pipeline_id": self.run_id})
            if status.name == "SUCCESS":
                record.status = "succeeded" if record.exit_code is not None else "reused"
                record.outputs = {name: _plain(value) for name, value in outputs.items()}
        finally:
            record.seconds = time.monotonic() - start
            self._ended(record)
        return outputs, status

    def launch(self, image: str, command: list[str], environment: dict[str, str]) -> int:
        """Run the process of the current task; return its exit code."""
        assert self._current is not None
        self._logs.mkdir(parents=True, exist_ok=True)
        self._current.log = self._logs / f"{self._current.name}.log"
        self._current.exit_code = self._launch(image, command, environment, self._current)
        return self._current.exit_code


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Let `watch` see every task that kfp.local executes inside the block."""
    from kfp.local import executor_input_utils, placeholder_utils, status, task_dispatcher
    from kfp.local.orchestrator import task_executor

    class Handler:
        """Starts a task's process; takes the place of both of kfp.local's handlers."""

        def __init__(
            self,
            image: str,
            full_command: list[str],
            pipeline_root: str,
            runner: Any,
            env_vars: dict[str, str] | None = None,
        ) -> None:
            self._task = (image, full_command, env_vars or {})

        def run(self) -> status.Status:
            return status.Status.SUCCESS if watch.launch(*self._task) == 0 else status.Status.FAILURE

    original, resolve = task_executor.execute_single_task, placeholder_utils.replace_placeholders

    def named(**call: Any) -> list[str]:
        """Tell tasks the run's name; the folder of its artifacts has another."""
        told: list[str] = resolve(**{**call, "pipeline_resource_name": watch.run_id})
        return told

    with contextlib.ExitStack() as stack:
        stack.enter_context(
            _replaced(task_executor, "execute_single_task", lambda **call: watch.execute(original, **call))
        )
        stack.enter_context(_replaced(task_dispatcher.subprocess_task_handler, "SubprocessTaskHandler", Handler))
        stack.enter_context(_replaced(executor_input_utils, "get_local_pipeline_resource_name", lambda name: ARTIFACTS))
        stack.enter_context(_replaced(placeholder_utils, "replace_placeholders", named))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Task .* have no effect in the current local runner")
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _plain(value: Any) -> Any:
    """Return an artifact as its path, and anything else as it is."""
    return Path(value.path) if hasattr(value, "uri") else value
