"""Two processes that train together are one that trains alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multimodal_gemma.stages import train
from tests.unit.training import toys

SETTINGS = ("training.batch_tokens=100", "training.feature_cache=disk", "training.warmup_fraction=0")
ALONE = """
import sys
from pathlib import Path
from multimodal_gemma import config
from multimodal_gemma.stages import train
settings, dataset, models, output = sys.argv[1:]
train.run(config.from_json(Path(settings).read_text()), Path(dataset), Path(models), Path(output))
"""


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_two_ranks_have_the_losses_gradients_and_weights_of_one(tmp_path):
    """Launched as torchrun launches them, over gloo; text-only rows leave a rank's projector without a gradient."""
    torch.set_num_threads(1)
    from safetensors.torch import load_file

    from multimodal_gemma import config as configuration

    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models, text_only=12)
    settings = toys.configuration(*SETTINGS)
    one = train.run(settings, dataset, models, tmp_path / "one")
    (tmp_path / "settings.json").write_text(configuration.to_json(settings))
    (tmp_path / "alone.py").write_text(ALONE)
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "alone.py")]
    arguments = [str(tmp_path / name) for name in ("settings.json", "data", "models", "two")]
    source = str(Path(train.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *launched, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = rows(one.folder), rows(tmp_path / "two")
    assert [row["samples"] for row in first] == [row["samples"] for row in second]
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        assert [row[name] for row in second] == pytest.approx([row[name] for row in first], rel=tolerance)
    assert [row["validation_loss"] for row in second if "validation_loss" in row] == pytest.approx(
        [row["validation_loss"] for row in first if "validation_loss" in row], rel=1e-5
    )
    alone, together = (
        load_file(folder / "adapter/adapter_model.safetensors") for folder in (one.folder, tmp_path / "two")
    )
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=0, atol=2e-5)
