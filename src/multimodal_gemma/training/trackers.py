"""What is seen of a training while it runs: scalars, by any tracker that accelerate knows, and a page of curves.

Trackers are spoken to in a thread of their own, and MLflow gets its scalars in batches, since a write a step to its
database takes longer than a small step itself. A tracker watches; it never decides whether training goes on: one that
fails later is asked again with the next batch, and curves.jsonl has it all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process

from multimodal_gemma import files, logs
from multimodal_gemma.config.flat import flatten, portable
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server
from multimodal_gemma.training import curves
from multimodal_gemma.training.trainer_status import TrainerStatus

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from multimodal_gemma.config.schema import Config, RegistryConfig
    from multimodal_gemma.training.loop import Outcome

_FLUSH_EVERY = 5.0  # seconds
_PUBLISH_EVERY = 60.0  # seconds between two pages
_LOOK_EVERY = 1.0  # seconds after which the thread looks at the clock, though no step has ended
_MACHINE_EVERY = 10.0  # seconds between two looks at the machine; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL wins
_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # MLflow's limits on a request
_LONGEST_PARAM = 6000  # characters, MLflow's limit on a value
_FAILED = {
    "tracker": "a tracker fails",
    "page": "the page of the curves cannot be shown while training runs",
    "status": "Kubeflow Trainer does not take the status of its TrainJob",
}


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
            logs.get("train").warning(f"{error} Training goes on, and what MLflow misses is sent later.")
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
    """Shows a training while it runs, in a thread of its own: nothing here holds it up or ends it.

    Scalars go to all trackers at once. Every minute, if there is something new, the page of the curves is written anew,
    and goes to MLflow with what the model has said. Kubeflow Trainer, where it wants to, hears how far the training is.

    Args:
        accelerator: has the trackers.
        page: the file that gets the page.
        samples: the file that the answers are written to.
        image: the pixels of an image index, uint8 (H, W, 3).
    """

    def __init__(self, accelerator: Accelerator, page: Path, samples: Path, image: Callable[[int], Any]) -> None:
        self._accelerator, self._page, self._samples, self._image = accelerator, page, samples, image
        self._status = TrainerStatus()
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._rows: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        self._steps = self._before = 0
        self._begun = self._published = time.monotonic()
        self._drawn: tuple[int, int] = (0, 0)  # lines and answers on the page
        self._kept = True  # the page as it is drawn has reached MLflow
        self._warned: set[str] = set()
        self._thread: threading.Thread | None = None

    def begin(self, rows: Sequence[dict[str, Any]], steps: int) -> None:
        """Start.

        Args:
            rows: the lines of curves.jsonl of a training that continues.
            steps: how many there will be.
        """
        self._rows, self._steps, self._before = list(rows), steps, len(rows)
        self._begun = self._published = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="reporter", daemon=True)
        self._thread.start()

    def send(self, row: dict[str, Any]) -> None:
        """Have a step's line shown; returns at once."""
        self._lines.put(row)

    def close(self, outcome: Outcome | None = None) -> None:
        """Wait until everything is sent, and close the trackers.

        Args:
            outcome: how training ended; None: it broke off.

        Raises:
            InputError: the page of a training that ended cannot be written.
        """
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join()
            self._try("page", self._draw)
            if outcome is not None:
                self._draw(outcome)
                self._try("status", self._tell_end)
            self._try("page", self._keep)
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def _work(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                row = self._lines.get(timeout=_LOOK_EVERY)
                if row is None:
                    return
                self._rows.append(row)
                self._try("tracker", self._log, row)
            if self._status.wanted and self._rows and not self._status.due:
                self._try("status", self._tell)
            if time.monotonic() - self._published >= _PUBLISH_EVERY:
                self._try("page", self._draw)
                self._try("page", self._keep)
                self._published = time.monotonic()  # after a server's silence

    def _log(self, row: dict[str, Any]) -> None:
        if self._accelerator.trackers:
            self._accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def _draw(self, outcome: Outcome | None = None) -> None:
        """Write the page, if it would show anything new."""
        if self._samples.is_file():
            with contextlib.suppress(InputError):  # a line is being written
                self._answers = files.read_jsonl(self._samples, "samples")
        there = (len(self._rows), len(self._answers))
        if not self._rows or (outcome is None and there == self._drawn):
            return
        text = curves.page(
            self._rows,
            best_step=outcome.best_step if outcome else curves.best_so_far(self._rows),
            stopped_early=outcome is not None and outcome.stopped_early,
            running_to=0 if outcome else self._steps,
            samples=self._answers,
            image=self._image,
        )
        files.write_text(self._page, text)
        self._drawn, self._kept = there, False

    def _keep(self) -> None:
        """Upload page and answers to MLflow, if it has others."""
        if not self._kept:
            mlflows = [tracker for tracker in self._accelerator.trackers if isinstance(tracker, MLflowBatches)]
            self._kept = all(tracker.keep([self._page, self._samples], "training") for tracker in mlflows)

    def _tell(self) -> None:
        """Tell Kubeflow Trainer where training stands; the time left is that of the steps that this process took."""
        done, taken = self._rows[-1]["step"], len(self._rows) - self._before
        left = (time.monotonic() - self._begun) / taken * (self._steps - done) if taken else None
        metrics = {name: value for row in self._rows[-1:] for name, value in row.items() if name != "seconds"}
        validated = [row["validation_loss"] for row in self._rows if "validation_loss" in row]
        known = {"validation_loss": validated[-1]} if validated else {}
        self._status.tell(done / max(self._steps, 1), left, {**metrics, **known})

    def _tell_end(self) -> None:
        if self._status.wanted:
            time.sleep(self._status.due)
            self._status.tell(1.0, 0.0, {name: value for name, value in self._rows[-1].items() if name != "seconds"})

    def _try(self, what: str, do: Callable[..., None], *arguments: Any) -> None:
        """Do what must not end the training; the first failure of each kind is said."""
        try:
            do(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever happens to those who watch, training goes on
            if what not in self._warned:
                logs.get("train").warning(f"{_FAILED[what]} ({error}). Training goes on; curves.jsonl has all scalars.")
            self._warned.add(what)


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
