"""Where training runs, in which precision, how much of it at once and where features are kept; or why it cannot."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model.attention import Runs
from multimodal_gemma.model.forward import SupervisedLoss
from multimodal_gemma.model.stream import Stream

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import TrainingConfig
    from multimodal_gemma.data.processed import ProcessedDataset

# Bytes of a stream's widest activation on a processor, and its positions: the C library gives back what is larger, a
# block or all that a pass has freed, and having it again took up to a tenth of a step at the widths of Gemma-3-270M and
# 20,000 page faults a step at the sample's.
ON_CPU, POSITIONS_ON_CPU = 1 << 24, 4096
LARGEST = 262_144  # beyond it nothing gets faster on any GPU of today
LIMIT = "MMGEMMA_SCRATCH_LIMIT"  # environment variable: bytes that this process's scratch files may take, e.g. 40Gi
_SHARE = 0.5  # of the memory that is free which features may take
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_ROOM = 0.85  # share of the memory that may be taken: a step's lengths vary, and allocators fragment


def choose_device(asked: str, key: str) -> str:
    """Return "cuda" or "cpu".

    Args:
        asked: "auto", "cpu" or "cuda".
        key: the configuration key, for the message.

    Raises:
        InputError: a GPU was asked for where there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError(f"config: {key}=cuda, but this machine has no usable NVIDIA GPU. Set {key}=auto or cpu.")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(asked: str, device: str, key: str) -> str:
    """Return "bf16" or "fp32".

    Args:
        asked: "auto", "fp32" or "bf16".
        device: "cuda" or "cpu".
        key: the configuration key, for the message.

    Raises:
        InputError: bf16 was asked for where no GPU computes in it.
    """
    able = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and not able:
        raise InputError(
            f"config: {key}=bf16 needs a GPU that computes in it; this run is on {device}. Set {key}=auto or fp32."
        )
    return asked if asked != "auto" else "bf16" if able else "fp32"


def leads() -> bool:
    """Tell whether this process is the first of those that train together, as their launcher has numbered them."""
    return os.environ.get("RANK", "0") == "0"


def make_accelerator(training: TrainingConfig, trackers: Sequence[str | GeneralTracker], folder: Path) -> Accelerator:
    """Return accelerate's view of this process: its device, its rank and its precision.

    Args:
        training: names device and precision.
        trackers: what accelerate logs with.
        folder: for trackers that write files.

    Raises:
        InputError: the device or precision that was asked for is not there.
    """
    device = choose_device(training.device, "training.device")
    precision = choose_precision(training.precision, device, "training.precision")
    # The state is shared by a whole process: a second training in it (a notebook) may differ in precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=list(trackers) or None,
        # A step of text alone leaves the projector without a gradient; the buffers are constants.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
        project_config=ProjectConfiguration(logging_dir=str(folder)),
    )


