"""One training from folders: models are joined, features cached, and the loop is run.

This is where the parts meet; each of them knows nothing of the others.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import Tensor

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters, assembly
from multimodal_gemma.model.forward import Encoder, SupervisedLoss
from multimodal_gemma.planning.arithmetic import Shapes, Work
from multimodal_gemma.training import feature_file, features, samples, trackers
from multimodal_gemma.training.batches import make_batch
from multimodal_gemma.training.budget import choose_budget, logit_rows
from multimodal_gemma.training.device import make_accelerator
from multimodal_gemma.training.loop import Trainer
from multimodal_gemma.training.plan import Job, Outcome
from multimodal_gemma.training.preemption import Watch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.data.processed import ProcessedDataset

_COMPILED_MULTIPLE = 64  # row lengths are rounded up to this where each new shape would be compiled


def train(
    config: Config,
    dataset: ProcessedDataset,
    models: Path,
    folder: Path,
    watch: Watch,
    *,
    identity: dict[str, Any],
    run_id: str,
) -> Outcome:
    """Run one training to its end.

    Args:
        config: the whole configuration.
        dataset: what to learn from.
        models: base models, with `vision/`, `language/` and perhaps `projector/`.
        folder: gets checkpoints/ and curves.jsonl.
        watch: hears SIGTERM.
        identity: flat configuration and input digests that a checkpoint belongs to.
        run_id: the pipeline run, for MLflow.

    Returns:
        How it ended; its weights are in the checkpoint of `best_step`.

    Raises:
        InputError: an input does not fit, a device is not there, or the loss is no number any more.
    """
    log = logs.get("train")
    training = config.training
    leads = os.environ.get("RANK", "0") == "0"  # set by launchers of several processes; one of them is watched
    names = trackers.wanted(config) if leads else []
    accelerator = make_accelerator(training, _tracker_objects(config, names, run_id, folder), folder / "trackers")
    processor = dataset.processor()
    llava, _ = build(config, processor, models, check=True)
    total = sum(weight.numel() for weight in llava.parameters())
    learning = sum(weight.numel() for weight in adapters.trained_weights(llava).values())
    log.info(f"{learning:,} of {total:,} parameters learn, on {accelerator.device} in {_precision(accelerator)}")
    encoder = _place(llava, processor, accelerator)
    compiled = training.compile == "on" or (training.compile == "auto" and accelerator.device.type == "cuda")
    if compiled:
        llava.model.language_model.compile()
    if training.gradient_checkpointing:
        llava.model.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = {name: identity[name] for name in ("dataset", "models")}
    learns_to_see = config.model.vision_policy == "full"
    loss = SupervisedLoss(llava, encoder if learns_to_see else None, logit_rows(llava, accelerator.device))
    shapes = Shapes.of(llava.config.vision_config, llava.config.text_config)
    cut = functools.partial(
        make_batch,
        image_tokens=dataset.image_tokens,
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    pictures = _pictures(config, dataset, encoder, accelerator, features_folder(config, folder), inputs)
    shown = folder / samples.NAME
    job = Job(
        training=training,
        loss=loss,
        train=dataset.split("train"),
        val=dataset.split("val"),
        make_batch=functools.partial(cut, multiple=_COMPILED_MULTIPLE if compiled else 1),
        pictures=pictures,
        folder=folder,
        identity=identity,
        budget=choose_budget(training.batch_tokens, accelerator, loss, dataset),
        work=Work.of(shapes, config.model),
        samples=samples.Samples(dataset, processor, loss, pictures, cut, accelerator, shown, training.sample_images),
    )
    if not len(job.train):
        raise InputError(f"train: {dataset.folder} has no conversation in its training split. Prepare more data.")
    trainer = Trainer(job, accelerator, watch)
    trackers.start(accelerator, names, config)
    try:
        return trainer.run()
    finally:  # what was measured before a failure is what one wants to see
        for tracker in accelerator.trackers:
            if isinstance(tracker, trackers.MLflowBatches):
                tracker.keep([shown], "training")
            tracker.finish()


def features_folder(config: Config, folder: Path) -> Path:
    """Return where a cache of features on disk lies: `training.cache_folder`, else in the output."""
    return Path(config.training.cache_folder or folder / "features")


def build(
    config: Config, processor: LlavaProcessor, models: Path, *, check: bool
) -> tuple[LlavaForConditionalGeneration, PeftModel | None]:
    """Join the base models and say what learns, in float32 on the processor.

    Args:
        config: sections `model` and `training`.
        processor: the one that the dataset was prepared with.
        models: the base models.
        check: prove that stock Llava computes what the language model does.

    Returns:
        The model, and its PEFT view where there are adapters.
    """
    vision = assembly.load_vision(models / "vision")
    language = assembly.load_language(models / "language")
    projector = models / "projector" if config.model.projector else None
    seed = config.training.seed
    llava = assembly.assemble(vision, language, processor, config.model, projector=projector, seed=seed)
    if check:
        assembly.check_wrapping(llava, language)
    return llava, adapters.apply_policies(llava, config.model, seed=seed)


def _tracker_objects(config: Config, names: list[str], run_id: str, folder: Path) -> list[str | GeneralTracker]:
    objects: list[str | GeneralTracker] = [name for name in names if name != "mlflow"]
    if "mlflow" in names:
        objects.append(trackers.MLflowBatches(config.registry, run_id, folder / "trackers" / "mlflow_waiting.jsonl"))
    return objects


def _precision(accelerator: Accelerator) -> str:
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def _place(llava: LlavaForConditionalGeneration, processor: LlavaProcessor, accelerator: Accelerator) -> Encoder:
    """Move the model to its device, what is frozen in bf16 where the run is, and return its encoder."""
    if _precision(accelerator) == "bf16":
        for parameter in llava.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    llava.to(accelerator.device)
    stock = processor.image_processor
    encoder = Encoder(
        llava,
        mean=list(stock.image_mean) if stock.do_normalize else [0.0, 0.0, 0.0],
        std=list(stock.image_std) if stock.do_normalize else [1.0, 1.0, 1.0],
        rescale=stock.rescale_factor if stock.do_rescale else 1.0,
    )
    return encoder.to(accelerator.device)


def _pictures(
    config: Config,
    dataset: ProcessedDataset,
    encoder: Encoder,
    accelerator: Accelerator,
    folder: Path,
    inputs: dict[str, Any],
) -> Callable[[Sequence[int]], Tensor]:
    """Return what answers a batch's question for its images."""
    wanted = np.unique(np.concatenate([dataset.split(name).image_indices for name in ("train", "val")]))
    wanted = wanted[wanted >= 0]
    precision = _precision(accelerator)
    width = encoder.tower.config.hidden_size * (2 if precision == "bf16" else 4)
    place = features.choose_cache(
        config.training.feature_cache,
        vision_policy=config.model.vision_policy,
        images=len(wanted),
        bytes_per_image=dataset.image_tokens * width,
        folder=folder,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # set by launchers of several processes
    )
    device = accelerator.device
    if config.model.vision_policy == "full":
        return lambda indices: features.stack_images(dataset, indices).to(device)
    if place == "none":
        return features.encode_on_demand(dataset, encoder, device)
    if place == "disk":
        key = {**inputs, "layer": config.model.vision_feature_layer, "precision": precision}
        writes = bool(accelerator.is_local_main_process)
        lookup = None
        if writes:
            lookup = feature_file.cached_on_disk(dataset, encoder, device, wanted.tolist(), folder, key)
        accelerator.wait_for_everyone()  # the others read what one has written
        return lookup or feature_file.cached_on_disk(dataset, encoder, device, wanted.tolist(), folder, key)
    return features.cached_in_memory(dataset, encoder, device, wanted.tolist(), show=accelerator.is_main_process)
