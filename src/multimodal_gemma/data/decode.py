"""From the bytes of an image file, hostile or merely odd, to RGB pixels or a reason why not.

Only listed formats are tried, and the header is judged before a pixel is decoded: Pillow alone would try every
format it knows and only warn of a bomb. What a person would call an ordinary photograph comes out as transformers'
own `load_image` makes it (turned upright by its EXIF tag, then `convert("RGB")`), so that training sees what
inference will see: CMYK becomes RGB, and an alpha channel is dropped, which shows the colours that are stored below
it. Sixteen-bit greys, which `convert` would clip to white, are scaled to eight bits.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # what photographs come in; nothing exotic
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # of the same formats
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = {b"iCCP", b"tEXt", b"zTXt", b"iTXt"}  # chunks that no pixel depends on
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}
MAX_SIDE = 30_000  # pixels; no camera makes a wider picture

# What Pillow's readers raise on bytes that break their format's rules.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)


class UnusableImage(Exception):
    """Why an image cannot be used; it is recorded, never replaced.

    Attributes:
        kind: the reason as a word to count by, e.g. "corrupt".
        reason: the reason in words for a person, with its figures.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an image may cost.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height, as its header states and after any resizing.
    """

    max_bytes: int
    max_pixels: int


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An image as a person would see it.

    Attributes:
        image: mode RGB, upright.
        format: Pillow's name of the file's format, e.g. "JPEG".
        mode: Pillow's mode of the stored pixels, e.g. "CMYK".
    """

    image: Image.Image
    format: str
    mode: str


def decode(content: bytes, limits: Limits) -> Decoded:
    """Decode an image file; of an animation, its first frame.

    Args:
        content: the file.
        limits: what it may cost.

    Raises:
        UnusableImage: the file is empty, no image of a listed format, too large, or broken.
    """
    if not content:
        raise UnusableImage("empty", "the file is empty")
    if len(content) > limits.max_bytes:
        raise UnusableImage("too-large", f"the file has {len(content):,} bytes, more than {limits.max_bytes:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own cap is checked below
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata is no reason to refuse pixels
        try:
            return _decode(content, limits)
        except Image.DecompressionBombError as error:
            raise UnusableImage("too-large", f"it is too large to decode ({error})") from None
        except Image.UnidentifiedImageError:
            if brand := _brand(content):
                raise UnusableImage("other-format", f"it is {brand}, which is not read here: save it as JPEG") from None
            reason = f"it is none of {', '.join(FORMATS)}, or its header is broken"
            raise UnusableImage("not-an-image", reason) from None
        except _BROKEN as error:
            raise UnusableImage("corrupt", f"it is corrupt ({_first_line(error)})") from None


def not_an_image(content: bytes) -> str:
    """Return why bytes cannot be an image of a listed format, judged by their beginning alone; "" if they can.

    A server that answers with a page of HTML where a photograph was asked for is caught here, without decoding.
    """
    if not content:
        return "the file is empty"
    if content.startswith(_BEGINNINGS):
        return ""
    if brand := _brand(content):
        return f"{brand}, which is not read here: save it as JPEG"
    start = content[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the image: fetch the files it stands for (git lfs pull)"
    found = "a web page" if start.startswith((b"<!doctype", b"<html", b"<?xml")) else "something else"
    return f"{found}, not an image"


def _brand(content: bytes) -> str:
    """Return what a file of the ISO base media format says it is, as telephones write them; "" for another."""
    return _BRANDS.get(content[8:12], "") if content[4:8] == b"ftyp" else ""


def _without_texts(content: bytes) -> bytes:
    """Return a PNG without its texts and colour profile: Pillow refuses pixels for the size of what stands beside."""
    if not content.startswith(_PNG):
        return content
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")  # length, kind, data, checksum
        if content[start + 4 : start + 8] not in _PNG_TEXTS:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _decode(content: bytes, limits: Limits) -> Decoded:
    content = _without_texts(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        _check_size(opened.width, opened.height, limits)
        kind, mode = str(opened.format), opened.mode
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)  # a copy of each upright photograph would cost a tenth of it
        return Decoded(_to_rgb(opened), kind, mode)


def _check_size(width: int, height: int, limits: Limits) -> None:
    if max(width, height) > MAX_SIDE:
        raise UnusableImage("too-large", f"it is {width:,} x {height:,} pixels, wider or higher than {MAX_SIDE:,}")
    if width * height > limits.max_pixels:
        raise UnusableImage("too-large", f"it is {width:,} x {height:,} pixels, more than {limits.max_pixels:,} in all")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)  # 0..65535
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnusableImage("unknown-range", f"its pixels are 32-bit numbers (mode {image.mode}) without a known range")
    return image if image.mode == "RGB" else image.convert("RGB")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
