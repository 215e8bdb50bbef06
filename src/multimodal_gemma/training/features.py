"""What the language model gets to see of an image: computed once an image where the encoder is frozen.

An epoch asks for the same features again and the encoder would give the same answer. They are kept in the GPU's memory
where they fit, else in the machine's, else in a file; where nothing has room, where the encoder learns or the pictures
change with every epoch, images are encoded when they are asked for.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageEnhance
from torch import Tensor

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.model.forward import Encoder
from multimodal_gemma.progress import Progress
from multimodal_gemma.training.ahead import ahead
from multimodal_gemma.training.device import choose_cache

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.data.processed import ProcessedDataset

_CHUNK = 64  # images encoded at a time
_AREA = (0.8, 1.0)  # share of the picture that a crop keeps
_ASPECT = (0.9, 1 / 0.9)  # width over height of the crop: stretched back by a tenth at most
_STRENGTH = 0.1  # brightness, contrast and saturation change by at most this share
_NOTED_EVERY = 30.0  # seconds between notes of how far a file has come


class Images(Protocol):
    """What is needed of `data.processed.ProcessedDataset`."""

    def image(self, image_index: int, /) -> np.ndarray:
        """Return uint8 (H, W, 3)."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What answers a stream's question for its images, in two halves.

    Attributes:
        fetch: image indices, and the epoch or None for pictures as they are, to a tensor; may run ahead of training,
            in another thread. On the processor unless the features are on the device.
        finish: that tensor, on the device, to what the loss takes: features, or images where the encoder learns.
    """

    fetch: Callable[[Sequence[int], int | None], Tensor]
    finish: Callable[[Tensor], Tensor]


def open_pictures(
    config: Config,
    dataset: ProcessedDataset,
    encoder: Encoder,
    accelerator: Accelerator,
    folder: Path,
    key: dict[str, Any],
) -> Pictures:
    """Say where a training's pictures come from, and encode them where they are kept.

    Args:
        config: sections `model` and `training`.
        dataset: has the images.
        encoder: on the accelerator's device.
        accelerator: names the device and the processes that encode together.
        folder: where a cache on disk lies.
        key: what features on disk depend on besides the images' indices; another key is another file.

    Raises:
        InputError: the cache that was asked for cannot be.
    """
    training, device = config.training, accelerator.device
    wanted = np.unique(np.concatenate([dataset.split(name).image_indices for name in ("train", "val")]))
    wanted = wanted[wanted >= 0]
    width = encoder.tower.config.hidden_size * (2 if accelerator.mixed_precision == "bf16" else 4)
    place = choose_cache(
        training.feature_cache,
        changing=_changing(config),
        images=len(wanted),
        bytes_per_image=dataset.image_tokens * width,
        folder=folder,
        device=device,
        epochs=training.epochs,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # set by launchers of several processes
    )
    if place == "none" or not len(wanted):
        learns = config.model.vision_policy == "full"  # then it is encoded in the loss, and has its gradient there

        def fetch(indices: Sequence[int], epoch: int | None) -> Tensor:
            changes = training.augmentation != "none" and epoch is not None
            shown = Augmented(dataset, training.seed, epoch or 0) if changes else dataset
            return stack_images(shown, indices)

        return Pictures(fetch, (lambda images: images) if learns else torch.no_grad()(encoder))
    kept = Encoding(dataset, encoder, accelerator, wanted)
    if place == "disk":
        return kept.looked_up(kept.into_file(folder, key))
    return kept.looked_up(kept.into(device if place == "device" else torch.device("cpu")))


def stack_images(dataset: Images, indices: Sequence[int]) -> Tensor:
    """Return uint8 images (len(indices), H, W, 3)."""
    return torch.from_numpy(np.stack([dataset.image(index) for index in indices]))


class Encoding:
    """Encodes images once, all processes together, and looks their features up.

    Args:
        dataset: where the images are.
        encoder: frozen; its output's dtype is what is kept.
        accelerator: the processes, each of which encodes its share and gets all.
        wanted: image indices, in order.
    """

    def __init__(self, dataset: Images, encoder: torch.nn.Module, accelerator: Accelerator, wanted: np.ndarray) -> None:
        self._dataset, self._encoder, self._accelerator, self._wanted = dataset, encoder, accelerator, wanted

    def into(self, device: torch.device) -> Tensor:
        """Return the features of all images (images, P, V) on `device`."""
        cache: Tensor | None = None
        for start, part in self._parts(0):
            if cache is None:
                cache = torch.empty((len(self._wanted), *part.shape[1:]), dtype=part.dtype, device=device)
            cache[start : start + len(part)] = part
        assert cache is not None
        return cache

    def into_file(self, folder: Path, key: dict[str, Any]) -> Tensor:
        """Return the features of all images in a file that is mapped into memory.

        The kernel keeps of it what is asked for often and drops the rest when others need the room. All processes of a
        machine share it, and a killed training finds what it had encoded.

        Raises:
            InputError: the folder cannot be written, its disk is full, or a file from elsewhere is damaged.
        """
        name = files.digest_of({**key, "images": self._wanted.tolist()})[:16]
        note, path = folder / f"{name}.json", folder / f"{name}.bin"
        if note.is_file() and path.is_file():
            known = files.read_json(note, "feature cache")
            shape, dtype, done = known["shape"], getattr(torch, known["dtype"]), known["done"]
        else:
            first = self._computed(self._wanted[:1])
            shape, dtype, done = list(first.shape[1:]), first.dtype, 0
        together = torch.tensor([done], device=self._accelerator.device)
        done = int(self._accelerator.gather(together).min())  # machines may have come to different places
        writes = bool(self._accelerator.is_local_main_process)
        if writes:
            mapped = _mapped(path, len(self._wanted) * int(torch.Size(shape).numel()) * dtype.itemsize, fresh=not done)
        self._accelerator.wait_for_everyone()  # the others of this machine open what one has made
        if not writes:
            mapped = _mapped(path, None, fresh=False)
        cache = torch.frombuffer(mapped, dtype=dtype).view(len(self._wanted), *shape)
        noted = time.monotonic()
        for start, part in self._parts(done):
            end = start + len(part)
            if not writes:
                continue
            cache[start:end] = part
            if end == len(self._wanted) or time.monotonic() - noted > _NOTED_EVERY:
                mapped.flush()  # before the note, which promises it
                files.write_json(note, {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "done": end})
                noted = time.monotonic()
        self._accelerator.wait_for_everyone()
        self._check(cache)
        return cache

    def looked_up(self, cache: Tensor) -> Pictures:
        """Return what looks features up."""
        slots = np.full(int(self._wanted[-1]) + 1, -1)
        slots[self._wanted] = np.arange(len(self._wanted))
        if cache.device.type != "cpu":
            # Only numbers go to the device; the features are there.
            return Pictures(lambda indices, _: torch.from_numpy(slots[indices]), lambda at: cache.index_select(0, at))
        return Pictures(
            lambda indices, _: cache.index_select(0, torch.from_numpy(slots[indices])), lambda features: features
        )

    def _parts(self, done: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (start, features (images, P, V)) of piece after piece, from image `done` on, in every process."""
        rank, ranks = self._accelerator.process_index, self._accelerator.num_processes
        total, leads = len(self._wanted), self._accelerator.is_main_process
        if leads and done < total:
            logs.get("train").info(f"encoding {total - done:,} images once")

        def own() -> Iterator[tuple[int, np.ndarray, Tensor]]:
            for start in range(done, total, _CHUNK * ranks):
                block = self._wanted[start : start + _CHUNK * ranks]
                mine = np.resize(block[rank * _CHUNK :] if len(block) > rank * _CHUNK else block, _CHUNK)
                yield start, block, stack_images(self._dataset, (mine if ranks > 1 else block).tolist())

        with Progress("features", total, "image", done=done) as progress:
            for start, block, images in ahead(own(), self._accelerator.device):
                part = self._encoded(images)
                if ranks > 1:
                    part = self._accelerator.gather(part)[: len(block)]
                yield start, part
                if leads:
                    progress.advance(len(block))

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        device = self._accelerator.device
        sent = images.pin_memory() if device.type == "cuda" else images
        features: Tensor = self._encoder(sent.to(device, non_blocking=True))
        return features

    def _computed(self, indices: np.ndarray) -> Tensor:
        return self._encoded(stack_images(self._dataset, indices.tolist()))

    def _check(self, cache: Tensor) -> None:
        """Compare one image's kept features with computed ones: a file that was written elsewhere may be damaged."""
        fresh = self._computed(self._wanted[-1:])[0].float().cpu()
        if (cache[-1].float() - fresh).abs().max() > 0.02 * fresh.abs().max().clamp(min=1e-6):
            raise InputError(
                "train: the kept features differ from what the encoder computes. Delete the folder of the feature "
                "cache (training.cache_folder, or features/ in the output) and run again."
            )


