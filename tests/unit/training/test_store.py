"""Checkpoints outlive the machine: copied to a store, fetched onto an empty disk, whole or not at all."""

from __future__ import annotations

import shutil

import pytest
import requests

from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from multimodal_gemma.training import checkpoint, store
from tests.unit.training import toys
from tests.unit.training.test_checkpoint import save


@pytest.fixture
def bucket(monkeypatch):
    """A store that speaks S3, over HTTP."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)  # servers of one process share their objects
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    from multimodal_gemma.data.sources import buckets

    client = buckets.s3_client()
    client.make_bucket("spot")
    yield client
    server.stop()


def names(client) -> set[str]:
    return {item.object_name for item in client.list_objects("spot", recursive=True)}


def test_what_is_kept_is_copied_and_comes_back(bucket, tmp_path):
    here = tmp_path / "here"
    copies = store.CheckpointStore("s3://spot/run")
    for step in (1, 2, 3):
        save(here, step)
    copies.mirror(here, {1, 2})
    checkpoint.prune(here, {2, 3})
    copies.mirror(here, {2, 3})
    assert {name.split("/")[1] for name in names(bucket)} == {"step-00000002", "step-00000003"}
    there = tmp_path / "there"
    there.mkdir()
    copies.restore(there)
    assert checkpoint.load_newest(there)[0].step == 3
    assert checkpoint.load(there, 2)[0].step == 2


def test_a_copy_that_was_cut_off_counts_as_absent(bucket, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    copies = store.CheckpointStore("s3://spot/run")
    save(here, 1)
    save(here, 2)
    copies.mirror(here, {1, 2})
    bucket.remove_object("spot", "run/step-00000002/manifest.json")  # goes last when copied
    there.mkdir()
    copies.restore(there)
    assert checkpoint.steps(there) == [1]


def test_a_training_continues_on_another_machine(bucket, tmp_path, monkeypatch):
    """The first machine is gone with its disk; the second ends in the bytes of a run that was left alone."""
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    settings = ("model.lora.dropout=0.2", "training.checkpoint_uri=s3://spot/trainings")
    alone = train.run(toys.configuration(settings[0]), dataset, models, tmp_path / "alone")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_write_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(toys.configuration(*settings), dataset, models, tmp_path / "first")
    for name in names(bucket):
        if "step-00000006" in name:  # the machine went before the last copy
            bucket.remove_object("spot", name)
    shutil.rmtree(tmp_path / "first")
    second = train.run(toys.configuration(*settings), dataset, models, tmp_path / "second")
    weights = [(made.folder / "model.safetensors").read_bytes() for made in (alone, second)]
    assert weights[0] == weights[1]
    assert second.numbers["loss"] == alone.numbers["loss"]
    assert "step-00000003" in " ".join(names(bucket))


@pytest.mark.parametrize("change", ["training.epochs=3", "training.epochs=1", "training.patience=9", "code"])
def test_a_training_to_another_end_or_by_other_code_begins_anew(bucket, tmp_path, monkeypatch, change):
    """A finished training's checkpoints stay in the store, where a later run names the same prefix."""
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    uri = "training.checkpoint_uri=s3://spot/trainings"
    train.run(toys.configuration(uri), dataset, models, tmp_path / "first")
    changed = () if change == "code" else (change,)
    alone = train.run(toys.configuration(*changed), dataset, models, tmp_path / "alone")
    if change == "code":
        monkeypatch.setattr(train, "CODE", ("errors.py",))
    second = train.run(toys.configuration(uri, *changed), dataset, models, tmp_path / "second")
    lines = [len((made.folder / "curves.jsonl").read_text().splitlines()) for made in (alone, second)]
    assert lines[0] == lines[1]  # each of its steps, from the first on
    weights = [(made.folder / "model.safetensors").read_bytes() for made in (alone, second)]
    assert weights[0] == weights[1]


def test_a_store_that_is_away_stops_a_start_but_no_training(bucket, tmp_path, monkeypatch, caplog):
    save(tmp_path / "here", 1)
    copies = store.CheckpointStore("s3://nowhere/run")
    copies.mirror(tmp_path / "here", {1})  # a warning: the checkpoint itself is safe
    with pytest.raises(InputError, match=r"s3://nowhere/run, cannot be used \(NoSuchBucket\)"):
        copies.restore(tmp_path / "there")
    with pytest.raises(InputError, match="Write s3://BUCKET/PREFIX"):
        store.CheckpointStore("/some/folder")
