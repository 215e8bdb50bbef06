"""Model and evaluation artifacts as the stages before registration leave them, made without those stages."""

from __future__ import annotations

import atexit
import functools
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from multimodal_gemma import manifest
from tests.unit.evaluation import tiny

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import RegistryConfig

IMAGES, QUESTIONS_AN_IMAGE = 20, 3
SETTINGS = ("random", "popular", "adversarial")


@functools.cache
def database() -> str:
    """URI of a sqlite registry that all tests of a process share: making one takes seconds."""
    from multimodal_gemma.config.schema import RegistryConfig

    folder = tempfile.mkdtemp(prefix="a registry ")  # with a blank: nobody's paths are free of them
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    uri = f"sqlite:///{folder}/mlflow.db"
    ensure_run(RegistryConfig(tracking_uri=uri), "first")
    return uri


def ensure_run(registry: RegistryConfig, pipeline_run: str) -> str:
    """Id of a pipeline run's run in MLflow, found or made as training does it."""
    from multimodal_gemma.registry import runs, server

    with server.connected(registry) as client:
        return runs.run_in(client, registry, pipeline_run)


def model_folder(folder: Path, *, seed: int = 0, language: str = "sample://language", family: str = "gemma3") -> Path:
    """A tiny random Llava in stock files, with the extras that training leaves beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.llava(family, seed=seed).save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    save_file({"projector.weight": np.ones((2, 2), np.float32)}, folder / "adapter" / "projector.safetensors")
    (folder / "curves.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    (folder / "curves.html").write_text("<p>curves</p>")
    settings = {
        "preset": "sample",
        "model": {"language": language, "vision": "sample://vision", "lora": {"rank": 4}},
        "data": {"conversations": "sample://", "images": "sample://"},
        "registry": {"tracking_uri": "postgresql://me:secret@db/mlflow"},
    }
    (folder / "run_config.json").write_text(json.dumps(settings))
    (folder / "training_images.txt").write_text("a\nb\n")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.bin").write_bytes(b"not part of the artifact")
    manifest.write(
        folder,
        "model",
        config={"model": {"seed": seed}},
        inputs={"dataset": "d" * 64, "models": "b" * 64},
        counts={"conversations": 72, "steps": 10},
        exclude=lambda name: name.startswith("checkpoints/"),
    )
    return folder


def evaluation_folder(
    folder: Path, model: Path, right: np.ndarray, *, contamination: str = "clean", **metrics: Any
) -> Path:
    """An evaluation whose answers are right where `right` (questions,) says so, alike in every benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for benchmark in (*(f"pope/{setting}" for setting in SETTINGS), "vqa"):
        for number, score in enumerate(right):
            image = f"{number // QUESTIONS_AN_IMAGE:012d}.jpg"
            row = {"benchmark": benchmark, "question_id": number, "image": image, "question": f"q{number}"}
            rows.append({**row, "score": float(score)})
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    accuracy = float(right.mean())
    flat = {f"pope_{setting}_accuracy": accuracy for setting in SETTINGS}
    flat |= {"pope_accuracy": accuracy, "vqa_accuracy": accuracy}
    flat |= {"vqa_majority_baseline": 0.3, "vqa_over_baseline": accuracy - 0.3}
    count = len(right)
    tp = int(right.sum()) // 2
    half = count // 2
    interval = [accuracy - 0.05, accuracy + 0.05]
    setting = {
        "accuracy": accuracy, "precision": 0.8, "recall": 0.8, "f1": 0.8, "yes_ratio": 0.5, "tp": tp, "fp": half - tp,
        "fn": half - tp, "tn": tp, "count": count, "interval": interval,
        "majority_baseline": 0.5,
    }  # fmt: skip
    value = {
        "schema_version": 1,
        "model_digest": manifest.read(model, "model").digest,
        "benchmarks_digest": "e" * 64,
        "names": {"pope": "POPE", "vqa": "VQA v2"},
        "contamination": {"status": contamination, "images": []},
        "pope": dict.fromkeys(SETTINGS, setting),
        "vqa": {"accuracy": accuracy, "majority_baseline": 0.3, "count": count, "interval": interval},
        "metrics": {**flat, **metrics},
    }
    (folder / "metrics.json").write_text(json.dumps(value))
    (folder / "report.html").write_text("<p>report</p>")
    inputs = {"model": value["model_digest"]}
    manifest.write(folder, "evaluation", config={}, inputs=inputs, counts={"questions": len(rows)})
    return folder


def answers(accuracy: float, *, seed: int = 0, images: int = IMAGES) -> np.ndarray:
    """Right and wrong answers of which exactly this share is right, in seeded order."""
    count = images * QUESTIONS_AN_IMAGE
    scores = np.zeros(count)
    scores[: math.floor(accuracy * count + 0.5)] = 1
    return np.random.default_rng(seed).permutation(scores)
