"""Eight bits cost what rounding costs, and the card says what that is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodal_gemma import manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import verifier, verify, weights
from multimodal_gemma.stages import evaluate, export
from tests.unit.evaluation import benchmark_folder
from tests.unit.registry import artifacts

pytest.importorskip("torchao", reason="torchao is not installed (extra int8)")

# Stock libraries alone: this package cannot be imported where it runs.
STRANGER = """
import sys
sys.modules["multimodal_gemma"] = None
import torch
from transformers import AutoModelForImageTextToText
model, report = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype="auto", output_loading_info=True)
assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
weights = {}
for name, module in model.named_modules():
    if isinstance(module, torch.nn.Linear):
        weight = module.weight
        rounded = type(weight).__name__ == "Int8Tensor"
        weights[name] = (rounded, (weight.dequantize() if rounded else weight).detach().float())
torch.save(weights, sys.argv[2])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An export with int8/, the benchmarks, and the trained model's evaluation on them."""
    root = tmp_path_factory.mktemp("int8")
    config = settings()
    model = artifacts.model_folder(root / "model")
    benchmarks = benchmark_folder.write(root / "benchmarks")
    evaluate.run(config, model, benchmarks, root / "evaluation")
    config.export.formats = ["adapter", "int8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.verify, "run", lambda _: None)
        export.run(config, model, root / "evaluation", None, root / "export", benchmarks=benchmarks)
    return root / "export", benchmarks, root / "evaluation"


def settings() -> Config:
    config = Config()
    config.evaluation.device = "cpu"
    config.data.contamination = "allow"
    return config


def test_only_the_language_models_matrices_are_rounded_and_by_half_a_step_at_most(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    folder = made[0]
    out = tmp_path / "weights.pt"
    command = [sys.executable, "-I", "-c", STRANGER, str(folder / "int8"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    merged = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    found = torch.load(out)
    assert {name for name, (rounded, _) in found.items() if rounded} == {
        name
        for name, module in merged.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.language_model.")
    }
    for name, (rounded, weight) in found.items():
        exact = merged.get_submodule(name).weight.float()
        step = exact.abs().amax(dim=1, keepdim=True) / 127  # of a row, by which its largest weight is 127
        allowed = 0.5 * step + exact.abs() * 2**-7 if rounded else torch.zeros_like(exact)  # and bfloat16's own
        assert ((weight - exact).abs() <= allowed + 1e-9).all(), name


def test_it_is_verified_with_the_rest_and_a_lost_scale_is_found(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    figures = verify.run(made[0])
    assert figures["prompts"] == 3
    folder = Path(shutil.copytree(made[0], tmp_path / "export"))
    path = folder / "int8" / "model.safetensors"
    content = bytearray(path.read_bytes())
    tensors = load_file(path)
    scale = next(name for name in tensors if name.endswith("down_proj._weight_scale"))
    (length,) = struct.unpack("<Q", content[:8])
    begin, end = json.loads(content[8 : 8 + length])[scale]["data_offsets"]
    content[8 + length + begin : 8 + length + end] = bytes(end - begin)
    path.write_bytes(bytes(content))
    assert "int8/model.safetensors differs" in verifier.check_files(folder)
    assert "logits differ" in verifier.compare(folder, "int8")[0]


def test_the_card_states_the_difference_that_evaluation_itself_measures(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, benchmarks, evaluation = made
    told = manifest.read(folder, "export").facts["int8"]
    assert told["logit_difference"] < verify.ROUNDING
    whole = evaluate.run(settings(), folder / "int8", benchmarks, tmp_path / "own").numbers
    trained = evaluate.run(settings(), folder.parent / "model", benchmarks, evaluation).numbers
    for name, images in (("pope_accuracy", 4), ("vqa_accuracy", 4)):
        row = told["scores"][name]
        assert row["ours"] == pytest.approx(whole[name])
        assert row["theirs"] == pytest.approx(trained[name])
        assert row["difference"] == pytest.approx(whole[name] - trained[name])
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
        assert row["images"] == images
        assert (
            f"| {row['theirs']:.3f} | {row['ours']:.3f} | {row['difference']:+.3f} ["
            in (folder / "README.md").read_text()
        )


def test_the_same_model_makes_the_same_bytes(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    weights.write_int8(made[0] / "model", tmp_path / "again")
    for path in (made[0] / "int8").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_differs_by_more_than_rounding_is_not_shipped(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "export"))
    path = folder / verify.REFERENCES / "model.safetensors"
    save_file({name: value.flip(0).contiguous() for name, value in load_file(path).items()}, path)
    with pytest.raises(InputError, match="Leave int8 out"):
        verify.record_int8(folder)


def test_without_torchao_it_is_refused_before_anything_is_written(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else there(name))
    config = settings()
    config.export.formats = ["int8"]
    with pytest.raises(InputError, match=r"pip install 'multimodal-gemma\[int8\]'"):
        export.run(config, made[0].parent / "model", made[2], None, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_the_verifier_of_an_export_without_int8_asks_for_nothing_more(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    assert verifier.compare(made[0], "int8")[0] == ""
    config = settings()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.verify, "run", lambda _: None)
        export.run(config, made[0].parent / "model", made[2], None, tmp_path / "export")
    assert not list(tmp_path.rglob("*int8*"))
