"""One training from folders: models are joined, features cached, and the loop is run.

This is where the parts meet; each of them knows nothing of the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import adapters, assembly, attention
from multimodal_gemma.model.forward import FEWEST, Encoder, SupervisedLoss, YesOrNo, encoder_of
from multimodal_gemma.model.vocabulary_loss import has_c_compiler
from multimodal_gemma.planning.arithmetic import Shapes, Work
from multimodal_gemma.training import features, samples, trackers
from multimodal_gemma.training.device import choose_budget, leads, make_accelerator
from multimodal_gemma.training.loop import Job, Outcome, Trainer

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.data.processed import ProcessedDataset
    from multimodal_gemma.training.checkpoint import Copies, Settings
    from multimodal_gemma.training.failures import Watch

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def train(
    config: Config,
    dataset: ProcessedDataset,
    models: Path,
    folder: Path,
    watch: Watch,
    *,
    settings: Settings,
    mlflow: GeneralTracker | None = None,
    copies: Copies | None = None,
) -> Outcome:
    """Run one training to its end.

    Args:
        config: the whole configuration.
        dataset: what to learn from.
        models: base models, with `vision/`, `language/` and perhaps `projector/` and `adapter/`.
        folder: gets checkpoints/, curves.jsonl and curves.html.
        watch: hears SIGTERM.
        settings: what its checkpoints can be continued with.
        mlflow: the tracker of that name; None: there is none.
        copies: where checkpoints outlive this machine; None: nowhere.

    Returns:
        How it ended; its weights are in the checkpoint of `best_step`.

    Raises:
        InputError: an input does not fit, a device is not there, or the loss is no number any more.
    """
    training = config.training
    train_split = dataset.split("train")
    if not len(train_split):
        raise InputError(f"train: {dataset.folder} has no conversation in its training split. Prepare more data.")
    yes_or_no, told = choose_best(training.best_by, dataset)
    logs.get("train").info(told)
    watching = trackers.wanted(training, mlflow) if leads() else []  # one process is watched
    accelerator = make_accelerator(training, watching, folder / "trackers")
    precision = _precision(accelerator)
    processor = dataset.processor()
    llava, _ = build(config, processor, models, check=True, packed=_DTYPES[precision])
    encoder = _place(llava, processor, accelerator)
    kernel = speed_up(config, llava, accelerator)
    loss = SupervisedLoss(llava, encoder if config.model.vision_policy == "full" else None)
    kept_for = {
        "dataset": settings.identity["dataset"],
        "models": settings.identity["models"],
        "layer": config.model.vision_feature_layer,
        "precision": precision,
    }
    pictures = features.open_pictures(config, dataset, encoder, accelerator, features_folder(config, folder), kept_for)
    shown = folder / samples.NAME
    reporter = trackers.Reporter(accelerator, folder / "curves.html", shown, dataset.image)
    job = Job(
        training=training,
        loss=loss,
        train=train_split,
        val=dataset.split("val"),
        image_tokens=dataset.image_tokens,
        image_token_id=processor.image_token_id,
        pictures=pictures,
        kernel=kernel,
        folder=folder,
        settings=settings,
        budget=choose_budget(training, accelerator, loss, kernel, dataset),
        work=Work.of(Shapes.of(llava.config.vision_config, llava.config.text_config), config.model),
        samples=samples.Samples(dataset, processor, loss, pictures, accelerator, shown, training.sample_images),
        reporter=reporter,
        copies=copies,
        yes_or_no=yes_or_no,
    )
    trainer = Trainer(job, accelerator, watch)
    trackers.start(accelerator, watching, config)
    try:
        outcome = trainer.run()
    except BaseException:  # what was measured before a failure is what one wants to see
        reporter.close()
        raise
    reporter.close(outcome)
    return outcome


def choose_best(best_by: str, dataset: ProcessedDataset) -> tuple[YesOrNo | None, str]:
    """Return what the best checkpoint is found by: a reader of yes-or-no answers, or None for the loss; and a sentence.

    Most of what a loss is averaged over is wording. Held-out answers that begin with a yes or a no ask what POPE asks:
    P(yes) at their first token, after the true conversation up to there, is right or wrong. Yes and no weigh alike, as
    instruction data say yes far more often. The validation split holds no image of a benchmark (see
    `data.contamination`), so no benchmark chooses.

    Args:
        best_by: training.best_by.
        dataset: whose validation split is meant.

    Raises:
        InputError: answers were asked for, and there are too few.
    """
    if best_by == "loss":
        return None, "the best checkpoint is the one of the lowest validation loss"
    reader = YesOrNo(dataset.processor().tokenizer)
    split = dataset.split("val")
    yes, no = reader.count(split[row] for row in range(len(split)))
    told = f"of the validation split's answers {yes:,} begin with yes and {no:,} with no"
    if min(yes, no) >= FEWEST:
        return reader, f"the best checkpoint is the one that tells yes from no best: {told}"
    if best_by == "yes-no":
        raise InputError(
            f"config: training.best_by=yes-no needs {FEWEST} answers of each kind, and {told}. Set "
            "training.best_by=auto or loss, or hold out more with data.validation_fraction."
        )
    return (
        None,
        f"the best checkpoint is the one of the lowest validation loss: {told}, fewer than {FEWEST} each",
    )


def speed_up(config: Config, llava: LlavaForConditionalGeneration, accelerator: Accelerator) -> str:
    """Give a placed model what makes it fast, and return the kernel of its attention.

    Raises:
        InputError: its attention cannot be replaced, or the kernel that was asked for is not there.
    """
    training, device, precision = config.training, accelerator.device, _precision(accelerator)
    log, language = logs.get("train"), llava.model.language_model
    total = sum(weight.numel() for weight in llava.parameters())
    learning = sum(weight.numel() for weight in adapters.trained_weights(llava).values())
    log.info(f"{learning:,} of {total:,} parameters learn, on {device} in {precision}")
    attention.use_streams(language)
    kernel = attention.choose_kernel(training.attention, language, device, _DTYPES[precision])
    if config.model.language_policy == "lora" and config.model.lora.dropout:
        log.info("model.lora.dropout: conversations that share an image share what is dropped at its positions")
    # Without the one kernel every stream has other groups, and each would be compiled anew.
    compiled = training.compile == "on" or (training.compile == "auto" and kernel == "varlen" and has_c_compiler())
    if device.type == "cuda" and training.compile == "auto" and not compiled:
        why = "there is no C compiler (CC, gcc or clang)" if kernel == "varlen" else "attention is computed run by run"
        log.warning(f"the language model is not compiled, which is slower: {why}")
    if compiled:
        language.compile(dynamic=True)  # streams have a new length every time
    if training.gradient_checkpointing:
        language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if precision == "fp32" and not compiled and (fused := adapters.fuse(llava)):
        log.info(f"{fused} adapted layers are computed as one product each")
    return kernel


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
    assembly.require_possible(config.model)
    vision = assembly.load_vision(models / "vision")
    language = assembly.load_language(models / "language")
    projector = next((models / part for part in ("projector", "adapter") if getattr(config.model, part)), None)
    seed = config.training.seed
    llava = assembly.assemble(vision, language, processor, config.model, projector=projector, seed=seed)
    if check:
        assembly.check_wrapping(llava, language)
    if config.model.language_quantization == "nf4":
        assembly.round_weights(llava) if packed is None else assembly.quantise(llava, packed)
    peft_model = adapters.apply_policies(llava, config.model, seed=seed)
    if config.model.adapter:
        if peft_model is None:
            raise InputError(
                "config: model.adapter needs model.language_policy=lora. Set it, or leave model.adapter out."
            )
        adapters.start_adapter(peft_model, models / "adapter", config.model)
    return llava, peft_model


def _precision(accelerator: Accelerator) -> str:
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def _place(llava: LlavaForConditionalGeneration, processor: LlavaProcessor, accelerator: Accelerator) -> Encoder:
    """Move the model to its device, what is frozen in bf16 where the run is, and return its encoder."""
    if _precision(accelerator) == "bf16":
        for parameter in llava.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():  # codes of 4 bits are none
                parameter.data = parameter.data.to(torch.bfloat16)
    llava.to(accelerator.device)
    return encoder_of(llava, processor)
