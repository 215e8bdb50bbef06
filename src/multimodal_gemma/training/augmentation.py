"""Slightly other pictures in every epoch: a random crop and mild changes of light and colour.

Questions about pictures forbid what is usual elsewhere. A mirrored picture makes "left" a lie, a turned hue makes "red"
one, and a small crop cuts off what is asked about. So crops keep most of the picture, light and colour move by a few
percent, and nothing is mirrored.

What a picture becomes is a function of (seed, epoch, image) alone: a resumed run, another rank and another conversation
about the same image get the same pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

if TYPE_CHECKING:
    from multimodal_gemma.training.features import Images


_AREA = (0.8, 1.0)  # share of the picture that a crop keeps
_ASPECT = (0.9, 1 / 0.9)  # width over height of the crop: stretched back by a tenth at most
_STRENGTH = 0.1  # brightness, contrast and saturation change by at most this share


class Augmented:
    """A dataset's images as they look in one epoch.

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
