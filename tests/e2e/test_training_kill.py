"""Trainings that are shot again and again end in the bytes of one that was left alone.

Real processes, real signals, at random moments: while models load, in the middle of a step, of a validation and of a
save. The processes are forked from a server that has the libraries loaded, so that minutes suffice.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma import manifest

KILLS, TERMS = 20, 5
OVERRIDES = (
    "training.epochs=8",  # 24 steps, each of several micro-batches, a checkpoint after every third
    "training.batch_tokens=100",
    "training.patience=1000",
    "model.lora.dropout=0.2",
)


def attempt(settings: str, dataset: str, models: str, output: str) -> None:
    """What one process of a training does; runs in a child."""
    import torch

    from multimodal_gemma.stages import train
    from multimodal_gemma.stages.component import guarded

    torch.set_num_threads(1)
    with guarded():
        train.run(configuration.from_json(settings), Path(dataset), Path(models), Path(output))


@dataclasses.dataclass
class Bench:
    processes: multiprocessing.context.ForkServerContext
    arguments: tuple[str, str, str]

    def start(self, output: Path) -> multiprocessing.process.BaseProcess:
        process = self.processes.Process(target=attempt, args=(*self.arguments, str(output)))
        process.start()
        return process

    def to_the_end(self, output: Path) -> str:
        process = self.start(output)
        process.join(120)
        assert process.exitcode == 0
        return manifest.verify(output, "model").digest


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    from tests.unit.training import toys

    folder = tmp_path_factory.mktemp("kill")
    models = toys.write_models(folder / "models")
    dataset = toys.write_dataset(folder / "data", models)
    settings = configuration.to_json(toys.configuration(*OVERRIDES))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multimodal_gemma.training.session", "multimodal_gemma.data.processed"])
    return Bench(context, (settings, str(dataset), str(models)))


@pytest.fixture(scope="module")
def undisturbed(bench, tmp_path_factory):
    """The digest of a training that is left alone, and how long it takes."""
    output = tmp_path_factory.mktemp("undisturbed")
    bench.to_the_end(tmp_path_factory.mktemp("warm"))
    start = time.monotonic()
    return bench.to_the_end(output), time.monotonic() - start


def shoot(bench, output: Path, number: int, after: float) -> int | None:
    process = bench.start(output)
    time.sleep(after)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(60)
    return process.exitcode


def test_twenty_kills_end_in_the_same_model(bench, undisturbed, tmp_path):
    digest, seconds = undisturbed
    moments = random.Random(4)
    landed, rounds = 0, 0
    while landed < KILLS:
        rounds += 1
        output = tmp_path / f"model-{rounds}"
        while landed < KILLS:
            if shoot(bench, output, signal.SIGKILL, moments.uniform(0.1, 0.9) * seconds) != -signal.SIGKILL:
                break
            landed += 1
        assert bench.to_the_end(output) == digest
    sys.stderr.write(f"{landed} kills over {rounds} trainings\n")


def test_five_terminations_save_and_say_try_again(bench, undisturbed, tmp_path):
    digest, seconds = undisturbed
    moments = random.Random(5)
    landed, rounds = 0, 0
    while landed < TERMS:
        rounds += 1
        output = tmp_path / f"model-{rounds}"
        while landed < TERMS:
            process = bench.start(output)
            time.sleep(moments.uniform(0.3, 0.9) * seconds)
            asked = time.monotonic()
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
            process.join(60)
            if process.exitcode == 0:
                break
            if process.exitcode == -signal.SIGTERM:
                continue  # it had not begun to train
            assert process.exitcode == 75
            assert time.monotonic() - asked < 20
            landed += 1
        assert bench.to_the_end(output) == digest
