"""Features on disk: as large as the disk, while the memory they take stays flat.

One file is mapped into memory; the kernel keeps of it what is asked for often and drops the rest when others need the
room. All processes of a machine share it, and a killed training finds what it had encoded.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.model.forward import Encoder
from multimodal_gemma.training import features

_NOTED_EVERY = 16  # pieces between notes of how far encoding has come


def cached_on_disk(
    dataset: features.Images,
    encoder: Encoder,
    device: torch.device,
    images: Iterable[int],
    folder: Path,
    key: dict[str, Any],
) -> Callable[[Sequence[int]], Tensor]:
    """Encode images once into a file and return a function that looks their features up.

    Args:
        dataset: where the images are.
        encoder: frozen; its output's dtype is what is kept.
        device: where the encoder is and where looked-up features go.
        images: indices of the images that will be asked for.
        folder: gets the file.
        key: what the features depend on besides the images' indices; another key is another file.

    Raises:
        InputError: the folder cannot be written or its disk is full.
    """
    wanted = sorted(set(images))
    compute = features.encode_on_demand(dataset, encoder, device)
    if not wanted:
        return compute
    name = files.digest_of({**key, "images": wanted})[:16]
    note, path = folder / f"{name}.json", folder / f"{name}.bin"
    if note.is_file() and path.is_file():
        known = files.read_json(note, "feature cache")
        shape, dtype, done = known["shape"], getattr(torch, known["dtype"]), known["done"]
    else:
        first = compute(wanted[:1])
        shape, dtype, done = list(first.shape[1:]), first.dtype, 0
    an_image = int(torch.Size(shape).numel()) * dtype.itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if done else "w+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, len(wanted) * an_image)  # a full disk shows here, not as SIGBUS
            mapped = mmap.mmap(stream.fileno(), 0)
    except OSError as error:
        raise files.unwritable(path, error) from error
    mapped.madvise(mmap.MADV_RANDOM)  # images are asked for in shuffled order: reading ahead is for nothing
    cache = torch.frombuffer(mapped, dtype=dtype).view(len(wanted), *shape)

    def noted(count: int) -> None:
        mapped.flush()  # before the note, which promises it
        files.write_json(note, {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "done": count})

    for number, (start, part) in enumerate(features.encoded(compute, wanted, done, show=True), start=1):
        cache[start : start + len(part)] = part
        if number % _NOTED_EVERY == 0 or start + len(part) == len(wanted):
            noted(start + len(part))
    _check(cache, compute, wanted)
    slots = {index: slot for slot, index in enumerate(wanted)}

    def lookup(indices: Sequence[int]) -> Tensor:
        return cache.index_select(0, torch.tensor([slots[index] for index in indices])).to(device, non_blocking=True)

    return lookup


def _check(cache: Tensor, compute: Callable[[Sequence[int]], Tensor], wanted: Sequence[int]) -> None:
    """Compare one image's kept features with computed ones: a file that was written elsewhere may be damaged.

    Raises:
        InputError: they differ by more than rounding.
    """
    fresh = compute(wanted[-1:])[0].float().cpu()
    if (cache[-1].float() - fresh).abs().max() > 0.02 * fresh.abs().max().clamp(min=1e-6):
        raise InputError(
            "train: the kept features differ from what the encoder computes. Delete the folder of the feature cache "
            "(training.cache_folder, or features/ in the output) and run again."
        )