class Augmented:
    """A dataset's images as they look in one epoch: a random crop and mild changes of light and colour.

    Questions about pictures forbid what is usual elsewhere. A mirrored picture makes "left" a lie, a turned hue makes
    "red" one, and a small crop cuts off what is asked about. So crops keep most of the picture, light and colour move
    by a few percent, and nothing is mirrored. What a picture becomes is a function of (seed, epoch, image) alone: a
    resumed run, another rank and another conversation about the same image get the same pixels.

    Args:
        dataset: has the images.
        seed: of the training.
        epoch: counted from 0.
    """

    def __init__(self, dataset: Images, seed: int, epoch: int) -> None:
        self._dataset, self._seed, self._epoch = dataset, seed, epoch

    def image(self, image_index: int) -> np.ndarray:
        """Return uint8 (H, W, 3), of the size that the image has."""
        random = np.random.default_rng([abs(self._seed), int(self._seed < 0), self._epoch, image_index])
        return augment(self._dataset.image(image_index), random)


def augment(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a random crop in the size of the whole, with other brightness, contrast and saturation.

    Args:
        pixels: uint8 (H, W, 3).
        random: where the draws come from.
    """
    height, width = pixels.shape[:2]
    area = random.uniform(*_AREA)
    aspect = math.exp(random.uniform(*np.log(_ASPECT)))
    across, down = (min(1.0, math.sqrt(area * ratio)) for ratio in (aspect, 1 / aspect))  # shares of the sides
    left, top = random.uniform(0, 1 - across) * width, random.uniform(0, 1 - down) * height
    box = (left, top, left + across * width, top + down * height)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=box)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = change(picture).enhance(1 + random.uniform(-_STRENGTH, _STRENGTH))
    return np.asarray(picture)


def _mapped(path: Path, size: int | None, *, fresh: bool) -> mmap.mmap:
    """Map a file of `size` bytes; None: as large as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b" if fresh else "r+b") as stream:
            if size is not None:
                os.posix_fallocate(stream.fileno(), 0, size)  # a full disk shows here, not as SIGBUS
            mapped = mmap.mmap(stream.fileno(), 0)
    except OSError as error:
        raise files.unwritable(path, error) from error
    mapped.madvise(mmap.MADV_RANDOM)  # images are asked for in shuffled order: reading ahead is for nothing
    return mapped


def _changing(config: Config) -> str:
    """Return the setting because of which features cannot be kept; "" where they can."""
    if config.model.vision_policy != "frozen":
        return "model.vision_policy=full: a learning encoder's features change"
    if config.training.augmentation != "none":
        return f"training.augmentation={config.training.augmentation}: every epoch shows other pictures"
    return ""
