"""Evaluate: a model folder and benchmarks in, scores with their uncertainty out.

Takes any stock image-text-to-text folder, ours or not, so that a model can be compared with a published one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.stages.summary import Summary

KIND = "evaluation"
_log = logs.get("evaluate")


def run(config: Config, model: Path, benchmarks: Path, output: Path, *, dataset: Path | None = None) -> Summary:
    """Ask the benchmark questions and score the answers.

    Args:
        config: sections evaluation and data.contamination matter.
        model: any stock image-text-to-text folder with a chat template.
        benchmarks: artifact of the benchmark download.
        output: folder that becomes the evaluation artifact; an unfinished one is continued.
        dataset: the processed dataset, whose training images are compared with the benchmark's where the model folder
            does not list its own.

    Returns:
        Summary whose numbers are the flat metrics.

    Raises:
        InputError: the model cannot be asked, files are faulty, images are missing or were trained on.
    """
    from multimodal_gemma.evaluation import contamination, loading, predictions, questions, scoring

    model_digest = loading.digest(model)
    asked_of = manifest.read(benchmarks, "benchmarks")
    shaping = {"evaluation": dataclasses.asdict(config.evaluation), "contamination": config.data.contamination}
    inputs = {"model": model_digest, "benchmarks": asked_of.digest}
    if dataset is not None:
        inputs["dataset"] = manifest.read(dataset, "processed-dataset").digest
    if found := manifest.finished(output, KIND, config=shaping, inputs=inputs):
        _log.info(f"{output} is finished: nothing to do")
        metrics = files.read_json(output / "metrics.json", "metrics")
        return Summary("evaluate", output, found.digest, metrics["metrics"], _facts(metrics), cached=True)

    asked = questions.load(benchmarks)
    status = contamination.check(
        contamination.training_images(model, dataset),
        {question.image_id for question in asked},
        config.data.contamination,
    )
    answers = _answers(config, model, benchmarks, output, asked, inputs)
    rows = predictions.rows(asked, answers)
    metrics = {
        "schema_version": scoring.SCHEMA_VERSION,
        "model_digest": model_digest,
        "benchmarks_digest": asked_of.digest,
        "contamination": {"status": status.status, "images": status.images},
        **scoring.score(rows, confidence=config.evaluation.confidence),
    }
    _write(config, benchmarks, output, rows, metrics, status.sentence)
    counts = {"questions": len(rows), "images": len({row["image"] for row in rows})}
    (output / "answers.partial.jsonl").unlink(missing_ok=True)
    written = manifest.write(output, KIND, config=shaping, inputs=inputs, counts=counts)
    _log.info(f"{len(rows):,} questions about {counts['images']:,} images scored: {_headline(metrics)}")
    return Summary("evaluate", output, written.digest, metrics["metrics"], _facts(metrics))


def _answers(
    config: Config, model: Path, benchmarks: Path, output: Path, asked: list[Any], inputs: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the answer to every distinct question, by image and text."""
    from multimodal_gemma.data.decode import Limits
    from multimodal_gemma.data.shards import ImageShards
    from multimodal_gemma.evaluation import asking, loading, questions
    from multimodal_gemma.evaluation.resume import AnswerStore

    settings = config.evaluation
    by_image, shards = questions.distinct(asked), ImageShards(benchmarks)
    asking.require_images(by_image, shards)
    loaded, processor = loading.load(model, device=settings.device, precision=settings.precision)
    generator = loading.generator(
        loaded,
        processor,
        suffix=settings.suffix,
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=settings.batch_tokens,
    )
    distinct = sum(map(len, by_image.values()))
    _log.info(f"{len(asked):,} questions, {distinct:,} of them distinct, about {len(by_image):,} images")
    identity = {**inputs, "settings": dataclasses.asdict(settings)}
    with AnswerStore(output, identity) as store:
        if store.answers:
            _log.info(f"continuing: {len(store.answers):,} of {len(by_image):,} images are answered")
        limits = Limits(config.data.max_image_bytes, config.data.max_image_pixels)
        return asking.ask(by_image, shards, limits, generator, store)


def _write(
    config: Config, benchmarks: Path, output: Path, rows: list[dict[str, Any]], metrics: dict[str, Any], seen: str
) -> None:
    from multimodal_gemma.data.shards import ImageShards
    from multimodal_gemma.evaluation import predictions, report

    files.write_jsonl(output / predictions.NAME, rows)
    files.write_json(output / "metrics.json", metrics)
    page = report.render(rows, metrics, ImageShards(benchmarks), seen, confidence=config.evaluation.confidence)
    files.write_text(output / "report.html", page)


def _facts(metrics: dict[str, Any]) -> dict[str, str]:
    return {"contamination": metrics["contamination"]["status"]}


def _headline(metrics: dict[str, Any]) -> str:
    flat = metrics["metrics"]
    parts = []
    if "pope_accuracy" in flat:
        parts.append(f"POPE accuracy {flat['pope_accuracy']:.3f}, yes-ratio {flat['pope_yes_ratio']:.2f}")
    if "vqa_accuracy" in flat:
        parts.append(f"VQA {flat['vqa_accuracy']:.3f} (majority {flat['vqa_majority_baseline']:.3f})")
    return "; ".join(parts)
