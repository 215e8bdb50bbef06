"""What answers a batch's question for its images: kept features, features computed now, or the images themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from multimodal_gemma.model.forward import Encoder
from multimodal_gemma.training import augmentation, feature_file, features

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.data.processed import ProcessedDataset


def as_they_are(
    config: Config,
    dataset: ProcessedDataset,
    encoder: Encoder,
    accelerator: Accelerator,
    folder: Path,
    key: dict[str, Any],
) -> Callable[[Sequence[int]], Tensor]:
    """Return image indices to what the loss takes of them; features are kept where `training.feature_cache` says.

    Args:
        config: sections `model` and `training`.
        dataset: has the images.
        encoder: on the accelerator's device.
        accelerator: names the device, and the process that writes a cache.
        folder: where a cache on disk lies.
        key: what features on disk belong to.

    Raises:
        InputError: the cache that was asked for cannot be.
    """
    training = config.training
    augmentation.require_no_cache(training.augmentation, training.feature_cache)
    wanted = np.unique(np.concatenate([dataset.split(name).image_indices for name in ("train", "val")]))
    wanted = wanted[wanted >= 0]
    width = encoder.tower.config.hidden_size * (2 if accelerator.mixed_precision == "bf16" else 4)
    place = features.choose_cache(
        training.feature_cache if training.augmentation == "none" else "none",
        vision_policy=config.model.vision_policy,
        images=len(wanted),
        bytes_per_image=dataset.image_tokens * width,
        folder=folder,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # set by launchers of several processes
    )
    device = accelerator.device
    if place == "none":
        return _anew(config, dataset, encoder, device)
    if place == "disk":
        writes = bool(accelerator.is_local_main_process)
        lookup = None
        if writes:
            lookup = feature_file.cached_on_disk(dataset, encoder, device, wanted.tolist(), folder, key)
        accelerator.wait_for_everyone()  # the others read what one has written
        return lookup or feature_file.cached_on_disk(dataset, encoder, device, wanted.tolist(), folder, key)
    return features.cached_in_memory(dataset, encoder, device, wanted.tolist(), show=accelerator.is_main_process)


def augmented(
    config: Config, dataset: ProcessedDataset, encoder: Encoder, device: torch.device
) -> Callable[[Sequence[int], int], Tensor] | None:
    """Return (image indices, epoch) to what the loss takes of them as that epoch shows them; None: as they are."""
    if config.training.augmentation == "none":
        return None

    def pictures(indices: Sequence[int], epoch: int) -> Tensor:
        shown = augmentation.Augmented(dataset, config.training.seed, epoch)
        return _anew(config, shown, encoder, device)(indices)

    return pictures


def _anew(
    config: Config, images: features.Images, encoder: Encoder, device: torch.device
) -> Callable[[Sequence[int]], Tensor]:
    if config.model.vision_policy == "full":  # encoded in the loss, so that the encoder learns
        return lambda indices: features.stack_images(images, indices).to(device)
    return features.encode_on_demand(images, encoder, device)
