"""Where a model was made is no part of it: equal weights have equal digests, and no file names this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from multimodal_gemma import manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.stages import export, train
from tests.unit.registry import artifacts
from tests.unit.training import toys


def made_in(clone: Path) -> tuple[str, str]:
    """Train and export below one folder; return the model's digest and the export's checksums."""
    models = toys.write_models(clone / "models")
    dataset = toys.write_dataset(clone / "data", models)
    train.run(toys.configuration(), dataset, models, clone / "model")
    evaluation = artifacts.evaluation_folder(clone / "evaluation", clone / "model", artifacts.answers(0.8))
    export.run(Config(), clone / "model", evaluation, None, clone / "export")
    return manifest.read(clone / "model").digest, (clone / "export" / "SHA256SUMS").read_text()


def test_equal_weights_from_two_clones_have_equal_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.verify, "run", lambda _: None)  # tests/unit/export/test_verify.py has it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, other = made_in(tmp_path / "a clone"), made_in(tmp_path / "elsewhere" / "another")
    finally:
        torch.set_num_threads(threads)
    assert one == other
    shipped = [path for name in ("model", "export") for path in (tmp_path / "a clone" / name).rglob("*")]
    named = [path for path in shipped if path.is_file() and str(tmp_path).encode() in path.read_bytes()]
    assert [path for path in named if "checkpoints" not in path.parts] == []
