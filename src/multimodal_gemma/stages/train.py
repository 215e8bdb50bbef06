"""Train: a processed dataset and base models become a stock Llava model with its adapter, curves and configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, locks, logs, manifest
from multimodal_gemma.config.flat import flatten, portable
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.data.processed import ProcessedDataset
    from multimodal_gemma.training.checkpoint import Copies, Settings
    from multimodal_gemma.training.loop import Outcome

KIND = "model"
# What leaves the model as it is.
_WATCHING = {"trackers", "keep_best", "checkpoint_uri", "checkpoint_minutes", "cache_folder", "sample_images", "nodes"}
# What a training may be continued with: the same mathematics, but for rounding.
_FREE = ("batch_tokens", "gradient_checkpointing", "feature_cache", "compile", "attention", "precision", "device")
_GROWING = ("epochs", "max_steps", "patience")  # what puts its end off
CODE = (  # what shapes a model: another one never takes over what this one has trained
    *("config", "data", "model", "training", "files.py", "manifest.py"),
    *(f"stages/train{part}.py" for part in ("", "_node", "_nodes", "_rank")),
)
_TIMED = ("curves.jsonl", "curves.html", "samples.jsonl")  # hold times, or what a setting of no effect asks for
FOLDERS = ("checkpoints/", "trackers/", "features/")  # needed to continue and to watch, no part of the model


def run(config: Config, dataset: Path, models: Path, output: Path, *, run_id: str = "") -> Summary:
    """Train on a processed dataset; continue where a killed run stopped; do nothing where the model lies finished.

    Args:
        config: the configuration; its sections `model` and `training` shape the result.
        dataset: a processed dataset.
        models: base models, with `vision/`, `language/` and perhaps `projector/`.
        output: gets the model.
        run_id: the pipeline run, under which MLflow shows this training; empty: a run of its own.

    Returns:
        Numbers: steps, best_step, loss, validation_loss where there was a validation, validation_yes_no_accuracy
        where answers decided, samples_per_second of a fresh training. In a process that does not lead: nothing.

    Raises:
        InputError: an input is missing or does not fit, too few answers say which checkpoint is best, another training
            is at work in the folder, or the loss is no number any more.
        SystemExit: SIGTERM came; a checkpoint is saved, and the code is 75.
    """
    from multimodal_gemma.data.processed import ProcessedDataset

    log = logs.get("train")
    data = ProcessedDataset(dataset)
    inputs = {"dataset": data.manifest.digest, "models": manifest.read(models, "base-models").digest}
    _require_fit(data, models, inputs["models"])
    shaping = _shaping(config)
    done = manifest.finished(output, KIND, config=shaping, inputs=inputs)
    if done is not None:
        log.info(f"{output} holds this very model: nothing to do")
        return Summary("train", output, done.digest, _numbers(done), cached=True)

    from multimodal_gemma.training import session

    session.choose_best(config.training.best_by, data)
    settings = _settings(config, shaping, inputs, len(data.split("train")))
    if config.delegates and "RANK" not in os.environ:  # which a launcher sets for each of its processes
        _on_nodes(config, dataset, models, output, settings, run_id)
        made = manifest.finished(output, KIND, config=shaping, inputs=inputs)
        if made is None:
            raise InputError(f"train: {config.nodes.work_uri} holds another model than was asked for. Empty its jobs/.")
        return Summary("train", output, made.digest, _numbers(made))

    from accelerate import PartialState

    from multimodal_gemma.training import checkpoint, device, failures

    checkpoint.refuse_other(output / "checkpoints", settings.identity)
    # Of several processes one holds the folder, for all.
    hold = locks.only_writer(output, "train") if device.leads() else contextlib.nullcontext()
    with hold, failures.Watch() as watch:
        _open_output(config, output)
        outside = {"mlflow": _mlflow(config, run_id, output), "copies": _copies(config, settings)}
        outcome = session.train(config, data, models, output, watch, settings=settings, **outside)
        state = PartialState()
        if state.is_main_process:
            _write_model(config, data, models, output, outcome)
            _describe(data, output, outcome, shaping, inputs)
            if not config.training.cache_folder:
                shutil.rmtree(session.features_folder(config, output), ignore_errors=True)  # larger than the model
        state.wait_for_everyone()
    if not state.is_main_process:  # perhaps on another machine, where no model was written
        return Summary("train", output, "")
    made = manifest.read(output, KIND)
    numbers = _numbers(made) | {"samples_per_second": outcome.samples_per_second}
    right = "" if outcome.yes_no_accuracy is None else f", which told yes from no {outcome.yes_no_accuracy:.1%} right,"
    log.info(f"the model of step {outcome.best_step:,}{right} is in {output}")
    return Summary("train", output, made.digest, numbers)


# What reaches beyond this machine is imported where the configuration asks for it, here and nowhere deeper: a training
# on folders loads no client of a cluster, a store or a registry.


def _on_nodes(config: Config, dataset: Path, models: Path, output: Path, settings: Settings, run_id: str) -> None:
    from multimodal_gemma.stages import train_nodes

    train_nodes.run(config, dataset, models, output, settings.place, run_id=run_id)


def _mlflow(config: Config, run_id: str, output: Path) -> GeneralTracker | None:
    from multimodal_gemma.training import device

    if "mlflow" not in config.training.trackers or not device.leads():
        return None
    from multimodal_gemma.registry import tracking

    return tracking.open_tracker(config.registry, run_id, output / "trackers" / "mlflow_waiting.jsonl")


def _copies(config: Config, settings: Settings) -> Copies | None:
    from multimodal_gemma.training import device

    if not config.training.checkpoint_uri or not device.leads():
        return None
    from multimodal_gemma.training import store

    # Trainings may share a prefix: each has a folder of its own in it.
    return store.CheckpointStore(f"{config.training.checkpoint_uri.rstrip('/')}/{settings.place}")


def _require_fit(data: ProcessedDataset, models: Path, digest: str) -> None:
    """Check that a dataset's tokens and pixels are what these base models would have been given.

    Other base models than those that it was prepared with may take them, e.g. a later revision of the same model.
    """
    from multimodal_gemma.model import processor

    prepared = data.manifest.inputs.get("models")
    if prepared is None or prepared == digest:
        return
    fit = data.manifest.config.get("image_fit", "stock")
    own = processor.build_processor(models / "vision", models / "language", fit)
    if different := processor.differences(data.processor(), own):
        raise InputError(
            f"train: {data.folder} was prepared for other base models: {', '.join(different)}. Run preprocess again "
            "with these models."
        )
    logs.get("train").info(
        f"{data.folder} was prepared with other base models (digest {prepared[:12]}, these have {digest[:12]}), whose "
        "tokenizer, chat template and images are the same"
    )


def _shaping(config: Config) -> dict[str, Any]:
    training = {key: value for key, value in dataclasses.asdict(config.training).items() if key not in _WATCHING}
    return {"model": portable(dataclasses.asdict(config.model)), "training": training}


def _settings(config: Config, shaping: dict[str, Any], inputs: dict[str, str], samples: int) -> Settings:
    from multimodal_gemma.training import checkpoint, schedule

    flat = flatten(shaping)
    free = {f"training.{name}" for name in _FREE}
    other = free | {f"training.{name}" for name in _GROWING}
    return checkpoint.Settings(
        identity={**{key: value for key, value in flat.items() if key not in other}, **inputs},
        free={key: flat[key] for key in sorted(free)},
        steps=schedule.plan_steps(config.training, samples)[0],
        warmup_fraction=config.training.warmup_fraction,
        patience=config.training.patience,
        code=files.code_digest(CODE),
    )


def _open_output(config: Config, output: Path) -> None:
    """Find out before hours of work that the folder can be written; a model that lies there counts as gone from now."""
    from multimodal_gemma.training import failures

    told = portable(dataclasses.asdict(config))  # a model folder is passed on, and says nothing of this machine
    del told["registry"]["tracking_uri"], told["training"]["cache_folder"]
    files.write_json(output / "run_config.json", told)
    (output / failures.REPLAY).unlink(missing_ok=True)
    (output / manifest.NAME).unlink(missing_ok=True)


def _write_model(config: Config, data: ProcessedDataset, models: Path, output: Path, outcome: Outcome) -> None:
    """Write the merged model of the best step and its adapter; the base weights are read afresh, in full precision."""
    from multimodal_gemma.model import adapters
    from multimodal_gemma.training import checkpoint, session

    llava, peft_model = session.build(config, data.processor(), models, check=False)
    adapters.restore(llava, checkpoint.load_weights(output / "checkpoints", outcome.best_step))
    adapters.save_adapter(llava, peft_model, output / "adapter")
    adapters.save_merged(adapters.merge(llava, peft_model), data.folder / "processor", output)


def _describe(
    data: ProcessedDataset, output: Path, outcome: Outcome, shaping: dict[str, Any], inputs: dict[str, str]
) -> None:
    """Write training_images.txt and, last, the manifest."""
    train, val = data.split("train"), data.split("val")
    images = sorted(set(train.image_ids) - {""})
    files.write_text(output / "training_images.txt", "".join(f"{image}\n" for image in images))
    facts = {
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "loss": outcome.rows[-1]["loss"],
        "validation_loss": outcome.validation_loss,
        "validation_yes_no_accuracy": outcome.yes_no_accuracy,
        "stopped_early": outcome.stopped_early,
    }
    manifest.write(
        output,
        KIND,
        config=shaping,
        inputs=inputs,
        counts={"conversations": len(train), "validation_conversations": len(val), "training_images": len(images)},
        facts=facts,
        exclude=lambda name: name in _TIMED or name.startswith(FOLDERS),
    )


def _numbers(made: manifest.Manifest) -> dict[str, float]:
    names = ("steps", "best_step", "loss", "validation_loss", "validation_yes_no_accuracy")
    return {name: float(made.facts[name]) for name in names if made.facts[name] is not None}
