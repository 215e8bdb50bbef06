"""Pictures inside a page, so that the page travels alone."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def data_uri(image: Image, *, max_side: int = 224, quality: int = 80) -> str:
    """Return `image` as a JPEG data URI.

    Args:
        image: any mode; converted to RGB.
        max_side: longer side in pixels; a larger image is reduced, a smaller one stays.
        quality: of the JPEG, 1 to 95.
    """
    small = image.convert("RGB")
    small.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
