"""The same photograph under another name: found by what it looks like.

File names tell one COCO picture from another, but a picture that came by way of another dataset carries another name.
So every image of the dataset is compared with every image of the benchmarks, as thumbnails of 16 x 16 pixels. Saving a
photograph again or resizing it moves its thumbnail by two levels of 255 (by eight where the encoder sees 56 pixels);
other photographs are dozens away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 16  # pixels of a thumbnail
_DISTANCE = 10.0  # levels (root mean square over pixels and channels) up to which two thumbnails show one picture
_CONTRAST = 0.2  # and at most this share of the picture's own contrast: two clear skies are no copies of each other


def thumbnail(pixels: np.ndarray) -> bytes:
    """Return the thumbnail of an image.

    Args:
        pixels: uint8 (height, width, 3).

    Returns:
        SIDE * SIDE * 3 bytes, row by row.
    """
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


class Lookalikes:
    """The benchmarks' images, to be searched for a picture.

    Args:
        thumbnails: thumbnail by file name.
    """

    def __init__(self, thumbnails: dict[str, bytes]) -> None:
        self._names = list(thumbnails)
        self._vectors = _vectors(list(thumbnails.values()))  # (benchmark images, SIDE * SIDE * 3)
        self._squares = (self._vectors**2).sum(axis=1)  # (benchmark images,)

    def match(self, thumbnails: Sequence[bytes]) -> list[str]:
        """Return for each thumbnail the benchmark image that shows the same picture, "" for none."""
        if not self._names or not thumbnails:
            return [""] * len(thumbnails)
        asked = _vectors(thumbnails)  # (images, SIDE * SIDE * 3)
        squares = (asked**2).sum(axis=1)
        distances = squares[:, None] + self._squares[None, :] - 2 * (asked @ self._vectors.T)  # (images, benchmark's)
        nearest = distances.argmin(axis=1)
        size = asked.shape[1]
        # From the difference itself: the product above is rounded, and a copy is a distance near zero.
        apart = np.sqrt(((asked - self._vectors[nearest]) ** 2).sum(axis=1) / size)
        contrast = asked.reshape(len(asked), -1, 3).std(axis=1).mean(axis=1)
        same = apart < np.minimum(_DISTANCE, _CONTRAST * contrast)
        return [self._names[index] if hit else "" for index, hit in zip(nearest, same, strict=True)]


def _vectors(thumbnails: Sequence[bytes]) -> np.ndarray:
    values = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, SIDE * SIDE * 3)
    return values.astype(np.float32) - 128
