"""Where a plan's figures come from: folders where there are any, else what is known of the presets' models and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma.errors import InputError
from multimodal_gemma.planning import room
from multimodal_gemma.planning.arithmetic import Shapes
from multimodal_gemma.planning.estimate import Load

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config

# From the models' config.json: width, layers, width inside the MLP, image tokens, patch.
_VISION = {
    "clip-vit-large-patch14-336": (1024, 24, 4096, 576, 14),
    "clip-vit-large-patch14": (1024, 24, 4096, 256, 14),
    "siglip-base-patch16-224": (768, 12, 3072, 196, 16),
}
# Width, layers, width inside the MLP, query heads, key heads, width of a head, vocabulary.
_LANGUAGE = {
    "gemma-3-270m": (640, 18, 2048, 4, 1, 256, 262_144),
    "gemma-3-1b": (1152, 26, 6912, 4, 1, 256, 262_144),
}
# Conversations and images of the presets, as published.
_DATA = {
    "llava-150k": (157_712, 81_479),
    "llava-1.5": (665_298, 665_298),  # images at most: how many are distinct is not published
    "llava-1.5-align": (558_128, 558_128),
}
_TEXT, _LONGEST_TEXT, _SUPERVISED = 230, 1024, 0.75  # tokens of a mean conversation; share of them with a loss


def shapes_of(config: Config, models: Path | None) -> Shapes:
    """Return the models' widths.

    Args:
        config: names the models.
        models: a base-models folder; None: only well-known ones can be planned.

    Raises:
        InputError: a model is not known and there is no folder.
    """
    if models is not None:
        from transformers import AutoConfig

        from multimodal_gemma.model import folders

        vision = AutoConfig.for_model(**folders.read_config(models / "vision", "vision"))
        text = AutoConfig.for_model(**folders.read_config(models / "language", "language"))
        return Shapes.of(getattr(vision, "vision_config", vision), text)
    seen = next((facts for name, facts in _VISION.items() if name in config.model.vision), None)
    said = next((facts for name, facts in _LANGUAGE.items() if name in config.model.language), None)
    if seen is None or said is None:
        unknown = config.model.vision if seen is None else config.model.language
        raise InputError(
            f"plan: the shape of {unknown} is not known here. Fetch the models (mmgemma download models FOLDER) and "
            "give their folder with --models."
        )
    return Shapes(*seen, *said)


def load_of(config: Config, shapes: Shapes, dataset: Path | None) -> Load:
    """Return what there is to learn from.

    Args:
        config: epochs and limits.
        shapes: image tokens.
        dataset: a processed dataset, whose lengths are taken; None: what the preset's data are known to be.

    Raises:
        InputError: neither is there.
    """
    if dataset is not None:
        from multimodal_gemma.data.processed import ProcessedDataset

        data = ProcessedDataset(dataset)
        lengths = data.split("train").lengths
        mean = float(lengths.mean())
        text = max(mean - shapes.image_tokens, 1.0)
        samples, images = _samples(config, len(lengths)), data.image_count
        shown = round(samples * min(images / len(lengths), 1.0))
        return Load(samples, images, shown, mean, int(lengths.max()), text * _SUPERVISED)
    limited, images = _counts(config)
    samples = _samples(config, limited)
    return Load(
        samples,
        images,
        round(samples * images / limited),
        shapes.image_tokens + _TEXT,
        shapes.image_tokens + min(_LONGEST_TEXT, config.data.max_text_tokens),
        _TEXT * _SUPERVISED,
    )


def room_of(config: Config, models: Path | None = None, dataset: Path | None = None, *, train_job: bool) -> room.Room:
    """Return the room on disks that a run takes; arguments and errors as of `shapes_of` and `load_of`."""
    if dataset is not None:
        from multimodal_gemma.data.processed import ProcessedDataset

        data = ProcessedDataset(dataset)
        counts = sum(len(data.split(split).lengths) for split in ("train", "val")), data.image_count
    else:
        counts = _counts(config)
    return room.of(config, shapes_of(config, models), *counts, train_job=train_job)


def _counts(config: Config) -> tuple[int, int]:
    """Return conversations and images of a preset's data."""
    if config.preset not in _DATA:
        raise InputError(
            f"plan: how large the data of preset {config.preset} are is not known here. Give a processed dataset with "
            "--dataset."
        )
    conversations, images = _DATA[config.preset]
    limited = min(conversations, config.data.limit or conversations)
    return limited, min(images, limited)


def _samples(config: Config, conversations: int) -> int:
    whole = conversations * config.training.epochs
    return min(whole, (config.training.max_steps or whole) * config.training.batch_size)
