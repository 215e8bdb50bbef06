"""Weights cut over two processes train as whole ones do, and one process continues what two began."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multimodal_gemma import config as configuration
from multimodal_gemma import manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from multimodal_gemma.training import checkpoint
from tests.unit.training import toys

# Budgets of single conversations: the processes have different numbers of micro-batches at many steps.
# The encoder runs at every step: frozen, it is whole in both.
SETTINGS = ("training.batch_tokens=100", "training.warmup_fraction=0", "training.feature_cache=none")
SETTINGS += ("training.sharding=fsdp",)
PROCESS = """
import os, signal, sys
from pathlib import Path
from multimodal_gemma import config
from multimodal_gemma.stages import train
from multimodal_gemma.training import curves, loop

settings, dataset, models, output, stop = sys.argv[1:]
add, step = curves.Curves.add, loop.Trainer._step
held = []

def weighed(self, number):
    found = step(self, number)
    language = list(self.job.loss.llava.model.language_model.parameters())
    held.append(sum(weight.to_local().numel() for weight in language) / sum(weight.numel() for weight in language))
    return found

def wanted_back(self, row):
    add(self, row)
    if row["step"] == int(stop):
        os.kill(os.getpid(), signal.SIGTERM)

loop.Trainer._step, curves.Curves.add = weighed, wanted_back
train.run(config.from_json(Path(settings).read_text()), Path(dataset), Path(models), Path(output))
assert all(0.4 < share < 0.6 for share in held), held  # of the weights, between steps
"""


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def two_processes(folder: Path, output: str, stop: int = 0) -> subprocess.CompletedProcess[str]:
    (folder / "process.py").write_text(PROCESS)
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(folder / "process.py")]
    arguments = [str(folder / name) for name in ("settings.json", "data", "models", output)]
    return subprocess.run(
        [sys.executable, *launched, *arguments, str(stop)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(train.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("given")
    models = toys.write_models(folder / "models")
    dataset = toys.write_dataset(folder / "data", models, text_only=12)
    config = toys.configuration(*SETTINGS)
    (folder / "settings.json").write_text(configuration.to_json(config))
    return folder, config, train.run(config, dataset, models, folder / "one")


def close_to(folder: Path, expected: Path) -> None:
    ours, theirs = rows(folder), rows(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], rel=tolerance)
    losses = [[row["validation_loss"] for row in found if "validation_loss" in row] for found in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    weights, others = (load_file(place / "model.safetensors") for place in (folder, expected))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=2e-5)


def test_two_processes_with_a_part_of_the_weights_each_are_one_with_all(given):
    """Losses, gradient norms, validation and the written model; some batches are of text alone."""
    folder, _, one = given
    done = two_processes(folder, "two")
    assert done.returncode == 0, done.stderr[-3000:]
    close_to(folder / "two", one.folder)
    assert manifest.verify(folder / "two", "model").facts["steps"] == 6


def test_one_process_continues_what_two_began(given, tmp_path):
    """A checkpoint holds whole weights and moments, named and ordered as those of a process alone."""
    folder, config, one = given
    done = two_processes(folder, "begun", stop=4)
    assert done.returncode != 0
    assert checkpoint.steps(folder / "begun" / "checkpoints")[-1] == 4, done.stderr[-3000:]
    shutil.copytree(folder / "begun", tmp_path / "continued")
    made = train.run(config, folder / "data", folder / "models", tmp_path / "continued")
    close_to(made.folder, one.folder)
    again = two_processes(folder, "begun")  # and so do two
    assert again.returncode == 0, again.stderr[-3000:]
    close_to(folder / "begun", one.folder)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.language_quantization=nf4", "Set model.language_quantization=none"),
        ("training.share_images=on", "Set training.share_images=auto"),
        ("training.compile=on", "Set training.compile=auto"),
    ],
)
def test_what_cut_weights_exclude_is_said(given, tmp_path, override, sentence):
    folder, _, _ = given
    with pytest.raises(InputError, match=f"{override} does not fit training.sharding=fsdp. {sentence}"):
        train.run(toys.configuration(*SETTINGS, override), folder / "data", folder / "models", tmp_path)
