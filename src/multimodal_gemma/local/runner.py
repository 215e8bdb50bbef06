"""`mmgemma run`: the compiled pipeline, executed on this machine from the very file that a cluster is given.

kfp.local runs the file faithfully, but prints everything into one stream, forgets exit codes, and tells nobody when a
task begins or ends. While `_watched` is open, the function through which it executes each task, and the class that
starts a task's process, are ours: tasks are recorded, each has its log, and a run's folders have stable names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from multimodal_gemma import config as configuration
from multimodal_gemma import files, locks
from multimodal_gemma.config import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.local import graph, process, results
from multimodal_gemma.local.results import Record, Results
from multimodal_gemma.stages import tries
from multimodal_gemma.stages.component import INPUT_ERROR

REFUSED = 3  # exit code where everything went well and the gate refused the version, as of `mmgemma submit`
_CACHE = ".cache"  # in the folder of all runs: what earlier runs have downloaded and preprocessed
_ARTIFACTS = "artifacts"  # folder of a run that holds one folder a task

Launcher = Callable[[str, list[str], dict[str, str], Record], int]  # image, command, environment -> exit code


def run(
    preset: str,
    overrides: Sequence[str],
    runs: Path,
    *,
    runner: str = "subprocess",
    run_dir: Path | None = None,
    compiled: Path | None = None,
) -> int:
    """Run the training pipeline.

    Args:
        preset: one of `config.presets()`.
        overrides: `section.key=value` strings.
        runs: folder of all runs; it also holds their shared cache and, unless MLFLOW_TRACKING_URI says otherwise, their
            MLflow.
        runner: "subprocess" runs components with this interpreter, "docker" each in a container of its image.
        run_dir: folder of this run; by default that of the latest run, if it was asked for the same and was
            interrupted, else RUNS/<time>-<preset>. In the folder of an interrupted run its finished stages are found
            finished and the others continue.
        compiled: the compiled pipeline; by default the one that comes with this code.

    Returns:
        0 if every stage ended well, 2 if one refused its input, 1 if one failed otherwise, 3 if the gate refused the
        version.

    Raises:
        InputError: the configuration is wrong, the folder is in use or cannot be written, or there is no compiled
            pipeline.
    """
    if runner not in ("subprocess", "docker"):
        raise InputError(f"run: there is no runner {runner!r}. Use subprocess or docker.")
    config = configuration.compose(preset, overrides)
    compiled = compiled or compiled_pipeline()
    records = {task.name: Record(task.name) for task in graph.read(compiled)}
    runs = runs.expanduser().absolute()
    asked = {"preset": preset, "overrides": list(overrides), "pipeline": files.sha256_file(compiled)}
    again = run_dir.expanduser().absolute() if run_dir else results.unfinished(runs, asked)
    folder = again or results.choose(runs, preset)

    from multimodal_gemma.local.terminal import Terminal

    launch: Launcher = process.launch if runner == "subprocess" else _in_containers(config, compiled, [runs, folder])
    terminal = Terminal(_command(preset, overrides, runs, folder, runner))
    with locks.only_writer(folder, "run"), _environment(config, runs, compiled) as mlflow_uri:
        results.begin(folder, asked)
        results.point_latest(runs, folder)
        terminal.started(folder, preset, continued=again is not None and run_dir is None)
        watch = _Watch(records, folder, launch, terminal)
        status = "interrupted"
        try:
            with _ended_by_signal():
                asked = {"preset": preset, "overrides": list(overrides), "registry_tracking_uri": ""}
                _execute(compiled, graph.arguments(compiled, asked), folder, runs / _CACHE, watch)
            status = "failed" if any(record.status == "failed" for record in records.values()) else "succeeded"
        finally:
            shown = _conclude(status, records, folder, mlflow_uri, config, compiled, terminal)
    return _exit_code(records, shown)


def _command(preset: str, overrides: Sequence[str], runs: Path, folder: Path, runner: str) -> str:
    """Return the command that goes on with a run."""
    options = ["--preset", preset, "--runs", str(runs), "--run-dir", str(folder)]
    options += ["--runner", runner] if runner != "subprocess" else []
    return shlex.join(["mmgemma", "run", *options, *overrides])


def _in_containers(config: Config, compiled: Path, writable: list[Path]) -> Launcher:
    """Return what runs a task in a container of its image, once all images are on this machine."""
    from multimodal_gemma.local import containers

    made = containers.Containers(writable, containers.local_paths(config))
    made.require(containers.images(compiled))
    return made.launch


def compiled_pipeline(name: str = "training") -> Path:
    """Return a compiled pipeline that comes with this code: of the checkout, else of the installed package.

    Raises:
        InputError: neither has one.
    """
    package = Path(configuration.__file__).parents[1]
    for place in (package.parents[1] / "pipelines" / "compiled", package / "pipelines"):
        if (place / f"{name}.yaml").is_file():
            return place / f"{name}.yaml"
    raise InputError(
        f"run: this installation has no compiled pipeline {name}.yaml. Write it with make compile-pipeline."
    )


def _execute(compiled: Path, arguments: dict[str, Any], folder: Path, cache: Path, watch: _Watch) -> None:
    """Let kfp.local run the compiled file; its own words go to a log of the run."""
    from kfp import components, local

    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder),
        raise_on_error=False,  # what failed is read from the records
        enable_caching=True,
        cache_root=str(cache),
    )
    pipeline = components.load_component_from_file(str(compiled))
    log = folder / "logs" / "kfp.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink), _watched(watch):
        pipeline(**arguments)


def _conclude(
    status: str,
    records: dict[str, Record],
    folder: Path,
    mlflow_uri: str,
    config: Config,
    compiled: Path,
    terminal: Any,
) -> Results:
    """Write the summary and the report, whatever happened, and print what came of the run; return its results."""
    from multimodal_gemma.local import report
    from multimodal_gemma.local.terminal import write_index

    for record in records.values():
        if record.status == "waiting":
            record.status = "skipped"
    shown = results.gather(records)
    results.write(folder, records, shown, mlflow_uri, status, config.preset)
    page = report.render(status, records, graph.read(compiled), shown, config, folder, mlflow_uri)
    files.write_text(folder / "report.html", page)
    write_index(folder.parent)
    if status == "interrupted" and any(record.exit_code is not None for record in records.values()):
        from multimodal_gemma.registry import runs

        runs.end(config.registry, folder.name, "KILLED")  # its exit handler, which does so otherwise, is not run
    terminal.finished(status, records, shown, folder, mlflow_uri)
    return shown


@contextlib.contextmanager
def _environment(config: Config, runs: Path, compiled: Path) -> Iterator[str]:
    """Set what the tasks' processes inherit, and yield where MLflow is."""
    from multimodal_gemma.registry import server

    uri = (
        config.registry.tracking_uri
        or os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{runs / 'mlflow' / 'mlflow.db'}"
    )
    before = dict(os.environ)
    os.environ["MLFLOW_TRACKING_URI"] = uri
    os.environ.setdefault(tries.LIMIT, "1")  # a person waits here, and the same command continues
    os.environ["MMGEMMA_PIPELINE_DIGEST"] = files.sha256_file(compiled)
    try:
        yield server.shown(uri)
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Treat SIGTERM and a lost terminal like Ctrl-C inside the block, so that the task's process ends with this one."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    # What is ignored already stays so: that is how nohup asks to go on without the terminal.
    watched = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(records: dict[str, Record], shown: Results) -> int:
    failed = [record for record in records.values() if record.status == "failed"]
    if not failed:
        return REFUSED if shown.refused else 0
    return INPUT_ERROR if all(record.exit_code == INPUT_ERROR for record in failed) else 1


