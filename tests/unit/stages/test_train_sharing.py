"""Reading an image once for its conversations changes what a step costs, not what it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from tests.unit.training import toys

ONE_STEP = ("training.max_steps=1", "training.batch_size=24", "training.batch_tokens=4096")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return toys.write_models(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def dataset(models, tmp_path_factory) -> Path:
    return toys.write_dataset(tmp_path_factory.mktemp("dataset") / "data", models, an_image=6)


def trained(dataset: Path, models: Path, folder: Path, *overrides: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    train.run(toys.configuration(*overrides), dataset, models, folder)
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return rows, load_file(folder / "model.safetensors")


def test_a_step_learns_the_same_with_fewer_positions(models, dataset, tmp_path) -> None:
    alone, expected = trained(dataset, models, tmp_path / "off", *ONE_STEP, "training.share_images=off")
    shared, found = trained(dataset, models, tmp_path / "on", *ONE_STEP, "training.share_images=on")
    for name in ("loss", "grad_norm", "validation_loss"):
        assert shared[0][name] == pytest.approx(alone[0][name], abs=1e-5), name
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)
    tokens = [rows[0]["tokens_per_second"] * rows[0]["seconds"] for rows in (shared, alone)]
    assert tokens[0] < 0.95 * tokens[1]


def test_training_goes_on_after_a_kill_as_if_nothing_had_been(models, dataset, tmp_path, monkeypatch) -> None:
    _, expected = trained(dataset, models, tmp_path / "whole")
    from multimodal_gemma.training.loop import Trainer

    stock = Trainer._step

    def until_the_fifth(self: Trainer, step: int) -> dict:
        if step == 5:
            raise KeyboardInterrupt
        return stock(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", until_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            trained(dataset, models, tmp_path / "broken")
    _, found = trained(dataset, models, tmp_path / "broken")
    assert {name: weight.numpy().tobytes() for name, weight in found.items()} == {
        name: weight.numpy().tobytes() for name, weight in expected.items()
    }


def test_sharing_that_cannot_be_is_refused_and_auto_does_without(models, dataset, tmp_path) -> None:
    with pytest.raises(InputError, match=r"training\.share_images=on does not fit: training\.gradient_checkpointing"):
        trained(dataset, models, tmp_path / "on", "training.share_images=on", "training.gradient_checkpointing=true")
    trained(dataset, models, tmp_path / "auto", *ONE_STEP, "training.gradient_checkpointing=true")