def choose_budget(
    training: TrainingConfig, accelerator: Accelerator, loss: SupervisedLoss, kernel: str, dataset: ProcessedDataset
) -> int:
    """Return the positions that a stream may have: on a GPU those of a whole step, or as many as its memory holds.

    Args:
        training: batch_tokens and batch_size.
        accelerator: the process's device.
        loss: the model, placed on it.
        kernel: of the attention.
        dataset: says how long its samples are.

    Raises:
        InputError: training.batch_tokens is neither a number nor auto, or less than the longest sample has, or that
            one alone is too much for the GPU.
    """
    asked = training.batch_tokens
    splits = [dataset.split(name) for name in ("train", "val")]
    longest = max(int(split.lengths.max(initial=1)) for split in splits)
    if isinstance(asked, int):
        if asked < longest:
            name = next(split.ids[int(split.lengths.argmax())] for split in splits if longest in split.lengths)
            raise InputError(
                f"config: training.batch_tokens={asked} is below the longest conversation: {name} takes {longest:,} "
                f"positions, image tokens counted. Set training.batch_tokens={longest} or more, or prepare with a "
                "smaller data.max_text_tokens."
            )
        return asked
    if asked != "auto":
        raise InputError(f"config: training.batch_tokens={asked!r} is not allowed. Give a number of positions or auto.")
    if accelerator.device.type != "cuda":
        room = ON_CPU // (4 * loss.llava.config.text_config.intermediate_size)
        return max(min(room, POSITIONS_ON_CPU), longest)
    start, passes = time.monotonic(), 0
    count = max(1, min(training.batch_size, LARGEST // longest))
    while (passes := passes + 1) and not _fits(loss, count, longest, kernel, accelerator):
        if count == 1:
            raise InputError(
                f"train: not even one conversation of {longest:,} positions fits into the GPU's memory. Set "
                "training.gradient_checkpointing=true, or prepare with a smaller data.max_text_tokens."
            )
        count //= 2
    torch.cuda.reset_peak_memory_stats(accelerator.device)  # from now on it is training's own
    own = torch.tensor([count * longest], device=accelerator.device)
    found = int(accelerator.gather(own).min())
    logs.get("train").info(
        f"training.batch_tokens: {found:,} positions at once fit into the GPU's memory ({passes} tried in "
        f"{time.monotonic() - start:.0f} s, compilation included)"
    )
    return found


def _fits(loss: SupervisedLoss, count: int, longest: int, kernel: str, accelerator: Accelerator) -> bool:
    """Run one forward and backward pass of the densest kind, all text supervised, and look at its peak."""
    device, total = accelerator.device, count * longest
    bounds = np.arange(0, total + 1, longest)
    own = np.stack([bounds[:-1], bounds[1:]], axis=1)
    places = torch.arange(total)
    learnt = places[places % longest != 0]
    stream = Stream(
        input_ids=torch.ones_like(places),
        position_ids=places % longest,
        image_positions=places[:0],
        rows=learnt - 1,
        targets=torch.ones_like(learnt),
        runs=Runs(own, own[:, :1].repeat(2, axis=1)),
        image_indices=[],
        sample_indices=list(range(count)),
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    free, _ = torch.cuda.mem_get_info(device)
    room = _ROOM * (free + torch.cuda.memory_reserved(device))
    try:
        with accelerator.autocast():
            loss.train()
            loss(stream.to(device, kernel), None).backward()
        return float(torch.cuda.max_memory_allocated(device)) <= room
    except torch.OutOfMemoryError:
        return False
    finally:
        loss.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def choose_cache(
    setting: str,
    *,
    changing: str = "",
    images: int,
    bytes_per_image: int,
    folder: Path,
    device: torch.device,
    epochs: int,
    processes: int = 1,
) -> str:
    """Decide where features are kept.

    Args:
        setting: training.feature_cache.
        changing: why features cannot be kept; "" where they can.
        images: how many there are.
        bytes_per_image: what the features of one take.
        folder: where a cache on disk would lie.
        device: where training computes.
        epochs: of the training; a disk is not filled for a single one.
        processes: of this machine, each of which would hold a cache in memory of its own.

    Returns:
        "device", "memory", "disk" or "none"; the processes of one machine share a cache on disk.

    Raises:
        InputError: a cache was asked for although features change, or what is to hold it has no room.
    """
    if changing:
        if setting in ("device", "memory", "disk"):
            raise InputError(
                f"config: training.feature_cache={setting} does not fit {changing}. Set training.feature_cache=none."
            )
        return "none"
    needed, on_gpu = images * bytes_per_image, device.type == "cuda"
    told = f"the features of {images:,} images take {needed / 1e9:.1f} GB"
    if setting == "device" and not on_gpu:
        raise InputError(
            f"config: training.feature_cache=device needs a GPU; this run is on {device}. Set it to auto or memory."
        )
    room = _free_disk(folder)
    if setting == "disk" and needed > room:
        raise InputError(
            f"train: {told}, and {folder} has room for {room / 1e9:.1f} GB (what is free, and what {LIMIT} allows). "
            "Name a larger disk with training.cache_folder, or set training.feature_cache=none."
        )
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else 0
    if setting == "device" and needed > free:
        raise InputError(
            f"train: {told}, and the GPU has {free / 1e9:.1f} GB left. Set training.feature_cache=memory or auto."
        )
    if setting != "auto":
        return setting
    log = logs.get("train")
    if needed <= _SHARE * free:
        return "device"
    if needed * processes <= _SHARE * available_memory():
        return "memory"
    if epochs > 1 and needed <= _SHARE * room:
        log.info(f"{told}, more than half of the free memory: they are kept on disk, in {folder}")
        return "disk"
    why = "one epoch is not worth a disk" if epochs == 1 else f"more than half of what {folder} has room for"
    log.info(f"{told}, more than half of the free memory, and {why}: the encoder runs at every step instead")
    return "none"


def available_memory() -> int:
    """Return bytes that this process may still take: the machine's, or less where a container's limit is lower."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free  # no control group of version 2 around this process
    if limit == "max":
        return free
    reclaimable = int(statistics.get("inactive_file", 0))
    return max(min(free, int(limit) - used + reclaimable), 0)


def _free_disk(folder: Path) -> int:
    """Return the bytes that `folder` may take in all: what is free, and no more than a stated limit.

    A container's limit of scratch space cannot be seen from inside: the pod's manifest states it as `LIMIT`.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if folder.is_dir() else 0
    free = shutil.disk_usage(there).free + held
    stated = os.environ.get(LIMIT, "").strip()
    if not stated:
        return free
    number = re.fullmatch(r"(\d+)([kMGT]?|[KMGT]i)", stated)
    if number is None:
        raise InputError(f"{LIMIT}={stated} is no size. Write bytes, or e.g. 40Gi.")
    return min(free, int(number[1]) * _UNITS[number[2]])
