"""The offline sample: the promise of the README's first command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma import config, files
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.evaluation import lmms, questions
from tests.e2e.conftest import summary_of

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, mmgemma: Run) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "runs"
    done = mmgemma("run", "--preset", "sample", "--runs", str(folder))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def summary(runs: Path) -> dict[str, Any]:
    return summary_of(runs)


@pytest.mark.parametrize("setting", ["random", "popular", "adversarial"])
def test_held_out_scenes_are_recognised(summary: dict[str, Any], setting: str) -> None:
    scores = summary["scores"]["pope"][setting]
    assert scores["accuracy"] >= 0.90
    assert 0.40 <= scores["yes_ratio"] <= 0.60


def test_answers_beat_the_majority(summary: dict[str, Any]) -> None:
    scores = summary["scores"]["vqa"]
    assert scores["accuracy"] >= 0.75
    assert scores["accuracy"] >= scores["majority_baseline"] + 0.3


def test_a_version_is_champion(summary: dict[str, Any]) -> None:
    assert summary["status"] == "succeeded"
    assert summary["registry"]["gate"] == "passed"
    assert summary["registry"]["alias"] == "champion"
    import mlflow

    client = mlflow.MlflowClient(summary["mlflow_uri"])
    version = client.get_model_version_by_alias(summary["registry"]["name"], "champion")
    assert str(version.version) == str(summary["registry"]["version"])


def test_reports_are_there(summary: dict[str, Any]) -> None:
    report = Path(summary["report"]).read_text()
    assert "<script" not in report
    for stage in summary["stages"]:
        assert stage["name"] in report


def test_a_second_run_reuses_the_data(runs: Path, summary: dict[str, Any], mmgemma: Run) -> None:
    done = mmgemma("run", "--preset", "sample", "--runs", str(runs), "training.max_steps=2", "registry.floors=null")
    assert done.returncode == 3, done.stdout[-4000:] + done.stderr[-4000:]  # two steps make no better champion
    cached = {stage["name"] for stage in summary_of(runs)["stages"] if stage["cached"]}
    assert {"download-dataset", "download-benchmarks", "download-models", "preprocess-dataset"} <= cached
    assert "reused" in done.stdout


ASKING = """
import base64, io, json, sys
import pyarrow.parquet, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline, __version__

folder, evaluation, benchmarks, suffix = sys.argv[1:]
torch.set_num_threads(1)
rows = [json.loads(line) for line in open(evaluation + "/predictions.jsonl")][::40]
stored = pyarrow.parquet.read_table(benchmarks + "/images-00000.parquet").to_pylist()
pictures = {row["file_name"]: Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in stored}
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
answers = []
for number, row in enumerate(rows):
    content = [{"type": "image", "image": pictures[row["image"]]}, {"type": "text", "text": row["question"] + suffix}]
    messages = [{"role": "user", "content": content}]
    if __version__ > "5" and number % 2:
        asking = pipeline("image-text-to-text", model=model, processor=processor)
        answers.append(asking(text=messages, return_full_text=False)[0]["generated_text"].strip())
        continue
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1]:]
    answers.append(processor.decode(tokens, skip_special_tokens=True).strip())
told = [(row["prediction"], answer) for row, answer in zip(rows, answers)]
print(json.dumps({"version": __version__, "told": told}))
"""
OLDER = ("transformers==4.57.3", "tokenizers==0.22.1", "huggingface-hub==0.36.2")


@pytest.mark.parametrize("version", ["5", "4.57.3"])
def test_stock_transformers_answers_as_it_was_scored(version: str, summary: dict[str, Any], tmp_path: Path) -> None:
    path = ""
    if version != "5":
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), *OLDER]
        done = subprocess.run(install, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"transformers 4.57.3 cannot be installed here: {done.stderr[-300:]}")
        path = str(tmp_path)
    artifacts = Path(summary["export"]).parents[1]
    places = [Path(summary["export"]) / "model", artifacts / "evaluate-model" / "evaluation"]
    places.append(artifacts / "download-benchmarks" / "benchmarks")
    suffix = "\nAnswer the question using a single word or phrase."  # evaluation.suffix
    done = subprocess.run(
        [sys.executable, "-c", ASKING, *map(str, places), suffix],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(version)
    assert len(found["told"]) > 50
    assert [pair for pair in found["told"] if pair[0] != pair[1]] == []


LMMS = os.environ.get("MMGEMMA_LMMS") or shutil.which("lmms-eval")
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
task: sample_pope
test_split: test
output_type: generate_until
doc_to_visual: !function own.picture
doc_to_text: !function own.pope_doc_to_text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 128, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false}
process_results: !function own.pope_process_results
metric_list:
  - {metric: pope_accuracy, aggregation: !function own.pope_aggregate_accuracy, higher_is_better: true}
lmms_eval_specific_kwargs:
  default: {pre_prompt: "", post_prompt: "\\nAnswer the question using a single word or phrase."}
"""  # its own task `pope`, but for where the questions lie
OWN = """
from lmms_eval.tasks.pope.utils import *
from PIL import Image

def picture(doc):
    return [Image.open(doc["picture"]).convert("RGB")]
"""


def test_lmms_eval_answers_pope_as_it_was_scored(
    summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else what is published of a model by that harness would be the scores of another prompt.
    if LMMS is None:
        pytest.skip("lmms-eval is not installed")
    artifacts, tasks = Path(summary["export"]).parents[1], tmp_path / "tasks"
    benchmarks, evaluation = artifacts / "download-benchmarks" / "benchmarks", artifacts / "evaluate-model"
    scored = [row for row in questions.read_rows(evaluation / "evaluation") if row["benchmark"] != "vqa"][::4]
    tasks.mkdir()
    shards, asked = ImageShards(benchmarks), []
    for number, row in enumerate(scored):
        picture = tasks / row["image"]
        picture.write_bytes(shards.read(row["image"]))
        asked.append({"question_id": number, "question": row["question"], "answer": row["label"]})
        asked[-1]["picture"] = str(picture)
    files.write_jsonl(tasks / "questions.jsonl", asked)
    (tasks / "sample_pope.yaml").write_text(TASK.replace("FOLDER", str(tasks)))
    (tasks / "own.py").write_text(OWN)
    chosen = ["evaluation.lmms=[sample_pope]", f"evaluation.lmms_command={LMMS}", f"evaluation.lmms_include={tasks}"]
    settings = config.compose("sample", [*chosen, "evaluation.device=cpu"]).evaluation
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    program, _ = lmms.require(settings)
    found = lmms.run(program, settings, Path(summary["export"]) / "model", tmp_path, "")
    told = files.read_jsonl(tmp_path / "lmms" / "sample_pope.answers.jsonl", "test")
    assert [row["number"] for row in told] == list(range(len(scored)))
    assert len(scored) > 300
    pairs = [(row["question"], row["prediction"], own["answer"]) for row, own in zip(scored, told, strict=True)]
    assert [pair for pair in pairs if pair[1] != pair[2]] == []
    share = sum(row["strict_score"] for row in scored) / len(scored)
    assert found["sample_pope"]["scores"]["pope_accuracy"] == pytest.approx(share)


def test_no_shipped_file_names_a_folder_of_this_machine(summary: dict[str, Any], runs: Path) -> None:
    shipped = [path for name in ("model", "export") for path in Path(summary[name]).rglob("*") if path.is_file()]
    assert shipped
    assert [
        path for path in shipped if "checkpoints" not in path.parts and str(runs).encode() in path.read_bytes()
    ] == []
