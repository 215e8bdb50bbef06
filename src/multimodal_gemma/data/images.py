"""Decode and resize images, each once, in as many processes as there are cores."""

from __future__ import annotations

import dataclasses

from multimodal_gemma.data.decode import Limits, UnusableImage, decode
from multimodal_gemma.data.lookalikes import thumbnail
from multimodal_gemma.data.resize import Resizer


@dataclasses.dataclass(frozen=True)
class ImageOutcome:
    """What became of one image file: pixels, or the reason why there are none.

    Attributes:
        file_name: as in the shards.
        pixels: uint8 RGB of the resizer's square, row by row; b"" if the image is unusable.
        width: of the upright photograph before resizing, pixels; 0 if unusable.
        height: likewise.
        format: Pillow's name of the file's format.
        mode: Pillow's mode of the stored pixels.
        thumbnail: of the pixels, see `lookalikes`; b"" if unusable.
        kind: the reason as a word to count by; "" if the image is usable.
        reason: the reason in words.
    """

    file_name: str
    pixels: bytes = b""
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    thumbnail: bytes = b""
    kind: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ImageChunk:
    """Decodes and resizes a list of (file_name, bytes); what `ordered_map` sends to a worker.

    Attributes:
        resizer: geometry of the encoder's image processor.
        limits: what an image may cost.
    """

    resizer: Resizer
    limits: Limits

    def __call__(self, items: list[tuple[str, bytes]]) -> list[ImageOutcome]:
        """Return an outcome for each image, in their order."""
        return [self._outcome(name, content) for name, content in items]

    def _outcome(self, name: str, content: bytes) -> ImageOutcome:
        try:
            decoded = decode(content, self.limits)
            pixels = self.resizer(decoded.image, self.limits)
        except UnusableImage as unusable:
            return ImageOutcome(name, kind=unusable.kind, reason=unusable.reason)
        width, height = decoded.image.size
        small = thumbnail(pixels)
        return ImageOutcome(name, pixels.tobytes(), width, height, decoded.format, decoded.mode, small)
