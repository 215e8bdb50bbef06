"""Where scalars go beside curves.jsonl: any tracker that accelerate knows, MLflow by default.

Trackers are spoken to in a thread of their own, and MLflow gets its scalars in batches, since a write a step to its
database takes longer than a small step itself. A tracker watches; it never decides whether training goes on: one that
fails later is asked again with the next batch, and curves.jsonl has it all.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process

from multimodal_gemma import files, logs
from multimodal_gemma.config.flat import flatten, portable
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from multimodal_gemma.config.schema import Config, RegistryConfig

_FLUSH_EVERY = 5.0  # seconds
_MACHINE_EVERY = 10.0  # seconds between two looks at the machine; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # MLflow's limits on a request
_LONGEST_PARAM = 6000  # characters, MLflow's limit on a value


class MLflowBatches(GeneralTracker):
    """MLflow for accelerate: parameters once, scalars in batches, the run left open for the stages that follow.

    A server that cannot be reached is asked again with every batch, from the first one on; what it has not taken when
    training ends is written to a file, and the next training in that folder sends it.

    Args:
        registry: says where MLflow is.
        pipeline_run: the pipeline run whose MLflow run this is; "" for a run of its own.
        spool: file of the scalars that could not be sent.

    Raises:
        InputError: MLflow is there and refuses, or its location is malformed.
    """

    name = "mlflow"
    requires_logging_directory = False

    def __init__(self, registry: RegistryConfig, pipeline_run: str, spool: Path) -> None:
        super().__init__()
        self._registry, self._pipeline_run, self._spool = registry, pipeline_run, spool
        self._run_id = ""
        self._params: dict[str, str] = {}
        self._waiting: list[tuple[str, float, int, int]] = []  # name, value, time in ms, step
        if spool.is_file():
            self._waiting = [tuple(row["scalar"]) for row in files.read_jsonl(spool, "spooled scalars")]
        self._flushed = time.monotonic()
        self._warned = False
        self._monitor: SystemMetricsMonitor | None = None
        try:
            self._find_run()
        except InputError as error:
            if _refused(error):
                raise
            self._warn(error)

    @property
    def tracker(self) -> str:
        """The run's id; "" while MLflow could not be reached."""
        return self._run_id

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log settings as the run's parameters.

        Raises:
            InputError: the run has other values for them.
        """
        self._params = {name: str(value)[:_LONGEST_PARAM] for name, value in values.items()}
        if self._run_id:
            self._send_params()

    @on_main_process
    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        """Take a step's scalars, and send what waits if the last time was long ago."""
        now = int(time.time() * 1000)
        self._waiting += [(name, float(value), now, step or 0) for name, value in values.items()]
        if time.monotonic() - self._flushed >= _FLUSH_EVERY:
            self._flush()

    @on_main_process
    def finish(self) -> None:
        """Send what waits, or write it down; the run stays open."""
        if self._monitor is not None:
            self._monitor.finish()
        self._flush()
        if self._waiting:
            files.write_jsonl(self._spool, [{"scalar": list(row)} for row in self._waiting])
            logs.get("train").warning(
                f"{len(self._waiting):,} scalars did not reach MLflow and wait in {self._spool}; curves.jsonl has all"
            )
        else:
            self._spool.unlink(missing_ok=True)

    @on_main_process
    def keep(self, paths: Sequence[Path], folder: str) -> None:
        """Upload files as artifacts of the run; a server that is away goes without them."""
        try:
            with server.connected(self._registry) as client:
                for path in paths:
                    if self._run_id and path.is_file():
                        client.log_artifact(self._run_id, str(path), folder)
        except InputError as error:
            self._warn(error)

    def _find_run(self) -> None:
        from multimodal_gemma.registry import runs

        with server.connected(self._registry) as client:
            self._run_id = runs.run_in(client, self._registry, self._pipeline_run)
            place = runs.page(self._registry, client.get_run(self._run_id))
        if place:
            logs.get("train").info(f"MLflow: {place}")  # where the curves grow while the log does
        self._watch_machine()

    def _watch_machine(self) -> None:
        """Log the machine's load as `system/…` while training goes on: MLflow's own monitor, in a thread of its own.

        A retried training continues the curves; a server that goes away ends them, and nothing else.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # what it warns of is no one's concern here
        uri = server.tracking_uri(self._registry)
        self._monitor = SystemMetricsMonitor(self._run_id, _MACHINE_EVERY, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def _send_params(self) -> None:
        from mlflow.entities import Param

        with server.connected(self._registry) as client:
            params = [Param(name, value) for name, value in self._params.items()]
            for start in range(0, len(params), _PARAMS_A_BATCH):
                client.log_batch(self._run_id, params=params[start : start + _PARAMS_A_BATCH])
        self._params = {}

    def _flush(self) -> None:
        from mlflow.entities import Metric

        try:
            if not self._run_id:
                self._find_run()
            if self._params:
                self._send_params()
            with server.connected(self._registry) as client:
                while self._waiting:
                    part = self._waiting[:_METRICS_A_BATCH]
                    client.log_batch(self._run_id, metrics=[Metric(*row) for row in part])
                    del self._waiting[: len(part)]
        except InputError as error:
            self._warn(error)
        self._flushed = time.monotonic()  # after a server's silence: waiting for it must not fill the training

    def _warn(self, error: InputError) -> None:
        if not self._warned:
            logs.get("train").warning(f"{error} Training goes on, and the scalars are sent later.")
        self._warned = True


def _refused(error: InputError) -> bool:
    """Tell whether MLflow is there and says no, or was named wrongly: waiting would change nothing."""
    text = str(error)
    away = ("cannot be reached", "does not answer", "fails with error", "went away", "the database")
    return not any(words in text for words in away)


def wanted(config: Config) -> list[str]:
    """Return the trackers to use: those of the configuration, without MLflow where no server is named.

    Raises:
        InputError: accelerate does not know one.
    """
    names = list(dict.fromkeys(config.training.trackers))
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(
                f"config: training.trackers names {name!r}. Choose from {', '.join(LOGGER_TYPE_TO_CLASS)}."
            )
    if "mlflow" in names and not server.tracking_uri(config.registry):
        logs.get("train").info(
            "no MLflow is named (registry.tracking_uri, MLFLOW_TRACKING_URI): scalars go to curves.jsonl alone"
        )
        names.remove("mlflow")
    return names


def start(accelerator: Accelerator, names: list[str], config: Config) -> None:
    """Open the trackers and log the configuration.

    Args:
        accelerator: made with these trackers.
        names: of `wanted`.
        config: logged as parameters with dotted names.

    Raises:
        InputError: a tracker's package is not installed, or MLflow refuses.
    """
    there = {item.name if isinstance(item, GeneralTracker) else str(item) for item in accelerator.log_with}
    for name in names:
        if name not in there:
            raise InputError(
                f"config: training.trackers names {name!r}, whose package is not installed. Install it or leave it out."
            )
    if names:
        more = {"wandb": _wandb_settings(str(accelerator.logging_dir))} if "wandb" in names else {}
        accelerator.init_trackers(config.registry.experiment, config=parameters(config), init_kwargs=more)


class Reporter:
    """Sends scalars to all trackers, in a thread of its own.

    Args:
        accelerator: has the trackers.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._warned = accelerator, False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trackers")

    def send(self, row: dict[str, Any]) -> None:
        """Have a step's line sent; returns at once."""
        if self._accelerator.trackers:
            values = {name: value for name, value in row.items() if name != "step"}
            self._thread.submit(self._accelerator.log, values, step=row["step"]).add_done_callback(self._look)

    def close(self, kept: Sequence[Path]) -> None:
        """Wait until everything is sent, upload files where MLflow takes them, and close the trackers."""
        self._thread.shutdown()
        for tracker in self._accelerator.trackers:
            if isinstance(tracker, MLflowBatches):
                tracker.keep(kept, "training")
            tracker.finish()

    def _look(self, sent: Future[None]) -> None:
        error = sent.exception()
        if error is not None and not self._warned:
            logs.get("train").warning(f"a tracker fails ({error}). Training goes on; curves.jsonl has all scalars.")
            self._warned = True


def _wandb_settings(folder: str) -> dict[str, Any]:
    """Return what W&B is opened with: files below `folder`, no network unless somebody gave it a key or a mode."""
    settings: dict[str, Any] = {"dir": folder, "settings": {"silent": True, "console": "off"}}
    if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY"):
        settings["mode"] = "offline"
        logs.get("train").info(
            f"W&B writes to {folder}/wandb alone, as neither WANDB_API_KEY nor WANDB_MODE is set; `wandb sync` sends it"
        )
    return settings


def parameters(config: Config) -> dict[str, str]:
    """Return the settings that a training is shown with: those that shape it.

    A pipeline gives a training its own sections alone; the others would be shown at their defaults here, and MLflow
    lets registration correct none of them.
    """
    told = {"preset": config.preset}
    for section in ("model", "training"):
        told |= flatten(portable({section: dataclasses.asdict(getattr(config, section))}))
    return told
