"""Time, memory and money of a training on each kind of GPU, from first principles.

Time is operations over the peak times the share of it that is reached; memory is weights, optimiser and what the
backward pass needs of the forward one. Nothing here was timed unless a benchmark's result is given.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.planning.arithmetic import Shapes, Work
from multimodal_gemma.planning.devices import DEVICES, Device

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config

ASSUMED_MFU = (0.15, 0.40)  # between a step that waits and one that computes; none of this was timed
ROOM = 0.85  # share of the memory that is filled
_LOGIT_ROWS, _LOGIT_BYTES = 2048, 8  # logits that exist at a time, their softmax and what it is computed in
_LARGEST = 262_144  # positions; beyond it nothing gets faster
_CONTEXT = 1.0e9  # bytes that CUDA and its libraries take
_NF4 = 4.127 / 8  # bytes of a weight: 4 bits and its share of the scales (Dettmers et al., 2023, section 3)


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
class Estimate:
    """What one GPU would need.

    Attributes:
        device: the GPU.
        budget: positions a forward pass; 0 where not even the longest sample fits.
        memory_gb: at the peak.
        minutes: of training, the encoding of each image counted; at the highest and at the lowest share of the peak.
        dollars: what these minutes cost.
        measured: the share of the peak comes from a benchmark; then both are the same.
    """

    device: Device
    budget: int
    memory_gb: float
    minutes: tuple[float, float]
    dollars: tuple[float, float]
    measured: bool


def trainable(shapes: Shapes, config: Config) -> int:
    """Return how many parameters learn; norms and biases of parts that learn as a whole are left out."""
    model = config.model
    count = shapes.projector_weights if model.projector_policy == "trained" else 0
    if model.language_policy == "lora":
        count += shapes.adapter_weights(model.lora.rank, model.lora.targets)
    elif model.language_policy == "full":
        count += shapes.language_weights + shapes.head_weights * (1 if shapes.tied else 2)
    return count + (shapes.vision_weights if model.vision_policy == "full" else 0)


def fixed_bytes(shapes: Shapes, config: Config) -> float:
    """Return the bytes of weights, gradients and optimiser: 16 for what learns (fp32 and Adam), 2 for what does not.

    A frozen language model may have its linear layers in 4 bits instead.
    """
    learning = trainable(shapes, config)
    everything = shapes.language_weights + shapes.head_weights * (1 if shapes.tied else 2) + shapes.vision_weights
    frozen = max(everything - (learning if config.model.language_policy == "full" else 0), 0)
    saved = (2.0 - _NF4) * shapes.language_weights if config.model.language_quantization == "nf4" else 0.0
    return 16.0 * learning + 2.0 * frozen - saved + _CONTEXT


def position_bytes(shapes: Shapes, config: Config) -> float:
    """Return the bytes of a position that the backward pass needs.

    In bf16 each linear map's input and what attention and the gated MLP multiply; in fp32 what the norms compute.
    With checkpointing only each layer's input stays, and one layer at a time is whole.
    """
    attention = (shapes.heads + 2 * shapes.shared_heads) * shapes.head_width
    layer = 2 * (8 * shapes.width + 4 * attention + 5 * shapes.inner) + 4 * 8 * shapes.width
    if config.training.gradient_checkpointing:
        return shapes.layers * 2 * shapes.width + layer
    return float(shapes.layers * layer)


def estimate(device: Device, shapes: Shapes, config: Config, load: Load, mfu: float | None = None) -> Estimate:
    """Estimate a training on one GPU.

    Args:
        device: the GPU.
        shapes: of the models.
        config: policies and token budget.
        load: what there is to learn from.
        mfu: measured share of the peak; None: the range `ASSUMED_MFU`.
    """
    total = device.memory_gb * 1e9
    fixed = fixed_bytes(shapes, config) + float(_LOGIT_ROWS * _LOGIT_BYTES * shapes.vocabulary)
    each = position_bytes(shapes, config)
    asked = config.training.batch_tokens
    if isinstance(asked, int):
        budget = asked
    else:  # a whole step, or what the memory holds
        budget = int(min((ROOM * total - fixed) / each, config.training.batch_size * load.longest, _LARGEST))
    memory = fixed + each * budget
    if budget < load.longest or memory > total:
        budget = 0
    operations = step_operations(shapes, config, load) + encoding_operations(shapes, config, load)
    shares = ASSUMED_MFU[::-1] if mfu is None else (mfu, mfu)
    least, most = (operations / (device.tflops * 1e12 * share) / 60 for share in shares)
    return Estimate(
        device,
        budget,
        memory / 1e9 if budget else math.nan,
        (least, most),
        (least / 60 * device.dollars, most / 60 * device.dollars),
        mfu is not None,
    )


def step_operations(shapes: Shapes, config: Config, load: Load) -> float:
    """Return the operations of all steps, an image's positions computed once for its conversations."""
    own, image = load.positions - shapes.image_tokens, shapes.image_tokens
    return Work.of(shapes, config.model).step(
        positions=round(load.samples * own + load.shown * image),
        pairs=round(load.samples * (load.positions**2 - image**2) + load.shown * image**2),
        supervised=round(load.samples * load.supervised),
        images=load.shown,
    )


def encoding_operations(shapes: Shapes, config: Config, load: Load) -> float:
    """Return the operations of the encoder: once an image where its features are kept."""
    encoded = Work.of(shapes, config.model).encoded
    if config.model.vision_policy == "full":
        return 3 * encoded * load.shown
    return encoded * (load.shown if config.training.feature_cache == "none" else load.images)


def table(config: Config, shapes: Shapes, load: Load, benchmark: Path | None = None) -> list[Estimate]:
    """Estimate a training on every known GPU.

    Args:
        config: the configuration.
        shapes: of the models.
        load: what there is to learn from.
        benchmark: a result of benchmarks/gpu.py, or of train_step.py on a GPU; its share of the peak is taken for all.

    Raises:
        InputError: the file is no such result.
    """
    mfu = None
    if benchmark is not None:
        result: dict[str, Any] = files.read_json(benchmark, "benchmark")
        if not isinstance(result, dict) or not isinstance(result.get("mfu"), float):
            raise InputError(
                f"plan: {benchmark} states no share of a GPU's peak (mfu). Give what benchmarks/gpu.py --out wrote "
                "on a GPU."
            )
        mfu = result["mfu"]
    return [estimate(device, shapes, config, load, mfu) for device in DEVICES]
