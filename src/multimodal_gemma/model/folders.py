"""What a base-model folder says about itself before anything heavy is loaded.

A vision folder is a whole CLIP or SigLIP checkpoint or its vision half alone; a language folder is any causal model.
Both are stock folders: config.json beside weights in safetensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

_WITH_CLS = {"clip": True, "clip_vision_model": True, "siglip": False, "siglip_vision_model": False}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclasses.dataclass(frozen=True)
class VisionFacts:
    """The figures of a vision encoder that decide how many tokens an image becomes.

    Attributes:
        image_size: side of its square input, pixels.
        patch_size: side of a patch, pixels.
        has_cls: a class token stands before the patch tokens (CLIP), and Llava drops it.
    """

    image_size: int
    patch_size: int
    has_cls: bool

    @property
    def image_tokens(self) -> int:
        """Patch tokens an image becomes."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def select_strategy(self) -> str:
        """Llava's name for what is taken of the encoder's tokens: "default" drops the class token."""
        return "default" if self.has_cls else "full"


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Return config.json of a base-model folder.

    Args:
        folder: the stock folder.
        part: "vision" or "language", for messages.

    Raises:
        InputError: the folder or its config.json is missing or broken.
    """
    if not folder.is_dir():
        raise InputError(f"model.{part}: {folder} does not exist. Give a stock model folder.")
    if not (folder / "config.json").is_file():
        raise InputError(f"model.{part}: {folder} has no config.json: it is no stock model folder. Fetch it whole.")
    config = files.read_json(folder / "config.json", f"model.{part}")
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"model.{part}: {folder / 'config.json'} names no model_type. Fetch the folder again.")
    return config


def source_name(location: str) -> str:
    """Return what a base model is called in the files of a trained one: ORG/NAME of a hub, else its last name."""
    if location.startswith("hf://"):
        return location.removeprefix("hf://").partition("@")[0]
    return location.rstrip("/").rpartition("/")[2]


def require_weights(folder: Path, part: str) -> None:
    """Check that the folder holds weights in safetensors.

    Raises:
        InputError: there are none.
    """
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise InputError(
            f"model.{part}: {folder} holds no weights (model.safetensors). "
            "Fetch the folder whole; pickled weights are not loaded."
        )


def vision_facts(folder: Path) -> VisionFacts:
    """Read the figures of the vision encoder in `folder`.

    Raises:
        InputError: the folder is no CLIP or SigLIP checkpoint.
    """
    config = read_config(folder, "vision")
    kind = config["model_type"]
    if kind not in _WITH_CLS:
        raise InputError(f"model.vision: {folder} is a {kind!r} model. Give a CLIP or SigLIP checkpoint.")
    # A whole checkpoint's config leaves out what equals the class default, so transformers' own class reads it.
    from transformers import AutoConfig

    whole = AutoConfig.for_model(**config)
    vision = getattr(whole, "vision_config", whole)
    return VisionFacts(vision.image_size, vision.patch_size, _WITH_CLS[kind])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and load reports inside the block; its errors still show."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
