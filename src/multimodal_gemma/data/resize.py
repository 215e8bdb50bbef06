"""Resize, crop and pad as the encoder's stock image processor does, once and for all epochs.

The steps are those of transformers' Pillow-backed image processors (`transformers.image_transforms.resize`,
`center_crop`, Llava's `pad_to_square`): the short side to a given length by Pillow's filter, then the middle; or
straight to a square; or borders in the encoder's mean colour first. They
are repeated here without the detours through arrays, which cost more than the resizing, and without rescaling and
normalising, which are cheaper on the training device and would make four bytes of one.

Where torchvision is installed, transformers chooses its torchvision-backed processors instead, whose bicubic filter
differs in the last bit. Preprocessing is the same on every machine: always Pillow's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from multimodal_gemma.data.decode import Limits, UnusableImage
from multimodal_gemma.errors import InputError


@dataclasses.dataclass(frozen=True)
class Resizer:
    """A stock image processor's geometry.

    Attributes:
        side: of the square that comes out, pixels.
        shortest_edge: length that the short side is brought to before the middle is cut out; None squeezes the
            whole picture into the square.
        resample: Pillow's filter, e.g. 3 (bicubic).
        border: colour that the picture is padded with to a square before all that; None: it is not.
    """

    side: int
    shortest_edge: int | None
    resample: int
    border: tuple[int, int, int] | None = None

    def __call__(self, image: Image.Image, limits: Limits) -> np.ndarray:
        """Return uint8 (side, side, 3).

        Args:
            image: mode RGB.
            limits: the size that resizing may reach; a strip one pixel high grows huge when its short side is enlarged.

        Raises:
            UnusableImage: the image is so thin that resizing it would break the limits.
        """
        longest = max(image.size)
        made = self.resized(image.width, image.height) if self.border is None else (longest, longest)
        if made[0] * made[1] > limits.max_pixels:
            size, grown = (f"{one[0]:,} x {one[1]:,}" for one in (image.size, made))
            raise UnusableImage("too-thin", f"it is {size} pixels, so thin that resizing makes it {grown}")
        if self.border is not None and image.width != image.height:
            square = Image.new("RGB", (longest, longest), self.border)
            square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
            image = square
        width, height = self.resized(image.width, image.height)
        resized = np.asarray(image.resize((width, height), resample=Image.Resampling(self.resample)))
        top, left = (height - self.side) // 2, (width - self.side) // 2
        return np.ascontiguousarray(resized[top : top + self.side, left : left + self.side])

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing and before the cut."""
        if self.shortest_edge is None:
            return self.side, self.side
        short, long = min(width, height), max(width, height)
        scaled = int(self.shortest_edge * long / short)  # truncated, as get_resize_output_image_size does
        return (self.shortest_edge, scaled) if width <= height else (scaled, self.shortest_edge)


def resizer_of(image_processor: Any) -> Resizer:
    """Read the geometry of a stock image processor (CLIPImageProcessor, SiglipImageProcessor and their kin).

    Raises:
        InputError: the processor does something else than resize and crop to a square.
    """
    name = type(image_processor).__name__
    size, crop = image_processor.size, image_processor.crop_size
    resample = int(image_processor.resample)
    border = None
    if getattr(image_processor, "do_pad", False):
        if not name.startswith("LlavaImageProcessor"):
            raise _unsupported(name, "it pads in a way that is not known here")
        red, green, blue = (int(value * 255) for value in image_processor.image_mean)
        border = red, green, blue
    if not image_processor.do_resize:
        raise _unsupported(name, "it does not resize")
    if size.shortest_edge and not size.longest_edge:
        if not image_processor.do_center_crop or not crop:
            raise _unsupported(name, "without a centre crop its images differ in size")
        if crop.height != crop.width or crop.height > size.shortest_edge:
            raise _unsupported(name, f"its crop {crop.height} x {crop.width} is no square within {size.shortest_edge}")
        return Resizer(int(crop.height), int(size.shortest_edge), resample, border)
    if size.height and size.height == size.width and not image_processor.do_center_crop:
        return Resizer(int(size.height), None, resample, border)
    raise _unsupported(name, f"its size {dict(size)} is no square")


def _unsupported(name: str, reason: str) -> InputError:
    return InputError(
        f"preprocess: the vision encoder's {name} cannot be used: {reason}. "
        "Choose a model.vision whose images become squares of one size, as CLIP's and SigLIP's do."
    )
