"""What the language model gets to see of an image: computed once an image where the encoder is frozen.

An epoch asks for the same features again and the encoder would give the same answer; kept in memory, they cost it once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model.forward import Encoder
from multimodal_gemma.progress import Progress

_CHUNK = 64  # images encoded at a time
_SHARE = 0.5  # of the available memory that features may take


class Images(Protocol):
    """What is needed of `data.processed.ProcessedDataset`."""

    def image(self, image_index: int) -> np.ndarray:
        """Return uint8 (H, W, 3)."""


def stack_images(dataset: Images, indices: Sequence[int]) -> Tensor:
    """Return uint8 images (len(indices), H, W, 3)."""
    return torch.from_numpy(np.stack([dataset.image(index) for index in indices]))


def encode_on_demand(dataset: Images, encoder: Encoder, device: torch.device) -> Callable[[Sequence[int]], Tensor]:
    """Return a function that runs the frozen encoder whenever it is asked for the features of some images."""

    @torch.no_grad()
    def features(indices: Sequence[int]) -> Tensor:
        return encoder(stack_images(dataset, indices).to(device))

    return features


def cached_in_memory(
    dataset: Images, encoder: Encoder, device: torch.device, images: Iterable[int], *, show: bool = True
) -> Callable[[Sequence[int]], Tensor]:
    """Encode images once and return a function that looks their features up.

    Args:
        dataset: where the images are.
        encoder: frozen; its output's dtype is what is kept.
        device: where the encoder is and where looked-up features go; the cache itself stays in host memory.
        images: indices of the images that will be asked for.
        show: show progress.
    """
    wanted = sorted(set(images))
    slots = {index: slot for slot, index in enumerate(wanted)}
    compute = encode_on_demand(dataset, encoder, device)
    cache: Tensor | None = None
    for start, part in encoded(compute, wanted, 0, show):
        if cache is None:
            cache = torch.empty((len(wanted), *part.shape[1:]), dtype=part.dtype)
        cache[start : start + len(part)] = part
    if cache is None:
        return compute

    def features(indices: Sequence[int]) -> Tensor:
        return cache.index_select(0, torch.tensor([slots[index] for index in indices])).to(device, non_blocking=True)

    return features


def encoded(
    compute: Callable[[Sequence[int]], Tensor], wanted: Sequence[int], done: int, show: bool
) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, features (images, patches, V) on the processor) of piece after piece.

    Args:
        compute: image indices to features.
        wanted: image indices.
        done: how many of them to leave out, from the first.
        show: show progress.
    """
    if show and done < len(wanted):
        logs.get("train").info(f"encoding {len(wanted) - done:,} images once")
    with Progress("features", len(wanted), "image", done=done) as progress:
        for start in range(done, len(wanted), _CHUNK):
            part = compute(wanted[start : start + _CHUNK]).cpu()
            yield start, part
            if show:
                progress.advance(len(part))


def fits_in_memory(needed: int) -> bool:
    """Tell whether `needed` bytes are at most half of the memory that is available."""
    return needed <= _SHARE * available_memory()


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


def choose_cache(
    setting: str, *, vision_policy: str, images: int, bytes_per_image: int, folder: Path, processes: int = 1
) -> str:
    """Decide where features are kept.

    Args:
        setting: training.feature_cache.
        vision_policy: a learning encoder's features change, so they cannot be kept.
        images: how many there are.
        bytes_per_image: what the features of one take.
        folder: where a cache on disk would lie.
        processes: of this machine, each of which would hold a cache in memory of its own.

    Returns:
        "memory", "disk" or "none"; the processes of one machine share a cache on disk.

    Raises:
        InputError: a cache was asked for although the encoder learns, or the disk has no room for it.
    """
    log = logs.get("train")
    if vision_policy != "frozen":
        if setting in ("memory", "disk"):
            raise InputError(
                f"config: training.feature_cache={setting} does not fit model.vision_policy=full: a learning encoder's "
                "features change. Set training.feature_cache=none."
            )
        return "none"
    needed = images * bytes_per_image
    free = _free_disk(folder)
    if setting == "disk" and needed > free:
        raise InputError(
            f"train: the features of {images:,} images take {needed / 1e9:.1f} GB, and {folder} has "
            f"{free / 1e9:.1f} GB left. Name a larger disk with "
            "training.cache_folder, or set training.feature_cache=none."
        )
    if setting != "auto":
        return setting
    if fits_in_memory(needed * processes):
        return "memory"
    told = (
        f"features of {images:,} images take {needed / 1e9:.1f} GB, more than half of the "
        f"{available_memory() / processes / 1e9:.1f} GB of memory that are available to each process"
    )
    if needed <= _SHARE * free:
        log.info(f"{told}: they are kept on disk, in {folder}")
        return "disk"
    log.info(f"{told}, and more than half of what is free on disk: the encoder runs at every step instead")
    return "none"


def _free_disk(folder: Path) -> int:
    """Return the bytes that are free where `folder` is or will be, with those that it holds already."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if folder.is_dir() else 0
    return shutil.disk_usage(there).free + held
