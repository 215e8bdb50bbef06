"""What is seen of a training while it runs: scalars, by any tracker that accelerate knows, and a page of curves.

Trackers are spoken to in a thread of their own. A tracker watches; it never decides whether training goes on: one that
fails later is asked again, and curves.jsonl has it all. MLflow's is given by the caller (see `registry.tracking`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import queue
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from multimodal_gemma import files, logs
from multimodal_gemma.config.flat import flatten, portable
from multimodal_gemma.errors import InputError
from multimodal_gemma.training import curves

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config, TrainingConfig
    from multimodal_gemma.training.loop import Outcome

_PUBLISH_EVERY = 60.0  # seconds between two pages
_LOOK_EVERY = 1.0  # seconds after which the thread looks at the clock, though no step has ended
_VARIABLES = ("KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_CA_CERT", "KUBEFLOW_TRAINER_SERVER_TOKEN")
_TELL_EVERY = 5.0  # seconds between two messages at least: each becomes a write to the Kubernetes API
_PATIENCE = 5.0  # seconds for an answer
_MOST_METRICS, _LONGEST_TEXT = 256, 64  # metrics; characters of a name or a value
_FAILED = {
    "tracker": "a tracker fails",
    "page": "the page of the curves cannot be shown while training runs",
    "status": "Kubeflow Trainer does not take the status of its TrainJob",
}


@runtime_checkable
class KeepsFiles(Protocol):
    """A tracker that also keeps files of a training."""

    def keep(self, paths: Sequence[Path], folder: str) -> bool:
        """Upload files to a folder of the run; False if the server is away."""


def wanted(training: TrainingConfig, mlflow: GeneralTracker | None) -> list[str | GeneralTracker]:
    """Return what `Accelerator` logs with: the trackers of the configuration, MLflow as it is given.

    Args:
        training: names the trackers.
        mlflow: stands for that name; None: there is none.

    Raises:
        InputError: accelerate does not know one.
    """
    for name in training.trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(
                f"config: training.trackers names {name!r}. Choose from {', '.join(LOGGER_TYPE_TO_CLASS)}."
            )
    names = [name for name in dict.fromkeys(training.trackers) if name != "mlflow"]
    return [*names, *([mlflow] if mlflow is not None else [])]


def start(accelerator: Accelerator, trackers: Sequence[str | GeneralTracker], config: Config) -> None:
    """Open the trackers and log the configuration.

    Args:
        accelerator: made with these trackers.
        trackers: of `wanted`.
        config: logged as parameters with dotted names.

    Raises:
        InputError: a tracker's package is not installed, or MLflow refuses.
    """
    there = {str(item) for item in accelerator.log_with}
    for name in trackers:
        if isinstance(name, str) and name not in there:
            raise InputError(
                f"config: training.trackers names {name!r}, whose package is not installed. Install it or leave it out."
            )
    if trackers:
        more = {"wandb": _wandb_settings(str(accelerator.logging_dir))} if "wandb" in trackers else {}
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
            if outcome is None:
                self._try("page", self._draw)
            else:
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
        """Upload page and answers to the trackers that take files, if they have others."""
        if not self._kept:
            keeping = [tracker for tracker in self._accelerator.trackers if isinstance(tracker, KeepsFiles)]
            self._kept = all(tracker.keep([self._page, self._samples], "training") for tracker in keeping)

    def _tell(self) -> None:
        """Tell Kubeflow Trainer where training stands; the time left is that of the steps that this process took."""
        done, taken = self._rows[-1]["step"], len(self._rows) - self._before
        left = (time.monotonic() - self._begun) / taken * (self._steps - done) if taken else None
        metrics = {name: value for row in self._rows[-1:] for name, value in row.items() if name != "seconds"}
        validated: dict[str, Any] = next((row for row in reversed(self._rows) if "validation_loss" in row), {})
        known = {name: value for name, value in validated.items() if name.startswith("validation_")}
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


class TrainerStatus:
    """Tells Kubeflow Trainer how far a training is, which shows it as `status.trainerStatus` of its TrainJob.

    Kubeflow Trainer 2.2 or newer with the alpha feature gate TrainJobStatus (proposals/2779-trainjob-progress and
    pkg/statusserver of kubeflow/trainer) gives a node's container three variables: the address to POST to, and the
    files with the authority that signed its certificate and with a token for this one TrainJob. Both files change while
    a training runs, so they are read each time. Without the variables there is nobody to tell.
    """

    def __init__(self) -> None:
        self._url, self._authority, self._token = (os.environ.get(name, "") for name in _VARIABLES)
        self._told = -_TELL_EVERY

    @property
    def wanted(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._url and self._authority and self._token)

    @property
    def due(self) -> float:
        """Seconds until the next message may be sent; 0: now."""
        return max(self._told + _TELL_EVERY - time.monotonic(), 0.0)

    def tell(self, share: float, seconds_left: float | None, metrics: Mapping[str, float]) -> None:
        """Send one message.

        Args:
            share: of the training that is done, 0 to 1.
            seconds_left: until its end, as far as one can tell; None: nobody knows.
            metrics: what is known of the last step.

        Raises:
            OSError: nobody answers, a file cannot be read, or the answer is no 200.
        """
        self._told = time.monotonic()
        status: dict[str, object] = {
            "progressPercentage": min(max(int(100 * share), 0), 100),
            "metrics": [
                {"name": name[:_LONGEST_TEXT], "value": f"{value:.6g}"}
                for name, value in list(metrics.items())[:_MOST_METRICS]
            ],
            "lastUpdatedTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if seconds_left is not None:
            status["estimatedRemainingSeconds"] = max(int(seconds_left), 0)
        body = json.dumps({"trainerStatus": status}).encode()
        token = Path(self._token).read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        there = urlsplit(self._url)
        # No proxy and no redirect: the token is for this server alone.
        trusted = ssl.create_default_context(cafile=self._authority)
        server = http.client.HTTPSConnection(there.netloc, timeout=_PATIENCE, context=trusted)
        try:
            server.request("POST", there.path, body, headers)
            answer = server.getresponse()
            said = answer.read(1000).decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(f"{there.netloc} does not speak HTTP: {error}") from error
        finally:
            server.close()
        if answer.status != http.client.OK:
            raise OSError(f"{there.netloc} answers {answer.status}: {said.strip()}")


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
