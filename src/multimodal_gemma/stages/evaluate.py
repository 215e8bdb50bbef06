"""Evaluate: a model folder and benchmarks in, scores with their uncertainty out.

Takes any stock image-text-to-text folder, ours or not, so that a model can be compared with a published one.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, locks, logs, manifest
from multimodal_gemma.config.schema import Config, EvaluationConfig
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from multimodal_gemma.data.shards import ImageShards
    from multimodal_gemma.evaluation.asking import Answer
    from multimodal_gemma.evaluation.questions import Question

KIND = "evaluation"
REPORT = "report.html"
FORMAT = 4  # of what is written; another one makes a finished folder outdated
_log = logs.get("evaluate")


def run(config: Config, model: Path, benchmarks: Path, output: Path, *, dataset: Path | None = None) -> Summary:
    """Ask the benchmark questions and score the answers.

    Args:
        config: sections evaluation and data.contamination matter.
        model: any stock image-text-to-text folder with a chat template.
        benchmarks: artifact of the benchmark download.
        output: folder that becomes the evaluation artifact; an unfinished one is continued.
        dataset: the processed dataset that the model learnt from. Its validation split gives loss, perplexity and the
            threshold of P(yes); its training images are compared with the benchmark's where the model folder does not
            list its own. Without it the loss is the one that training recorded.

    Returns:
        Summary whose numbers are the flat metrics.

    Raises:
        InputError: the model cannot be asked, files are faulty, images are missing or were trained on, another
            evaluation is at work in the folder, or lmms-eval is not there or failed.
    """
    from multimodal_gemma.data.benchmarks import OBJECTS, load_objects
    from multimodal_gemma.data.shards import ImageShards
    from multimodal_gemma.evaluation import asking, chair, lmms, loading, questions, report, scoring

    asked_of = manifest.read(benchmarks, "benchmarks")
    settings = config.evaluation
    shaping = {
        "evaluation": _without(settings, "lmms_command"),
        "contamination": config.data.contamination,
        "format": FORMAT,
    }
    inputs = {"model": loading.digest(model), "benchmarks": asked_of.digest}
    if dataset is not None:
        inputs["dataset"] = manifest.read(dataset, "processed-dataset").digest
    if found := manifest.finished(output, KIND, config=shaping, inputs=inputs):
        _log.info(f"{output} is finished: nothing to do")
        return _summary(output, found, files.read_json(output / "metrics.json", "metrics"), cached=True)

    asked = questions.load(benchmarks)
    categories, described = load_objects(benchmarks / OBJECTS)
    images = {question.image_id for question in asked}
    contamination = questions.contamination(model, dataset, images, config.data.contamination)
    program = lmms.require(settings) if settings.lmms else None
    with locks.only_writer(output, "evaluate"):
        shards = ImageShards(benchmarks)
        answers, validation = _answers(config, model, shards, output, asked, [*described], inputs, dataset)
        rows = questions.rows(asked, answers)
        said = {image: answers[image][""].text for image in described}
        captions = chair.rows(described, categories, said, settings.description)
        others = _others(settings, model, output, inputs, *program) if program else {}
        metrics = {
            "schema_version": scoring.SCHEMA_VERSION,
            "model_digest": inputs["model"],
            "benchmarks_digest": asked_of.digest,
            "names": questions.names(benchmarks),
            "contamination": contamination,
            **scoring.score(rows, captions, confidence=settings.confidence, validation=validation, others=others),
        }
        files.write_jsonl(output / questions.PREDICTIONS, rows)
        if captions:
            files.write_jsonl(output / chair.CAPTIONS, captions)
        files.write_json(output / "metrics.json", metrics)
        page = report.render(
            rows, captions, metrics, shards, confidence=settings.confidence, model=_called(model),
            date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        )  # fmt: skip
        files.write_text(output / REPORT, page)
        counts = {"questions": len(rows), "images": len({row["image"] for row in rows})}
        (output / asking.KEPT).unlink(missing_ok=True)
        written = manifest.write(
            output, KIND, config=shaping, inputs=inputs, counts=counts,
            exclude=lambda name: name == REPORT,  # says when it was made
        )  # fmt: skip
    _log.info(f"{len(rows):,} questions about {counts['images']:,} images scored: {_headline(metrics)}")
    return _summary(output, written, metrics)


def _summary(output: Path, made: manifest.Manifest, metrics: dict[str, Any], *, cached: bool = False) -> Summary:
    facts = {"contamination": metrics["contamination"]["status"]}
    return Summary("evaluate", output, made.digest, metrics["metrics"], facts, cached=cached)


def _answers(
    config: Config,
    model: Path,
    shards: ImageShards,
    output: Path,
    asked: list[Question],
    described: list[str],
    inputs: dict[str, str],
    dataset: Path | None,
) -> tuple[dict[str, dict[str, Answer]], dict[str, Any]]:
    """Return the answers by image and question (a description's question is ""), and what validation data say."""
    from multimodal_gemma.data.pictures import Limits
    from multimodal_gemma.evaluation import asking, generator, loading, questions

    settings, by_image = config.evaluation, questions.distinct(asked)
    asking.require_images(by_image, shards)
    loaded, processor = loading.load(model, device=settings.device, precision=settings.precision)
    passes = [(by_image, settings.suffix, settings.max_new_tokens)]
    if described:  # what is asked for takes the suffix's place: no question of a benchmark is empty
        passes.append(({image: [""] for image in described}, settings.description, settings.description_tokens))
    distinct = sum(map(len, by_image.values()))
    _log.info(f"{len(asked):,} questions, {distinct:,} of them distinct, about {len(by_image):,} images")
    identity = {**inputs, "settings": _without(settings, "lmms", "lmms_command", "lmms_include")}
    with asking.AnswerStore(output, identity) as store, loading.threads_for(loaded):
        if store.answers:
            _log.info(f"continuing: {len(store.answers):,} of {len(by_image):,} images are answered")
        limits = Limits(config.data.max_image_bytes, config.data.max_image_pixels)
        for texts, suffix, longest in passes:
            how = {"suffix": suffix, "max_new_tokens": longest, "batch_tokens": settings.batch_tokens}
            asking.ask(texts, shards, limits, generator.fastest(loaded, processor, **how), store)
        return store.answers, _validation(config, model, loaded, processor, dataset)


def _validation(config: Config, model: Path, loaded: Any, processor: Any, dataset: Path | None) -> dict[str, Any]:
    """Measure the model on the validation split that it was trained beside, else take what training has recorded."""
    from multimodal_gemma.data.processed import ProcessedDataset
    from multimodal_gemma.evaluation import validation

    trained = manifest.read(model, "model") if (model / manifest.NAME).is_file() else None
    found = None
    if dataset is not None:
        data = ProcessedDataset(dataset)
        if trained is not None and trained.inputs.get("dataset") == data.manifest.digest:
            found = validation.validate(loaded, processor, data, batch_tokens=config.evaluation.batch_tokens)
        else:
            _log.info(f"no validation loss: {model} does not state that it learnt from {dataset}")
    return validation.section(found, trained.facts.get("validation_loss") if trained else None)


def _others(
    settings: EvaluationConfig, model: Path, output: Path, inputs: dict[str, str], program: str, version: str
) -> dict[str, Any]:
    """Return what lmms-eval finds of the model in the tasks that are asked for."""
    from multimodal_gemma.evaluation import lmms

    identity = files.digest_of([inputs["model"], version, settings.precision, settings.lmms_include])
    return {"version": version, "tasks": lmms.run(program, settings, model, output, identity)}


def _without(settings: EvaluationConfig, *names: str) -> dict[str, Any]:
    """Return the settings as a table, without some that what is made of them does not depend on."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in names}


def _called(model: Path) -> str:
    """Return what a model was made of, where its folder says so, else the folder's name."""
    from multimodal_gemma.model.folders import source_name

    if not (model / manifest.NAME).is_file():
        return model.name
    made = manifest.read(model, "model").config.get("model", {})
    parts = [source_name(str(made[part])) for part in ("language", "vision") if made.get(part)]
    return " with ".join(parts) or model.name


def _headline(metrics: dict[str, Any]) -> str:
    flat, called = metrics["metrics"], metrics["names"]
    parts = []
    if "pope_accuracy" in flat:
        parts.append(f"{called['pope']} {flat['pope_accuracy']:.3f}, yes-ratio {flat['pope_yes_ratio']:.2f}")
    if "vqa_accuracy" in flat:
        majority = flat["vqa_majority_baseline"]
        parts.append(f"{called['vqa']} {flat['vqa_accuracy']:.3f} (majority answer {majority:.3f})")
    if "chair_i" in flat:
        parts.append(f"{flat['chair_i']:.3f} of the objects in descriptions invented, {flat['chair_recall']:.2f} named")
    return "; ".join(parts)
