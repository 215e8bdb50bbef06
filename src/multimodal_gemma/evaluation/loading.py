"""A model folder, ours or anybody's, checked and loaded for asking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal_gemma import files, manifest
from multimodal_gemma.errors import InputError

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_MINIATURE = 20_000_000  # parameters


def digest(folder: Path) -> str:
    """Return what identifies a model folder: its manifest's digest, or one over the files at its root.

    Raises:
        InputError: the folder does not exist.
    """
    if (folder / manifest.NAME).is_file():
        return manifest.read(folder, "model").digest
    if not folder.is_dir():
        raise InputError(f"model: {folder} does not exist. Give the folder of an image-text-to-text model.")
    return files.digest_of({path.name: files.sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()})


def check(folder: Path) -> Any:
    """Check, without loading anything heavy, that a folder can be asked about images.

    Returns:
        Its processor.

    Raises:
        InputError: it lacks config, weights, processor, chat template or image token, or holds another kind of model.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from multimodal_gemma.model.folders import quiet

    if not (folder / "config.json").is_file():
        raise InputError(f"model: {folder} has no config.json. Give the folder of an image-text-to-text model.")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"model: {folder / 'config.json'} cannot be used: {_first_line(error)}.") from None
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise InputError(
            f"model: {folder} is a {config.model_type!r} model, which takes no images with text. "
            "Give an image-text-to-text model, such as one that `mmgemma train` made."
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise InputError(f"model: {folder} holds no weights (model.safetensors). Fetch or train the model again.")
    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        # The last two: what transformers says where the processor needs a package that is not installed.
        raise InputError(f"model: {folder} has no processor that can be used here: {_first_line(error)}.") from None
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise InputError(
            f"model: {folder} has no processor for images and text (preprocessor_config.json or processor_config.json "
            "beside the tokenizer's files). Fetch the folder whole."
        )
    if not getattr(processor, "chat_template", None):
        raise InputError(
            f"model: {folder} has no chat template (chat_template.jinja), so how to ask it is unknown. "
            "Add the template that the model was trained with."
        )
    image_token = getattr(processor, "image_token", None)
    configured = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if image_token is None and configured is None:
        raise InputError(f"model: {folder} defines no image token, neither its processor nor its configuration.")
    if image_token is None or config.model_type != "llava":
        return processor
    known = processor.tokenizer.convert_tokens_to_ids(image_token)
    if known != configured or known == processor.tokenizer.unk_token_id:
        raise InputError(
            f"model: {folder} has no usable image token: {image_token!r} is {known} to its tokenizer and {configured} "
            "in config.json. Save the model together with the processor that it was trained with."
        )
    return processor


def load(folder: Path, *, device: str = "auto", precision: str = "auto") -> tuple[Any, Any]:
    """Load a checked folder.

    Args:
        folder: stock image-text-to-text folder.
        device: "auto" takes a GPU if there is one; "cpu"; "cuda".
        precision: "auto" is bf16 on a GPU that has it, else fp32; "fp32"; "bf16".

    Returns:
        The model in eval mode on its device, and its processor.

    Raises:
        InputError: see `check`; or the weights do not fit the configuration, or the device asked for is not there.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    from multimodal_gemma.model.folders import quiet
    from multimodal_gemma.training.device import choose_device, choose_precision

    processor = check(folder)
    place = choose_device(device, "evaluation.device")
    half = choose_precision(precision, place, "evaluation.precision") == "bf16"
    try:
        with quiet():
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.bfloat16 if half else torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:  # int8 weights need torchao
        raise InputError(f"model: the weights in {folder} cannot be loaded: {_first_line(error)}.") from None
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"model: {folder} lacks {len(missing)} of its weights, the first is {missing[0]}. Fetch or train the model "
            "again."
        )
    return model.to(place).eval(), processor


@contextlib.contextmanager
def threads_for(model: Any) -> Iterator[None]:
    """Let a miniature compute in one thread inside the block.

    Its matrices take microseconds: a second thread does little but spin while it waits for the next one, and where
    cores are shared it doubles to quadruples the time (measured: 6.8 s in one thread, 12 to 28 s in two).
    """
    import torch

    before = torch.get_num_threads()
    small = model.device.type == "cpu" and sum(weight.numel() for weight in model.parameters()) < _MINIATURE
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")
