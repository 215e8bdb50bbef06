"""W&B without a network or an account: scalars and settings lie in a run folder that `wandb sync` takes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from multimodal_gemma import manifest
from multimodal_gemma.stages import train
from tests.unit.training import toys

pytest.importorskip("wandb")
_BLOCK, _HEADER = 32_768, 7  # of LevelDB's log format, in which W&B writes
_WHOLE, _LAST = 1, 4


def records(path: Path) -> list:
    """Read a .wandb file by its published format: a file header, then LevelDB log records of protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    data, place, held, found = path.read_bytes(), _HEADER, b"", []
    assert data.startswith(b":W&B")
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += _HEADER
        held += data[place : place + length]
        place += length
        if kind in (_WHOLE, _LAST):
            found.append(wandb_internal_pb2.Record.FromString(held))
            held = b""
    return found


def named(items) -> dict:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_a_training_leaves_a_run_folder_without_a_network(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    config = toys.configuration("training.trackers=[wandb]", "training.max_steps=4")
    made = train.run(config, dataset, models, tmp_path / "model")
    (path,) = (made.folder / "trackers" / "wandb").glob("offline-run-*/run-*.wandb")
    found = records(path)
    expected = [json.loads(line) for line in (made.folder / "curves.jsonl").read_text().splitlines()]
    history = [named(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in expected])
    assert history[2]["validation_loss"] == pytest.approx(expected[2]["validation_loss"])
    settings = {}
    for record in found:
        settings |= named(record.run.config.update) | named(record.config.update)
    assert settings["model.lora.rank"] == "4"
    assert not (tmp_path / "wandb").exists()  # where W&B would write by itself
    assert not any(name.startswith("trackers/") for name in manifest.read(made.folder).files)
