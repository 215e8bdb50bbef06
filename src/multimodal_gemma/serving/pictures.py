"""A picture that somebody hands over, read within limits or refused in one sentence.

What training drops and records, a person at a prompt must be told: that the file is empty, a drawing, a bomb, or that
only the first frame of an animation is looked at.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma.errors import InputError, Unusable

if TYPE_CHECKING:
    from PIL.Image import Image

    from multimodal_gemma.config.schema import Config, DataConfig

_PATIENCE = 20.0  # seconds that somebody waits for a picture from a server that does not answer


@dataclasses.dataclass(frozen=True)
class Picture:
    """A readable picture."""

    image: Image  # mode RGB, upright
    note: str = ""  # what a person should know about how it was read; "" if nothing


def read(location: str, config: Config) -> Picture:
    """Read a picture from a file or from an `https://` address.

    Args:
        location: path of a file, or an address on one of data.allowed_hosts.
        config: section data states the largest file and the most pixels.

    Raises:
        InputError: there is no such file, the address may not be asked, or it is no usable picture.
    """
    if "://" in location:
        return from_bytes(_download(location, config.data), location, config.data)
    return from_file(Path(location).expanduser(), config.data)


def from_file(path: Path, data: DataConfig, *, name: str = "") -> Picture:
    """Read a picture from a file; one that is too large is refused before it is read.

    Args:
        path: the file.
        data: states the largest file and the most pixels.
        name: what to call it in a message; its path.

    Raises:
        InputError: there is no such file, it may not be read, or it is no usable picture.
    """
    try:
        if not path.is_file():
            kind = "is a folder; `mmgemma describe` takes one" if path.is_dir() else "does not exist. Check the path"
            raise InputError(f"picture: {name or path} {kind}.")
        size = path.stat().st_size
        if size > data.max_image_bytes:
            raise _refused(name or str(path), f"the file has {size:,} bytes, more than {data.max_image_bytes:,}")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"picture: {name or path} cannot be read ({error.strerror or error}). Check the path."
        ) from None
    return from_bytes(content, name or str(path), data)


def from_bytes(content: bytes, name: str, data: DataConfig) -> Picture:
    """Read a picture from the bytes of a file that messages call `name`.

    Raises:
        InputError: it is no usable picture; the sentence says why.
    """
    from PIL import Image as opener

    from multimodal_gemma.data.pictures import FORMATS, Limits, decode

    if _is_svg(content):
        raise _refused(name, f"it is an SVG drawing, which has no pixels; save it as one of {', '.join(FORMATS)}")
    try:
        decoded = decode(content, Limits(data.max_image_bytes, data.max_image_pixels))
    except Unusable as error:
        raise _refused(name, error.reason) from None
    with opener.open(io.BytesIO(content), formats=FORMATS) as opened:
        frames = int(getattr(opened, "n_frames", 1))
    note = f"{name} is an animation of {frames} frames; only the first one is looked at." if frames > 1 else ""
    return Picture(decoded.image, note)


def _is_svg(content: bytes) -> bool:
    start = content[:1000].lstrip().lower()
    return start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in start)


def _refused(name: str, reason: str) -> InputError:
    return InputError(f"picture: {name} cannot be used: {reason}.")


def _download(location: str, data: DataConfig) -> bytes:
    from multimodal_gemma.data import sources

    if not location.startswith("https://"):
        raise InputError(
            f"picture: {location} is not read. Give a file, or an https:// address on one of data.allowed_hosts."
        )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "picture"
        try:
            sources.open(location, data, patience=_PATIENCE).fetch(None, copy, data.max_image_bytes)
        except sources.Unavailable as error:
            raise InputError(f"picture: {location} cannot be had ({error}). Check the address.") from None
        return copy.read_bytes()