@dataclasses.dataclass
class _Watch:
    """Records the tasks that kfp.local executes.

    Attributes:
        records: one a task, by name.
        folder: of the run; its name is what the tasks are told as the run's id.
        start: runs a task's command to its end.
        terminal: told of each task that begins and ends.
    """

    records: dict[str, Record]
    folder: Path
    start: Launcher
    terminal: Any
    current: Record | None = None

    def execute(self, original: Callable[..., Any], **call: Any) -> Any:
        """Execute one task as `original` would, and record how it went."""
        record = self.records[call["task_name"]]
        self.current = record
        # Retries are for a cluster's weather. Here a failure is shown at once instead of a minute later.
        spec = type(call["task_spec"])()
        spec.CopyFrom(call["task_spec"])
        spec.ClearField("retry_policy")
        self.terminal.begun(record)
        start = time.monotonic()
        record.status = "failed"  # unless it is seen to end well
        try:
            outputs, status = original(**{**call, "task_spec": spec, "unique_pipeline_id": self.folder.name})
            if status.name == "SUCCESS":
                record.status = "succeeded" if record.exit_code is not None else "reused"
                record.outputs = {name: _plain(value) for name, value in outputs.items()}
        finally:
            record.seconds = time.monotonic() - start
            self.terminal.ended(record)
        return outputs, status

    def launch(self, image: str, command: list[str], environment: dict[str, str]) -> int:
        """Run the process of the current task; return its exit code."""
        assert self.current is not None
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.current.log = logs / f"{self.current.name}.log"
        self.current.exit_code = self.start(image, command, environment, self.current)
        return self.current.exit_code


@contextlib.contextmanager
def _watched(watch: _Watch) -> Iterator[None]:
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
        told: list[str] = resolve(**{**call, "pipeline_resource_name": watch.folder.name})
        return told

    with (
        _replaced(task_executor, "execute_single_task", lambda **call: watch.execute(original, **call)),
        _replaced(task_dispatcher.subprocess_task_handler, "SubprocessTaskHandler", Handler),
        _replaced(executor_input_utils, "get_local_pipeline_resource_name", lambda name: _ARTIFACTS),
        _replaced(placeholder_utils, "replace_placeholders", named),
        warnings.catch_warnings(),
    ):
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
