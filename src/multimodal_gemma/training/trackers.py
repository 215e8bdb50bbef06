"""Where scalars go beside curves.jsonl: any tracker that accelerate knows, MLflow by default.

MLflow gets its scalars in batches, since a write a step to its database takes longer than a small step itself. A
tracker watches; it never decides whether training goes on: one that fails later is asked again with the next batch,
and curves.jsonl has it all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config, RegistryConfig

_FLUSH_EVERY = 5.0  # seconds
_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100  # MLflow's limits on a request
_LONGEST_PARAM = 6000  # characters, MLflow's limit on a value


class MLflowBatches(GeneralTracker):
    """MLflow for accelerate: parameters once, scalars in batches, the run left open for the stages that follow.

    Args:
        registry: says where MLflow is.
        run_id: an existing run.
    """

    name = "mlflow"
    requires_logging_directory = False

    def __init__(self, registry: RegistryConfig, run_id: str) -> None:
        super().__init__()
        self._registry, self._run_id = registry, run_id
        self._waiting: list[tuple[str, float, int, int]] = []  # name, value, time in ms, step
        self._flushed = time.monotonic()
        self._warned = False

    @property
    def tracker(self) -> str:
        """The run's id."""
        return self._run_id

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log settings as the run's parameters.

        Raises:
            InputError: MLflow cannot be reached, or the run has other values for them.
        """
        from mlflow.entities import Param

        params = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in values.items()]
        with server.connected(self._registry) as client:
            for start in range(0, len(params), _PARAMS_A_BATCH):
                client.log_batch(self._run_id, params=params[start : start + _PARAMS_A_BATCH])

    @on_main_process
    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        """Take a step's scalars, and send what waits if the last time was long ago."""
        now = int(time.time() * 1000)
        self._waiting += [(name, float(value), now, step or 0) for name, value in values.items()]
        if time.monotonic() - self._flushed >= _FLUSH_EVERY:
            self._flush()

    @on_main_process
    def finish(self) -> None:
        """Send what waits; the run stays open."""
        self._flush()
        if self._waiting:
            logs.get("train").warning(f"{len(self._waiting):,} scalars did not reach MLflow; curves.jsonl has them")

    def _flush(self) -> None:
        from mlflow.entities import Metric

        self._flushed = time.monotonic()
        try:
            with server.connected(self._registry) as client:
                while self._waiting:
                    part = self._waiting[:_METRICS_A_BATCH]
                    client.log_batch(self._run_id, metrics=[Metric(*row) for row in part])
                    del self._waiting[: len(part)]
        except InputError as error:
            if not self._warned:
                logs.get("train").warning(f"{error} Training goes on, and the scalars are sent later.")
            self._warned = True


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
        accelerator.init_trackers(config.registry.experiment, config=flatten(dataclasses.asdict(config)))


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys, lists and None as text."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item if isinstance(item, int | float | str | bool) else str(item)
    return flat
