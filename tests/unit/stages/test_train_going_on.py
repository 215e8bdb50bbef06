"""A training is continued with other means, to a later end, or from adapters that were trained before."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from multimodal_gemma.training import checkpoint, curves, device
from tests.unit.training import toys


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("given")
    models = toys.write_models(folder / "models")
    return toys.write_dataset(folder / "data", models, an_image=4), models


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("multimodal_gemma"), "propagate", True)
    caplog.set_level(logging.INFO, "multimodal_gemma")
    return caplog


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """The machine is gone."""


def kill_after(step: int, patch: pytest.MonkeyPatch) -> None:
    add = curves.Curves.add

    def dies(self, row):
        add(self, row)
        if row["step"] == step:
            raise Killed

    patch.setattr(curves.Curves, "add", dies)


def test_what_saves_memory_may_change_in_the_middle(given, tmp_path, monkeypatch, said):
    """As after a lack of memory: less at a time, layers computed twice, nothing kept; the losses are the same."""
    alone = train.run(toys.configuration(), *given, tmp_path / "alone")
    with monkeypatch.context() as patch:
        kill_after(4, patch)
        with pytest.raises(Killed):
            train.run(toys.configuration(), *given, tmp_path / "model")
    less = ("training.batch_tokens=100", "training.gradient_checkpointing=true", "training.feature_cache=none")
    train.run(toys.configuration(*less), *given, tmp_path / "model")
    assert "training.batch_tokens was 512 until this checkpoint and is 100 from now on" in said.text
    expected = [row["loss"] for row in rows(alone.folder)]
    assert [row["loss"] for row in rows(tmp_path / "model")] == pytest.approx(expected, abs=1e-5)


def test_a_finished_training_may_be_made_longer(given, tmp_path, said):
    first = train.run(toys.configuration("training.max_steps=4"), *given, tmp_path)
    second = train.run(toys.configuration(), *given, tmp_path)
    assert (first.numbers["steps"], second.numbers["steps"]) == (4, 6)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert "training ends at step 6 instead of 4" in said.text
    with pytest.raises(InputError, match="stands at step 6, and training.epochs and training.max_steps make 5 steps"):
        train.run(toys.configuration("training.max_steps=5"), *given, tmp_path)


def test_a_checkpoint_by_the_clock_costs_no_exactness(given, tmp_path, monkeypatch):
    """Zero minutes: after each step. What is killed before any validation goes on from there, to the same bytes."""
    alone = train.run(toys.configuration("model.lora.dropout=0.2"), *given, tmp_path / "alone")
    often = toys.configuration("model.lora.dropout=0.2", "training.checkpoint_minutes=0")
    with monkeypatch.context() as patch:
        kill_after(2, patch)
        with pytest.raises(Killed):
            train.run(often, *given, tmp_path / "model")
    assert checkpoint.steps(tmp_path / "model" / "checkpoints") == [1]
    train.run(often, *given, tmp_path / "model")
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "training_images.txt"):
        assert (tmp_path / "model" / name).read_bytes() == (alone.folder / name).read_bytes(), name


def test_a_training_starts_from_adapters_that_were_trained_before(given, tmp_path):
    dataset, models = given
    first = train.run(toys.configuration("training.max_steps=2"), dataset, models, tmp_path / "first")
    started = toys.write_models(tmp_path / "models")
    (first.folder / "adapter").rename(started / "adapter")
    still = ("training.projector_lr=0", "training.lora_lr=0", "training.weight_decay=0", "training.max_steps=1")
    config = toys.configuration(f"model.adapter={first.folder}", *still)
    second = train.run(config, dataset, started, tmp_path / "second")
    before, after = (load_file(folder / "model.safetensors") for folder in (first.folder, second.folder))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6, msg=name)
    other = toys.configuration(f"model.adapter={first.folder}", "model.lora.rank=2")
    with pytest.raises(InputError, match=r"its rank is 4 and its alpha 8, this run asks for 2 and 8. Set model.lora"):
        train.run(other, dataset, started, tmp_path / "rank")
    fewer = toys.configuration(f"model.adapter={first.folder}", "model.lora.targets=[q_proj]")
    with pytest.raises(InputError, match=r"\d+ of its weights do not fit this language model and model.lora.targets"):
        train.run(fewer, dataset, started, tmp_path / "targets")


def test_an_adapter_of_another_base_is_refused(given, tmp_path):
    dataset, models = given
    started = toys.write_models(tmp_path / "models")
    there = "model.language=hf://google/gemma-3-270m@abc"
    first = train.run(toys.configuration("training.max_steps=1", there), dataset, models, tmp_path / "first")
    (first.folder / "adapter").rename(started / "adapter")
    config = toys.configuration(f"model.adapter={first.folder}", "model.language=hf://google/gemma-3-270m-it@abc")
    with pytest.raises(InputError, match="trained on google/gemma-3-270m, and .* is google/gemma-3-270m-it"):
        train.run(config, dataset, started, tmp_path / "second")


def test_bf16_learns_what_fp32_learns(given, tmp_path, monkeypatch):
    """As on a GPU: frozen weights and products in bf16, what learns in fp32; it survives a kill, features kept."""
    exact = train.run(toys.configuration("training.feature_cache=disk"), *given, tmp_path / "fp32")
    monkeypatch.setattr(device, "choose_precision", lambda *_: "bf16")
    config = toys.configuration("training.feature_cache=disk", "model.lora.dropout=0.0")
    rounded = train.run(config, *given, tmp_path / "bf16")
    for one, other in zip(rows(exact.folder), rows(rounded.folder), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=0.01)
        assert other["loss"] != one["loss"]
    assert rounded.numbers["validation_loss"] == pytest.approx(exact.numbers["validation_loss"], abs=0.01)
    weights = load_file(rounded.folder / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    with monkeypatch.context() as patch:
        kill_after(4, patch)
        with pytest.raises(Killed):
            train.run(config, *given, tmp_path / "resumed")
    assert train.run(config, *given, tmp_path / "resumed").digest == rounded.digest
