"""`mmgemma run`: the compiled pipeline, executed on this machine from the very file that a cluster is given."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from multimodal_gemma import config as configuration
from multimodal_gemma import files
from multimodal_gemma.config import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.local import engine, graph, process
from multimodal_gemma.local import folder as run_folder
from multimodal_gemma.local.results import Record, Results, gather, status_of, write
from multimodal_gemma.stages import tries
from multimodal_gemma.stages.component import INPUT_ERROR

REFUSED = 3  # exit code where everything went well and the gate refused the version, as of `mmgemma submit`
_CACHE = ".cache"  # in the folder of all runs: what earlier runs have downloaded and preprocessed


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
    again = run_dir.expanduser().absolute() if run_dir else run_folder.unfinished(runs, asked)
    folder = again or run_folder.choose(runs, preset)

    from multimodal_gemma.local.terminal import Terminal

    launch = process.launch if runner == "subprocess" else _in_containers(config, compiled, [runs, folder])
    terminal = Terminal(_command(preset, overrides, runs, folder, runner))
    with run_folder.occupied(folder), _environment(config, runs, compiled) as mlflow_uri:
        run_folder.begin(folder, asked)
        run_folder.point_latest(runs, folder)
        terminal.started(folder, preset, continued=again is not None and run_dir is None)
        watch = engine.Watch(records, folder.name, folder / "logs", launch, begun=terminal.begun, ended=terminal.ended)
        status = "interrupted"
        try:
            with _ended_by_signal():
                asked = {"preset": preset, "overrides": list(overrides), "registry_tracking_uri": ""}
                _execute(compiled, graph.arguments(compiled, asked), folder, runs / _CACHE, watch)
            status = status_of(records)
        finally:
            results = _conclude(status, records, folder, mlflow_uri, config, compiled, terminal)
    return _exit_code(records, results)


def _command(preset: str, overrides: Sequence[str], runs: Path, folder: Path, runner: str) -> str:
    """Return the command that goes on with a run."""
    options = ["--preset", preset, "--runs", str(runs), "--run-dir", str(folder)]
    options += ["--runner", runner] if runner != "subprocess" else []
    return shlex.join(["mmgemma", "run", *options, *overrides])


def _in_containers(config: Config, compiled: Path, writable: list[Path]) -> engine.Launcher:
    """Return what runs a task in a container of its image, once all images are on this machine."""
    from multimodal_gemma.local import containers

    sections = (config.data, config.benchmarks, config.model)
    locations = [value for section in sections for value in vars(section).values() if isinstance(value, str)]
    made = containers.Containers(writable, containers.local_paths(locations))
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


def _execute(compiled: Path, arguments: dict[str, Any], folder: Path, cache: Path, watch: engine.Watch) -> None:
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
    with log.open("w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink), engine.watched(watch):
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
    from multimodal_gemma.local import overview, report

    for record in records.values():
        if record.status == "waiting":
            record.status = "skipped"
    results = gather(records)
    write(folder, records, results, mlflow_uri, status, config.preset)
    page = report.render(status, records, graph.read(compiled), results, config, folder, mlflow_uri)
    files.write_text(folder / "report.html", page)
    overview.write(folder.parent)
    if status == "interrupted" and any(record.exit_code is not None for record in records.values()):
        _end_in_mlflow(config, folder.name)
    terminal.finished(status, records, results, folder, mlflow_uri)
    return results


def _end_in_mlflow(config: Config, run_id: str) -> None:
    """Say in MLflow that a run was interrupted; its exit handler, which does so otherwise, is not run."""
    from multimodal_gemma import logs
    from multimodal_gemma.registry import runs

    try:
        runs.end(config.registry, run_id, "KILLED")
    except InputError as error:  # the run has ended in any case
        logs.get("run").warning(f"the run in MLflow was not ended. {error}")


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


def _exit_code(records: dict[str, Record], results: Results) -> int:
    failed = [record for record in records.values() if record.status == "failed"]
    if not failed:
        return REFUSED if results.refused else 0
    return INPUT_ERROR if all(record.exit_code == INPUT_ERROR for record in failed) else 1
