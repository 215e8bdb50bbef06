"""The same photograph under another name, or saved again: found by what it looks like.

File names tell one COCO picture from another, and a sha256 tells whether two files are the same; but a picture that
came by way of another dataset carries another name and other bytes. So pictures are compared as thumbnails of 16 x 16
pixels. Saving a photograph again or resizing it moves its thumbnail by two levels of 255 (by eight where the encoder
sees 56 pixels); other photographs are dozens away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from scipy.spatial import KDTree

SIDE = 16  # pixels of a thumbnail
BYTES = SIDE * SIDE * 3
_DISTANCE = 10.0  # levels (root mean square over pixels and channels) up to which two thumbnails show one picture
_CONTRAST = 0.2  # and at most this share of the picture's own contrast: two clear skies are no copies of each other
_COARSE = 4  # a side of what is compared first: a mean over pixels is never farther apart than the pixels
_NEIGHBOURS = 16  # coarse neighbours that are compared in full
_AT_ONCE = 64  # pictures compared in full


def thumbnail(pixels: np.ndarray) -> bytes:
    """Return the thumbnail of an image.

    Args:
        pixels: uint8 (height, width, 3).

    Returns:
        BYTES bytes, row by row.
    """
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


class Lookalikes:
    """Pictures to be searched for others that show the same.

    Args:
        thumbnails: uint8 (n, BYTES).
    """

    def __init__(self, thumbnails: np.ndarray) -> None:
        from scipy.spatial import KDTree

        self._thumbnails = thumbnails
        self._tree: KDTree | None = KDTree(_coarse(thumbnails)) if len(thumbnails) else None

    def match(self, thumbnails: np.ndarray) -> np.ndarray:
        """Return for each of `thumbnails`, uint8 (m, BYTES), the nearest row that shows the same, -1 for none."""
        nearest = np.full(len(thumbnails), -1)
        pairs, apart = self._pairs(thumbnails, 1)
        for row in np.argsort(-apart, kind="stable"):  # the nearest comes last and stays
            nearest[pairs[row, 0]] = pairs[row, 1]
        return nearest

    def groups(self) -> np.ndarray:
        """Return a number for each picture, int32 (n,): those that show the same have the same."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count = len(self._thumbnails)
        pairs, _ = self._pairs(self._thumbnails, 2)
        joined = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
        labels: np.ndarray = connected_components(joined, directed=False)[1]
        return labels

    def _pairs(self, asked: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (row of `asked`, own row) of those that show the same, int64 (p, 2), and how far they are apart."""
        found, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
        for start in range(0, len(asked) if self._tree is not None else 0, _AT_ONCE):
            part = np.ascontiguousarray(asked[start : start + _AT_ONCE])
            assert self._tree is not None
            near = self._tree.query(
                _coarse(part), k=range(1, _NEIGHBOURS + least), distance_upper_bound=_DISTANCE * _COARSE, workers=-1
            )[1]  # (part, neighbours), the number of pictures where there are no more
            rows, places = np.nonzero(near < len(self._thumbnails))
            own = near[rows, places]
            # From the difference itself: products of large numbers are rounded, and a copy is a distance near zero.
            ours, theirs = part[rows].astype(np.float32), self._thumbnails[own].astype(np.float32)
            apart = np.sqrt(((ours - theirs) ** 2).mean(axis=1))
            contrast = ours.reshape(-1, SIDE * SIDE, 3).std(axis=1).mean(axis=1)
            same = apart < np.minimum(_DISTANCE, _CONTRAST * contrast)
            found.append(np.stack([start + rows[same], own[same]], axis=1))
            distances.append(apart[same])
        return np.concatenate(found), np.concatenate(distances)


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Return grey values of 4 x 4 places, float32 (n, 16)."""
    step = SIDE // _COARSE
    blocks = thumbnails.reshape(len(thumbnails), _COARSE, step, _COARSE, step, 3)
    return blocks.mean(axis=(2, 4, 5), dtype=np.float32).reshape(len(thumbnails), _COARSE**2)
