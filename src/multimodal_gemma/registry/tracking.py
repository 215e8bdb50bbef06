"""A training in MLflow while it runs: its scalars in batches, its settings, its machine's load, its pages.

A write a step to MLflow's database takes longer than a small step itself, hence the batches. What does not reach the
server while a training runs is sent later; it never holds the training up or ends it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import GeneralTracker, on_main_process

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import runs, server

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from multimodal_gemma.config.schema import RegistryConfig

_FLUSH_EVERY = 5.0  # seconds
_MACHINE_EVERY = 10.0  # seconds between two looks at the machine; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # MLflow's limits on a request
_LONGEST_PARAM = 6000  # characters, MLflow's limit on a value


def open_tracker(registry: RegistryConfig, pipeline_run: str, spool: Path) -> MLflowBatches | None:
    """Return MLflow as `MLflowBatches` shows it; None, and a line in the log, where no server is named."""
    if server.tracking_uri(registry):
        return MLflowBatches(registry, pipeline_run, spool)
    logs.get("train").info(
        "no MLflow is named (registry.tracking_uri, MLFLOW_TRACKING_URI): scalars go to curves.jsonl alone"
    )
    return None


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

    def keep(self, paths: Sequence[Path], folder: str) -> bool:
        """Upload files as artifacts of the run, after the scalars that wait; False if the server is away."""
        self._flush()
        if not self._run_id or self._waiting:
            return False
        try:
            with server.connected(self._registry) as client:
                for path in paths:
                    if path.is_file():
                        client.log_artifact(self._run_id, str(path), folder)
        except InputError as error:
            self._warn(error)
            return False
        return True

    def _find_run(self) -> None:
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
            logs.get("train").warning(f"{error} Training goes on, and what MLflow misses is sent later.")
        self._warned = True


def _refused(error: InputError) -> bool:
    """Tell whether MLflow is there and says no, or was named wrongly: waiting would change nothing."""
    text = str(error)
    away = ("cannot be reached", "does not answer", "fails with error", "went away", "the database")
    return not any(words in text for words in away)
