"""One training from folders: models are joined, features cached, and the loop is run.

This is where the parts meet; each of them knows nothing of the others.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters, assembly, quantisation
from multimodal_gemma.model.attention import takes_masks
from multimodal_gemma.model.forward import Encoder, SupervisedLoss
from multimodal_gemma.model.fused_lora import fuse
from multimodal_gemma.planning.arithmetic import Shapes, Work
from multimodal_gemma.training import pictures, samples, sharding, trackers
from multimodal_gemma.training.batches import make_batch
from multimodal_gemma.training.budget import choose_budget, logit_rows
from multimodal_gemma.training.device import choose_device, leads, make_accelerator
from multimodal_gemma.training.loop import Trainer
from multimodal_gemma.training.plan import Job, Outcome
from multimodal_gemma.training.preemption import Watch
from multimodal_gemma.training.sharing import Sharing

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from multimodal_gemma.config.schema import Config, TrainingConfig
    from multimodal_gemma.data.processed import ProcessedDataset

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
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
    sharding.require_possible(config, choose_device(training.device, "training.device"))
    names = trackers.wanted(config) if leads() else []  # one process is watched
    accelerator = make_accelerator(training, _tracker_objects(config, names, run_id, folder), folder / "trackers")
    processor = dataset.processor()
    llava, _ = build(config, processor, models, check=True, packed=_DTYPES[_precision(accelerator)])
    total = sum(weight.numel() for weight in llava.parameters())
    learning = sum(weight.numel() for weight in adapters.trained_weights(llava).values())
    log.info(f"{learning:,} of {total:,} parameters learn, on {accelerator.device} in {_precision(accelerator)}")
    encoder = _place(llava, processor, accelerator)
    sharded = sharding.active(accelerator)
    on_gpu = accelerator.device.type == "cuda"
    compiled = training.compile == "on" or (training.compile == "auto" and on_gpu and not sharded)
    if compiled:
        llava.model.language_model.compile()
    if training.gradient_checkpointing:
        llava.model.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if _precision(accelerator) == "fp32" and not sharded and (fused := fuse(llava)):
        log.info(f"{fused} adapted layers are computed as one product each")
    inputs = {name: identity[name] for name in ("dataset", "models")}
    learns_to_see = config.model.vision_policy == "full"
    # Where words alone have nothing that learns, a pass of theirs must not be without a gradient either.
    kind = sharding.WholeLoss if sharded or config.model.language_policy == "frozen" else SupervisedLoss
    loss = kind(llava, encoder if learns_to_see else None, logit_rows(llava, accelerator.device))
    shapes = Shapes.of(llava.config.vision_config, llava.config.text_config)
    cut = functools.partial(
        make_batch,
        image_tokens=dataset.image_tokens,
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    kept_for = {**inputs, "layer": config.model.vision_feature_layer, "precision": _precision(accelerator)}
    shown_as = pictures.as_they_are(config, dataset, encoder, accelerator, features_folder(config, folder), kept_for)
    shown = folder / samples.NAME
    if sharded and accelerator.is_main_process:  # which cannot ask alone
        files.write_jsonl(shown, [])
    train_split, val_split = dataset.split("train"), dataset.split("val")
    shares = not sharded and _shares_images(training, llava, compiled)
    share = functools.partial(
        Sharing.of,
        image_token_id=processor.image_token_id,
        image_tokens=dataset.image_tokens,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    sharing = share(train_split) if shares else None
    if sharing is not None and not sharing.saved:
        sharing = None  # no image has a second conversation that begins with it
    if sharing is not None:
        log.info(f"an image's conversations share a step: {sharing.saved:.0%} of all positions are not read again")
    job = Job(
        training=training,
        loss=loss,
        train=train_split,
        val=val_split,
        make_batch=functools.partial(cut, multiple=_COMPILED_MULTIPLE if compiled else 1),
        pictures=shown_as,
        augmented=pictures.augmented(config, dataset, encoder, accelerator.device),
        folder=folder,
        identity=identity,
        budget=choose_budget(training.batch_tokens, accelerator, loss, dataset),
        work=Work.of(shapes, config.model),
        samples=None
        if sharded
        else samples.Samples(dataset, processor, loss, shown_as, cut, accelerator, shown, training.sample_images),
        sharing=sharing,
        val_sharing=share(val_split) if sharing is not None else None,
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


def _shares_images(training: TrainingConfig, llava: LlavaForConditionalGeneration, compiled: bool) -> bool:
    """Decide whether conversations of one image are read behind one copy of it.

    Raises:
        InputError: it was asked for, and cannot be.
    """
    setting = training.share_images
    if setting == "off":
        return False
    reason = ""
    if training.gradient_checkpointing:
        reason = "training.gradient_checkpointing keeps no keys and values to share"
    elif not takes_masks(llava.model.language_model):
        reason = f"{type(llava.model.language_model).__name__} takes no prepared attention mask"
    if reason and setting == "on":
        raise InputError(f"config: training.share_images=on does not fit: {reason}. Set training.share_images=auto.")
    return not reason and (setting == "on" or not compiled)


def features_folder(config: Config, folder: Path) -> Path:
    """Return where a cache of features on disk lies: `training.cache_folder`, else in the output."""
    return Path(config.training.cache_folder or folder / "features")


def build(
    config: Config, processor: LlavaProcessor, models: Path, *, check: bool, packed: torch.dtype | None = None
) -> tuple[LlavaForConditionalGeneration, PeftModel | None]:
    """Join the base models and say what learns, in float32 on the processor.

    Args:
        config: sections `model` and `training`.
        processor: the one that the dataset was prepared with.
        models: the base models.
        check: prove that stock Llava computes what the language model does.
        packed: what 4-bit weights are unpacked to, where the configuration has any; None: their values are written out
            in full precision, as a model for others has them.

    Returns:
        The model, and its PEFT view where there are adapters.
    """
    quantisation.require_possible(config.model)
    vision = assembly.load_vision(models / "vision")
    language = assembly.load_language(models / "language")
    projector = models / "projector" if config.model.projector else None
    seed = config.training.seed
    llava = assembly.assemble(vision, language, processor, config.model, projector=projector, seed=seed)
    if check:
        assembly.check_wrapping(llava, language)
    if config.model.language_quantization == "nf4":
        quantisation.round_weights(llava) if packed is None else quantisation.quantise(llava, packed)
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
    sharded = sharding.active(accelerator)  # its weights are cut in fp32, and gathered in bf16
    if _precision(accelerator) == "bf16" and not sharded:
        for parameter in llava.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():  # codes of 4 bits are none
                parameter.data = parameter.data.to(torch.bfloat16)
    # Cut weights go to their devices part by part: whole they may be too much for one.
    (llava.model.vision_tower if sharded else llava).to(accelerator.device)
    stock = processor.image_processor
    encoder = Encoder(
        llava,
        mean=list(stock.image_mean) if stock.do_normalize else [0.0, 0.0, 0.0],
        std=list(stock.image_std) if stock.do_normalize else [1.0, 1.0, 1.0],
        rescale=stock.rescale_factor if stock.do_rescale else 1.0,
    )
    return encoder.to(accelerator.device)
