"""SIGTERM ends a training with a checkpoint and 75, and other work at once."""

from __future__ import annotations

import json
import os
import signal

import pytest

from multimodal_gemma.model.forward import SupervisedLoss
from multimodal_gemma.stages import train
from multimodal_gemma.training import checkpoint, curves, failures
from tests.unit.training import toys


def test_outside_the_loop_the_process_ends_at_once():
    with failures.Watch(), pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 75


def test_inside_the_loop_it_is_only_noted_and_the_handler_goes_with_the_block():
    before = signal.getsignal(signal.SIGTERM)
    with failures.Watch() as watch, watch.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.asked
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("at", [2, 3], ids=["between validations", "at a validation"])
def test_the_step_that_runs_is_saved_and_continued_to_the_same_bytes(tmp_path, monkeypatch, at):
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    config = toys.configuration("model.lora.dropout=0.2")
    alone = train.run(config, dataset, models, tmp_path / "alone")
    add = curves.Curves.add

    def wanted_back(self, row):
        add(self, row)
        if row["step"] == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(curves.Curves, "add", wanted_back)
        with pytest.raises(SystemExit) as ended:
            train.run(config, dataset, models, tmp_path / "model")
    assert ended.value.code == failures.EXIT_CODE == 75
    assert checkpoint.steps(tmp_path / "model" / "checkpoints")[-1] == at
    assert train.run(config, dataset, models, tmp_path / "model").digest == alone.digest


def test_a_validation_is_left_at_once_and_made_up_for(tmp_path, monkeypatch):
    """A validation may take longer than the half minute that a spot node leaves; its result must not be lost."""
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    config = toys.configuration("model.lora.dropout=0.2", "training.batch_tokens=100", "training.max_steps=4")
    alone = train.run(config, dataset, models, tmp_path / "alone")
    states, seen = SupervisedLoss.states, []

    def wanted_back(self, batch, pictures):
        if not self.training:
            seen.append(len(batch.targets))
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return states(self, batch, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedLoss, "states", wanted_back)
        with pytest.raises(SystemExit) as ended:
            train.run(config, dataset, models, tmp_path / "model")
    assert ended.value.code == 75
    assert len(seen) == 2  # of eight conversations, one a forward pass
    assert checkpoint.steps(tmp_path / "model" / "checkpoints") == [3]
    assert train.run(config, dataset, models, tmp_path / "model").digest == alone.digest
    rows = [json.loads(line) for line in (tmp_path / "model" / "curves.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (tmp_path / "alone" / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("validation_loss") for row in rows] == [row.get("validation_loss") for row in expected]
