"""Fifty real photographs through the same pipeline: the public layouts are accepted as they are published."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multimodal_gemma.sample import bases_folder
from tests.e2e.conftest import summary_of

# 8-bit weights where their library is there
FORMATS = ["adapter", *(["int8"] if importlib.util.find_spec("torchao") else [])]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Runs where this package cannot be imported: what was exported must stand alone.
ASK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "multimodal_gemma":
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, photograph = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "image"}, {"type": "text", "text": "Is there a person in the image?"}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(images=Image.open(photograph), text=prompt, add_special_tokens=False, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print(processor.decode(tokens, skip_special_tokens=True))
"""

# Likewise. Prints by format how far its logits are from the trained model's, in their standard deviations.
PARITY = """
import json, sys
sys.modules["multimodal_gemma"] = None
import torch
from pathlib import Path
from PIL import Image
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
trained, export, bases, *photographs = map(Path, sys.argv[1:])
stock = lambda folder: AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
models = {"trained": stock(trained), "model": stock(export / "model")}
if (export / "int8").is_dir():
    models["int8"] = stock(export / "int8")
config = AutoConfig.from_pretrained(export / "model")
llava = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
vision = AutoModel.from_pretrained(bases / "vision", dtype=torch.float32)
language = AutoModelForCausalLM.from_pretrained(bases / "language", dtype=torch.float32)
llava.model.vision_tower.load_state_dict(getattr(vision, "vision_model", vision).state_dict(), strict=False)
llava.model.language_model.load_state_dict(language.model.state_dict())
llava.lm_head.load_state_dict(language.lm_head.state_dict())
llava.model.multi_modal_projector.load_state_dict(load_file(export / "adapter" / "projector.safetensors"))
models["adapter"] = PeftModel.from_pretrained(llava, export / "adapter").eval()
processor = AutoProcessor.from_pretrained(export / "model")
content = [{"type": "image"}, {"type": "text", "text": "Is there a person in the image?"}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
worst = {}
for photograph in photographs:
    image = Image.open(photograph).convert("RGB")
    inputs = processor(images=image, text=prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        logits = {name: model(**inputs).logits for name, model in models.items()}
    for name, found in logits.items():
        difference = float((found - logits["trained"]).abs().max() / logits["trained"].std())
        worst[name] = max(worst.get(name, 0.0), difference)
print(json.dumps(worst))
"""


@pytest.fixture(scope="module")
def summary(shared: Path, tmp_path_factory: pytest.TempPathFactory, mmgemma: Run) -> dict[str, Any]:
    sample = shared / "coco-sample"
    runs = tmp_path_factory.mktemp("photographs") / "runs"
    done = mmgemma(
        "run",
        "--preset=sample",
        f"--runs={runs}",
        f"data.conversations={sample / 'llava_instruct_sample.json'}",
        f"data.images={sample / 'train2017'}",
        f"benchmarks.pope={sample / 'pope'}",
        f"benchmarks.vqa={sample / 'vqa'}",
        f"benchmarks.images={sample / 'train2017'}",
        "registry.floors=null",
        f"export.formats=[{','.join(FORMATS)}]",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return summary_of(runs)


@pytest.fixture(scope="module")
def processed(summary: dict[str, Any]) -> dict[str, Any]:
    found = list(Path(summary["report"]).parent.rglob("manifest.json"))
    manifests = [json.loads(path.read_text()) for path in found]
    return next(manifest for manifest in manifests if manifest["kind"] == "processed-dataset")


def test_every_conversation_and_photograph_is_used(processed: dict[str, Any]) -> None:
    counts = processed["counts"]
    assert counts["train"] + counts["val"] == counts["conversations"] == 72
    assert counts["images"] == 36
    assert counts["val"] > 0


def test_every_question_is_scored(summary: dict[str, Any]) -> None:
    scores = summary["scores"]
    assert {setting: scores["pope"][setting]["count"] for setting in scores["pope"]} == {
        "random": 110,
        "popular": 110,
        "adversarial": 110,
    }
    assert scores["vqa"]["count"] == 97


def test_no_photograph_is_both_learnt_and_asked_about(summary: dict[str, Any], shared: Path) -> None:
    learnt = set((Path(summary["model"]) / "training_images.txt").read_text().split())
    lines = (shared / "coco-sample" / "pope" / "coco_pope_random.json").read_text().splitlines()
    asked = {Path(json.loads(line)["image"]).stem for line in lines}
    assert len(asked) == 14
    assert learnt
    assert not learnt & asked


def test_the_loss_falls(summary: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (Path(summary["model"]) / "curves.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    third = max(len(steps) // 3, 1)

    def mean(part: list[dict[str, Any]]) -> float:  # an epoch's last step has two conversations, its others 32
        return float(np.average([row["loss"] for row in part], weights=[row["samples"] for row in part]))

    assert mean(steps[-third:]) < 0.9 * mean(steps[:third])


def test_the_version_is_registered(summary: dict[str, Any]) -> None:
    assert summary["registry"]["version"]
    assert summary["registry"]["alias"] in {"champion", "challenger"}


def test_the_export_answers_without_this_package(summary: dict[str, Any], shared: Path) -> None:
    photograph = sorted((shared / "coco-sample" / "train2017").iterdir())[0]
    folder = Path(summary["export"]) / "model"
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(folder), str(photograph)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_every_format_answers_as_the_trained_model_about_photographs(summary: dict[str, Any], shared: Path) -> None:
    photographs = sorted((shared / "coco-sample" / "train2017").iterdir())[:5]
    places = [summary["model"], summary["export"], bases_folder(), *photographs]
    command = [sys.executable, "-c", PARITY, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert set(worst) == {"trained", "model", *FORMATS}
    assert worst["adapter"] < 1e-3  # the same numbers, summed in another order
    assert worst["model"] < 0.1  # rounded to bfloat16
    assert worst.get("int8", 0) < 0.3
