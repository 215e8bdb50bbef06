"""`mmgemma plan`: time, memory and money of a training on each kind of GPU, from first principles.

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
from multimodal_gemma.planning import sources
from multimodal_gemma.planning.arithmetic import DEVICES, PRICES, Device, Shapes, Work, trainable
from multimodal_gemma.planning.sources import Load

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config

ASSUMED_MFU = (0.15, 0.40)  # between a step that waits and one that computes; none of this was timed
ROOM = 0.85  # share of the memory that is filled
_LOGIT_ROWS, _LOGIT_BYTES = 2048, 8  # logits that exist at a time, their softmax and what it is computed in
_LARGEST = 262_144  # positions; beyond it nothing gets faster
_CONTEXT = 1.0e9  # bytes that CUDA and its libraries take
_HEAD = ("GPU", "positions a pass", "memory GB", "minutes", "cost $", "$ an hour")
_NF4 = 4.127 / 8  # bytes of a weight: 4 bits and its share of the scales (Dettmers et al., 2023, section 3)


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


def text(
    config: Config, *, models: Path | None = None, dataset: Path | None = None, benchmark: Path | None = None
) -> str:
    """Return the plan of a configuration as a Markdown table, with the sentence that says what it rests on.

    Args:
        config: the configuration.
        models: a base-models folder, for models that are not known here.
        dataset: a processed dataset, for its lengths.
        benchmark: a result of benchmarks/gpu.py on a GPU.

    Raises:
        InputError: a model or the data are not known and no folder is given, or the benchmark is no such result.
    """
    shapes = sources.shapes_of(config, models)
    load = sources.load_of(config, shapes, dataset)
    found = table(config, shapes, load, benchmark)
    low, high = ASSUMED_MFU
    share = "the benchmark's share" if found[0].measured else f"{low:.0%} to {high:.0%} (assumed, not measured)"
    each = step_operations(shapes, config, load) / load.samples
    lines = [
        f"{load.samples:,} samples of {load.positions:,.0f} positions, {load.images:,} images, "
        f"{trainable(shapes, config):,} parameters learn, {each / 1e9:,.0f} GFLOP a sample where an image's "
        f"conversations read it once. Arithmetic at {share} of each GPU's bf16 peak; an hour's price is a round "
        f"figure of {PRICES}, not looked up.",
        "",
        f"| {' | '.join(_HEAD)} |",
        "| --- " + "| ---: " * (len(_HEAD) - 1) + "|",
    ]
    for row in found:
        held = (f"{row.budget:,}", f"{row.memory_gb:.0f}") if row.budget else ("does not fit", "")
        minutes, dollars = (_range(*of) for of in ((*row.minutes, 0), (*row.dollars, 2)))
        figures = (row.device.name, *held, minutes, dollars, f"{row.device.dollars:.2f}")
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join([*lines, "", *_room(config, models, dataset)])


def _room(config: Config, models: Path | None, dataset: Path | None) -> list[str]:
    """Return what a run takes on disks, as a second table."""
    train_job = config.training.nodes > 1 or bool(config.nodes.work_uri)
    found = sources.room_of(config, models, dataset, train_job=train_job)
    rows = [
        ("object store of the pipelines, a run that reuses nothing", found.store),
        ("and each further run on the same data", found.again),
        ("under nodes.work_uri", found.work),
        ("under data.work_uri", found.slices),
        *((f"disk of {task}", size) for task, size in found.tasks.items()),
        ("scratch of a TrainJob's node", found.node),
    ]
    return [
        f"Room, a fifth above the arithmetic, with COCO's mean photograph ({sources.PHOTO / 1e3:.0f} KB) for every "
        "image.",
        "",
        "| where | GiB |",
        "| --- | ---: |",
        *(f"| {where} | {sources.gib(size).removesuffix('Gi')} |" for where, size in rows if size),
    ]


def _range(least: float, most: float, digits: int) -> str:
    """Return both ends of a range, or one number where they are the same."""
    low, high = f"{least:,.{digits}f}", f"{most:,.{digits}f}"
    return low if low == high else f"{low} to {high}"
