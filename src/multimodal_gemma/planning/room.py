"""Room on disks: what a run writes to the object store, and what each task or node has beside it, in bytes.

Arithmetic from the models' shapes and the data's counts. What is no arithmetic is named here with where it comes from:
a photograph is as large as the mean of COCO's train2017.zip, base models are as large as the Hub says.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from multimodal_gemma.planning.arithmetic import Shapes
from multimodal_gemma.planning.estimate import trainable

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config

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


def of(config: Config, shapes: Shapes, conversations: int, images: int, *, train_job: bool) -> Room:
    """Return the room that a run takes.

    Args:
        config: benchmarks, policies and the feature cache.
        shapes: of the models.
        conversations: of the dataset.
        images: distinct pictures of it.
        train_job: train-model hands its work to a TrainJob.
    """
    raw = images * PHOTO + conversations * _CONVERSATION
    side = shapes.patch * math.isqrt(shapes.image_tokens)
    pixels = 3.0 * side**2 * (_AS_JPEG if config.data.pixels == "jpeg" else 1)
    processed = images * pixels + conversations * _TEXT_BYTES
    asked = min(config.benchmarks.vqa_questions or _VAL_IMAGES, _VAL_IMAGES) if config.benchmarks.vqa else 0
    pope = _POPE_IMAGES if config.benchmarks.pope else 0
    benchmarks = (asked + pope) * PHOTO + (_QUESTIONS if asked else 0)
    language = shapes.language_weights + shapes.head_weights * (1 if shapes.tied else 2)
    vision = next((size for name, size in _WHOLE.items() if name in config.model.vision), 4.0 * shapes.vision_weights)
    models = vision + 2.0 * language
    weights = shapes.vision_weights + language + shapes.projector_weights
    checkpoints = (config.training.keep_best + 1.0) * _ADAM * trainable(shapes, config)
    model, export = 4.0 * weights, 2.0 * weights
    again = model + checkpoints + export
    trains = processed + models + _features(config, shapes, images) + model + checkpoints
    waits = processed + models + model
    return Room(
        store=raw + processed + benchmarks + models + again,
        again=again,
        work=processed + models + model + checkpoints if train_job else 0.0,
        slices=raw + processed if config.data.work_uri else 0.0,
        tasks={
            "download-dataset": raw,
            "download-benchmarks": benchmarks,
            "download-models": models,
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
