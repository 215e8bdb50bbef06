"""The export is what a stranger loads: stock libraries, equal logits, its licence and its checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from multimodal_gemma import files, locks, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import export
from tests.unit.registry import artifacts

# Run by a Python that sees no environment variables or user packages, and in which this project cannot be imported.
STRANGER = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "multimodal_gemma":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nowhere())
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

picture, out, *folders = sys.argv[1:]
torch.set_num_threads(1)
answers = []
for folder in folders:
    processor = AutoProcessor.from_pretrained(folder)
    model, loading = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"], loading
    content = [{"type": "image"}, {"type": "text", "text": "is there a dog ?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.open(picture)], text=[prompt], add_special_tokens=False, return_tensors="pt")
    inputs = inputs.to(dtype=model.dtype)
    with torch.inference_mode():
        answers.append((model(**inputs).logits, model.generate(**inputs, max_new_tokens=8, do_sample=False)))
assert "multimodal_gemma" not in sys.modules
torch.save(answers, out)
"""

Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("artifacts")
    model = artifacts.model_folder(root / "model")
    return model, artifacts.evaluation_folder(root / "evaluation", model, artifacts.answers(0.8))


@pytest.fixture
def config() -> Config:
    made = Config()
    made.registry.name = "tiny"
    return made


@pytest.fixture(autouse=True)
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification starts a process; `exported` is verified, and tests/unit/export has the rest."""
    monkeypatch.setattr(export.verify, "run", lambda _: None)


def registration(folder: Path, made: Made, gate: str) -> Path:
    rules = [{"name": "floor of vqa_accuracy", "passed": gate == "passed", "reason": "0.1000 is below 0.5"}]
    files.write_json(folder / "registration.json", {"name": "tiny", "version": "3", "gate": gate, "rules": rules})
    inputs = {name: manifest.read(place).digest for name, place in zip(("model", "evaluation"), made, strict=True)}
    manifest.write(folder, "registration", config={}, inputs=inputs)
    return folder


def ask(scratch: Path, *folders: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Load folders as a stranger would; return logits and answer of each."""
    picture, out = scratch / "picture.png", scratch / "answer.pt"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    command = [sys.executable, "-I", "-c", STRANGER, str(picture), str(out), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return list(torch.load(out))


def test_export_loads_without_this_package_and_answers_as_the_trained_model(
    made: Made, config: Config, tmp_path: Path
) -> None:
    model, evaluation = made
    config.export.dtype = "float32"
    export.run(config, model, evaluation, None, tmp_path / "export")
    trained, shipped = ask(tmp_path, model, tmp_path / "export" / "model")
    assert torch.equal(trained[0], shipped[0])
    assert torch.equal(trained[1], shipped[1])


def test_bfloat16_is_the_trained_model_rounded(made: Made, config: Config, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model, evaluation = made
    export.run(config, model, evaluation, None, tmp_path / "export")
    rounded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16).state_dict()
    shipped = AutoModelForImageTextToText.from_pretrained(tmp_path / "export" / "model", dtype="auto").state_dict()
    assert all(torch.equal(rounded[name], shipped[name]) for name in rounded)
    assert shipped["lm_head.weight"].dtype == torch.bfloat16
    assert files.read_json(tmp_path / "export" / "model" / "config.json", "config")["dtype"] == "bfloat16"


@pytest.fixture(scope="module")
def exported(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "export"
    config = Config()
    passed = registration(folder.parent / "registration", made, "passed")
    export.run(config, *made, passed, folder)
    return folder


def test_everything_that_was_trained_is_there_and_nothing_of_the_workshop(exported: Path, made: Made) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert {"README.md", "NOTICE", "SHA256SUMS", "manifest.json", "adapter/projector.safetensors"} <= names
    assert {"model/model.safetensors", "model/chat_template.jinja", "model/generation_config.json"} <= names
    assert not any(word in name for name in names for word in ("checkpoint", "curves", "run_config", "training_images"))
    assert manifest.verify(exported, "export").inputs["model"] == manifest.read(made[0]).digest


def test_weights_carry_the_names_that_vllm_reads(exported: Path) -> None:
    from safetensors import safe_open

    with safe_open(exported / "model" / "model.safetensors", "pt") as stored:
        names = list(stored.keys())
    towers = [name for name in names if name.startswith("vision_tower.")]
    assert towers
    assert all(name.startswith("vision_tower.vision_model.") for name in towers)


def test_checksums_cover_every_file_and_hold(exported: Path) -> None:
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    stated = {line[66:]: line[:64] for line in lines}
    files_there = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert set(stated) == files_there - {"SHA256SUMS", "manifest.json"}
    for name, digest in stated.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest


def test_another_user_can_read_it(exported: Path) -> None:
    for path in [exported, *exported.rglob("*")]:
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_card_tells_the_run(exported: Path, made: Made) -> None:
    text = (exported / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    (index,) = front.pop("model-index")
    told = {
        (row["dataset"]["name"], row["dataset"].get("config"), metric["type"])
        for row in index["results"]
        for metric in row["metrics"]
    }
    assert {("POPE", "random", "accuracy"), ("POPE", "random", "f1"), ("VQA v2", None, "accuracy")} <= told
    assert front == {"license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    assert "# tiny" in text
    assert "version 3" in text
    assert "| POPE, random, accuracy | 0.800 [0.750, 0.850] | 0.500 | 60 |" in text
    assert "| VQA v2, accuracy | 0.800 [0.750, 0.850] | 0.300 | 60 |" in text
    assert "No image of the training split is in a benchmark." in text
    assert manifest.read(made[0]).digest in text
    assert "d" * 64 in text
    assert "model.lora.rank | 4" in text
    assert "secret" not in text


@pytest.mark.parametrize("status", ["allowed", "unknown"])
def test_the_card_warns_of_scores_that_may_be_too_good(made: Made, config: Config, tmp_path: Path, status: str) -> None:
    model, _ = made
    evaluation = artifacts.evaluation_folder(tmp_path / "e", model, artifacts.answers(0.9), contamination=status)
    export.run(config, model, evaluation, None, tmp_path / "export")
    text = (tmp_path / "export" / "README.md").read_text()
    assert "No image of the training split is in a benchmark." not in text
    assert "unknown whether" in text if status == "unknown" else "overstate" in text


def test_a_gemma_is_shipped_with_its_terms(config: Config, tmp_path: Path) -> None:
    model = artifacts.model_folder(tmp_path / "model", language="hf://google/gemma-3-270m@main")
    evaluation = artifacts.evaluation_folder(tmp_path / "evaluation", model, artifacts.answers(0.8))
    export.run(config, model, evaluation, None, tmp_path / "export")
    assert "subject to the Gemma Terms of Use" in (tmp_path / "export" / "NOTICE").read_text()
    front = yaml.safe_load((tmp_path / "export" / "README.md").read_text().split("---")[1])
    assert front["license"] == "gemma"
    assert front["base_model"] == ["google/gemma-3-270m"]


def test_a_failed_gate_exports_nothing(made: Made, config: Config, tmp_path: Path) -> None:
    failed = registration(tmp_path / "registration", made, "failed")
    with pytest.raises(InputError, match="did not pass the gate") as error:
        export.run(config, *made, failed, tmp_path / "export")
    assert "0.1000 is below 0.5" in str(error.value)
    assert not (tmp_path / "export").exists()


def test_artifacts_of_different_models_are_refused(made: Made, config: Config, tmp_path: Path) -> None:
    model, evaluation = made
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "training_images.txt").write_text("c\n")
    manifest.write(other, "model", config={}, exclude=lambda name: name.startswith("checkpoints/"))
    with pytest.raises(InputError, match="scored another model"):
        export.run(config, other, evaluation, None, tmp_path / "export")
    rescored = artifacts.evaluation_folder(tmp_path / "rescored", other, artifacts.answers(0.8))
    with pytest.raises(InputError, match="registered another model"):
        export.run(config, other, rescored, registration(tmp_path / "r", made, "passed"), tmp_path / "export")


def test_damaged_weights_are_not_shipped(made: Made, config: Config, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made[0], tmp_path / "model"))
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"model\.safetensors differs from its sha256"):
        export.run(config, model, made[1], None, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_what_does_not_answer_as_the_trained_model_is_not_finished(
    made: Made, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(_: Path) -> None:
        raise InputError("export: prompt 1: its logits differ.")

    monkeypatch.setattr(export.verify, "run", differs)
    with pytest.raises(InputError, match="its logits differ"):
        export.run(config, *made, None, tmp_path / "export")
    assert not (tmp_path / "export" / "manifest.json").exists()


def test_a_finished_export_is_not_repeated_and_a_killed_one_is_made_again(
    made: Made, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "export"

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "_checksums", dies)
        with pytest.raises(KeyboardInterrupt):
            export.run(config, *made, None, out)
    assert not (out / "manifest.json").exists()
    first = export.run(config, *made, None, out)
    again = export.run(config, *made, None, out)
    assert (first.cached, again.cached) == (False, True)
    assert again.digest == first.digest
    assert again.numbers == first.numbers
    fresh = export.run(config, *made, None, tmp_path / "elsewhere")
    assert fresh.digest == first.digest


def test_another_precision_replaces_the_export(made: Made, config: Config, tmp_path: Path) -> None:
    out = tmp_path / "export"
    export.run(config, *made, None, out)
    config.export.dtype = "float32"
    assert not export.run(config, *made, None, out).cached
    assert json.loads((out / "model" / "config.json").read_text())["dtype"] == "float32"


def test_two_exports_into_one_folder_are_refused(made: Made, config: Config, tmp_path: Path) -> None:
    out = tmp_path / "export"
    with locks.only_writer(out, "export"), pytest.raises(InputError, match="another process is writing to .*export"):
        export.run(config, *made, None, out)
    assert not out.exists()
