"""MLflow sees parameters and every scalar, in one run that stays open, and its failure never stops training."""

from __future__ import annotations

import logging
import time

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server, tracking
from multimodal_gemma.stages import train
from tests.unit.registry.artifacts import ensure_run
from tests.unit.training import toys


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return f"registry.tracking_uri=sqlite:///{tmp_path}/mlflow.db"


def test_a_training_is_seen_in_the_pipelines_run(tmp_path, mlflow):
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    config = toys.configuration("training.trackers=[mlflow]", mlflow)
    expected = ensure_run(config.registry, "pipeline-1")
    train.run(config, dataset, models, tmp_path / "model", run_id="pipeline-1")
    with server.connected(config.registry) as client:
        run = client.get_run(expected)
        losses = client.get_metric_history(expected, "loss")
        validated = client.get_metric_history(expected, "validation_loss")
    assert run.info.status == "RUNNING"  # the stages that follow write into it
    assert run.data.params["model.lora.rank"] == "4"
    assert run.data.params["training.projector_lr"] == "0.001"
    assert [metric.step for metric in losses] == [1, 2, 3, 4, 5, 6]
    assert [metric.step for metric in validated] == [3, 6]


def test_the_machine_is_watched_while_training_goes_on(mlflow, tmp_path, monkeypatch):
    from accelerate import PartialState

    PartialState(cpu=True)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    registry = toys.configuration(mlflow).registry
    tracker = tracking.MLflowBatches(registry, "pipeline-4", tmp_path / "waiting.jsonl")
    seen: list[float] = []
    with server.connected(registry) as client:
        for _ in range(100):
            seen = [
                metric.value
                for metric in client.get_metric_history(tracker.tracker, "system/system_memory_usage_percentage")
            ]
            if len(seen) >= 2:
                break
            time.sleep(0.1)
    tracker.finish()
    assert len(seen) >= 2
    assert all(0 < value <= 100 for value in seen)
    with server.connected(registry) as client:
        assert client.get_run(tracker.tracker).info.status == "RUNNING"


def test_an_outage_is_named_once_and_the_scalars_follow(tmp_path, mlflow, monkeypatch):
    from accelerate import PartialState

    PartialState(cpu=True)
    registry = toys.configuration(mlflow).registry
    run = ensure_run(registry, "pipeline-2")
    tracker = tracking.MLflowBatches(registry, "pipeline-2", tmp_path / "waiting.jsonl")
    monkeypatch.setattr(tracking, "_FLUSH_EVERY", 0.0)
    warnings: list[str] = []

    def away(_):
        raise InputError("registry: MLflow at x went away in the middle of the work.")

    with monkeypatch.context() as outage:
        outage.setattr(tracking.server, "connected", away)
        outage.setattr(logging.Logger, "warning", lambda _, text: warnings.append(text))
        tracker.log({"loss": 2.0}, step=1)
        tracker.log({"loss": 1.0}, step=2)
    assert len(warnings) == 1
    assert "went away" in warnings[0]
    tracker.finish()
    with server.connected(registry) as client:
        assert [metric.value for metric in client.get_metric_history(run, "loss")] == [2.0, 1.0]


def test_a_server_that_is_down_from_the_start_to_the_end_stops_nothing(tmp_path, mlflow, monkeypatch):
    """The scalars of the first training wait in its folder, and reach MLflow when it is back."""
    from accelerate import PartialState

    PartialState(cpu=True)
    down = toys.configuration("registry.tracking_uri=http://127.0.0.1:9").registry
    spool = tmp_path / "waiting.jsonl"
    tracker = tracking.MLflowBatches(down, "pipeline-3", spool)
    tracker.store_init_configuration({"model.lora.rank": 4})
    tracker.log({"loss": 2.0}, step=1)
    tracker.finish()
    assert spool.is_file()
    up = toys.configuration(mlflow).registry
    again = tracking.MLflowBatches(up, "pipeline-3", spool)
    again.log({"loss": 1.0}, step=2)
    again.finish()
    assert not spool.exists()
    with server.connected(up) as client:
        history = client.get_metric_history(again.tracker, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]


def test_a_location_that_cannot_be_mlflow_is_said_at_once(tmp_path):
    registry = toys.configuration("registry.tracking_uri=ftp://nowhere").registry
    with pytest.raises(InputError, match="no MLflow that can be used"):
        tracking.MLflowBatches(registry, "", tmp_path / "waiting.jsonl")
