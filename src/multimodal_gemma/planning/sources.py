"""Where a plan's figures come from: folders where there are any, else what is known of the presets' models and data.

Room on disks is arithmetic, too. What is none is named here with where it comes from: a photograph is as large as the
mean of COCO's train2017.zip, base models are as large as the Hub says.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma.errors import InputError
from multimodal_gemma.planning.arithmetic import Shapes, trainable

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.data.processed import ProcessedDataset

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
PHOTO = 19_336_861_798 / 118_287  # bytes: train2017.zip over its images; a JPEG does not shrink in it
_AS_JPEG = 0.2  # of the bytes of pixels, docs/data.md
_CONVERSATION = 229e6 / 157_712  # bytes: llava_instruct_150k.json as the Hub lists it
_QUESTIONS = 0.2e9  # bytes of VQA v2's questions and annotations of val2014, unpacked
_POPE_IMAGES = 500  # of its published files
_VAL_IMAGES = 40_504  # of val2014, that VQA v2 asks about
_WHOLE = {"clip-vit-large-patch14": 1.71e9, "siglip-base": 0.81e9}  # bytes on the Hub: fp32, with the text tower
_TEXT_BYTES = 128 * 5  # of a processed conversation: a token is four bytes, its mask one
_ADAM = 12  # bytes of a learning weight in a checkpoint: itself and two moments in fp32
HEADROOM = 1.2  # a fifth above the arithmetic: logs, temporary names, what a file system keeps for itself


@dataclasses.dataclass(frozen=True)
class Load:
    """What a training has to go through.

    Attributes:
        samples: conversations times epochs.
        images: distinct pictures.
        shown: pictures times epochs; an image's conversations read it once.
        positions: of a mean sample, image tokens counted.
        longest: positions of the longest sample.
        supervised: tokens with a loss of a mean sample.
    """

    samples: int
    images: int
    shown: int
    positions: float
    longest: int
    supervised: float


@dataclasses.dataclass(frozen=True)
class Room:
    """Bytes that one run takes, without headroom.

    Attributes:
        store: in the object store of the pipelines, for a run that reuses nothing.
        again: there, for a further run on the same data and base models.
        work: under `nodes.work_uri`, where a TrainJob trains; 0 where none does.
        slices: under `data.work_uri`; 0 where nothing is kept there.
        tasks: on the disk of each task's pod.
        node: on the scratch volume of a TrainJob's node.
    """

    store: float
    again: float
    work: float
    slices: float
    tasks: dict[str, float]
    node: float


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
    if data := _opened(dataset):
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


def room_of(config: Config, models: Path | None = None, dataset: Path | None = None, *, train_job: bool) -> Room:
    """Return the room on disks that a run takes; arguments and errors as of `shapes_of` and `load_of`.

    With `train_job`, train-model hands its work to a TrainJob.
    """
    shapes = shapes_of(config, models)
    if data := _opened(dataset):
        conversations, images = sum(len(data.split(split).lengths) for split in ("train", "val")), data.image_count
    else:
        conversations, images = _counts(config)
    raw = images * PHOTO + conversations * _CONVERSATION
    side = shapes.patch * math.isqrt(shapes.image_tokens)
    pixels = 3.0 * side**2 * (_AS_JPEG if config.data.pixels == "jpeg" else 1)
    processed = images * pixels + conversations * _TEXT_BYTES
    asked = min(config.benchmarks.vqa_questions or _VAL_IMAGES, _VAL_IMAGES) if config.benchmarks.vqa else 0
    pope = _POPE_IMAGES if config.benchmarks.pope else 0
    benchmarks = (asked + pope) * PHOTO + (_QUESTIONS if asked else 0)
    language = shapes.language_weights + shapes.head_weights * (1 if shapes.tied else 2)
    vision = next((size for name, size in _WHOLE.items() if name in config.model.vision), 4.0 * shapes.vision_weights)
    bases = vision + 2.0 * language
    weights = shapes.vision_weights + language + shapes.projector_weights
    checkpoints = (config.training.keep_best + 1.0) * _ADAM * trainable(shapes, config)
    model, export = 4.0 * weights, 2.0 * weights
    again = model + checkpoints + export
    trains = processed + bases + _features(config, shapes, images) + model + checkpoints
    waits = processed + bases + model
    return Room(
        store=raw + processed + benchmarks + bases + again,
        again=again,
        work=processed + bases + model + checkpoints if train_job else 0.0,
        slices=raw + processed if config.data.work_uri else 0.0,
        tasks={
            "download-dataset": raw,
            "download-benchmarks": benchmarks,
            "download-models": bases,
            "preprocess-dataset": raw + processed,
            "train-model": waits if train_job else trains,
            "evaluate-model": benchmarks + model,
            "export-model": model + export,
        },
        node=trains if train_job else 0.0,
    )


def gib(size: float) -> str:
    """Return bytes with headroom as Kubernetes writes them, rounded up, e.g. "67Gi"."""
    return f"{math.ceil(size * HEADROOM / 2**30)}Gi"


def _features(config: Config, shapes: Shapes, images: int) -> float:
    """Return the bytes of the frozen encoder's features where they may lie on the disk: bf16, kept once an image."""
    kept = config.training.feature_cache in ("auto", "disk") and config.training.augmentation == "none"
    frozen = config.model.vision_policy == "frozen"
    return 2.0 * images * shapes.image_tokens * shapes.vision_width if kept and frozen else 0.0


def _opened(dataset: Path | None) -> ProcessedDataset | None:
    from multimodal_gemma.data.processed import ProcessedDataset

    return None if dataset is None else ProcessedDataset(dataset)


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
