"""One picture: decoded from hostile or merely odd bytes, resized for the encoder, and known again by its look.

Decoding. Only listed formats are tried, and the header is judged before a pixel is decoded: Pillow alone would try
every format it knows and only warn of a bomb. An ordinary photograph comes out as transformers' own `load_image` makes
it (turned upright by its EXIF tag, then `convert("RGB")`), so that training sees what inference will see: CMYK becomes
RGB, and an alpha channel is dropped, which shows the colours that are stored below it. Sixteen-bit greys, which
`convert` would clip to white, are scaled to eight bits.

Resizing. The steps are those of transformers' Pillow-backed image processors (`transformers.image_transforms.resize`,
`center_crop`, Llava's `pad_to_square`), without the detours through arrays, which cost more than the resizing, and
without rescaling and normalising, which are cheaper on the training device and would make four bytes of one. Where
torchvision is installed, transformers chooses processors whose bicubic filter differs in the last bit; preprocessing is
the same on every machine: always Pillow's.

Looks. A picture that came by way of another dataset carries another name and other bytes, so pictures are compared as
thumbnails of 16 x 16 pixels. Saving a photograph again or resizing it moves its thumbnail by two levels of 255 (by
eight where the encoder sees 56 pixels); other photographs are dozens away.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from multimodal_gemma.errors import InputError, Unusable

if TYPE_CHECKING:
    from scipy.spatial import KDTree

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # what photographs come in; nothing exotic
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # of the same formats
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = {b"iCCP", b"tEXt", b"zTXt", b"iTXt"}  # chunks that no pixel depends on
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}
MAX_SIDE = 30_000  # pixels; no camera makes a wider picture
THUMBNAIL = 16  # pixels a side
THUMBNAIL_BYTES = THUMBNAIL**2 * 3
_DISTANCE = 10.0  # levels (root mean square over pixels and channels) up to which two thumbnails show one picture
_CONTRAST = 0.2  # and at most this share of the picture's own contrast: two clear skies are no copies of each other
_COARSE = 4  # a side of what is compared first: a mean over pixels is never farther apart than the pixels
_NEIGHBOURS = 16  # coarse neighbours that are compared in full
_AT_ONCE = 64  # pictures compared in full

# What Pillow's readers raise on bytes that break their format's rules.
_FAULTS = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError)
_BROKEN = (*_FAULTS, struct.error, zlib.error)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an image may cost."""

    max_bytes: int  # size of the file
    max_pixels: int  # width times height, as its header states and after any resizing


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An image as a person would see it."""

    image: Image.Image  # mode RGB, upright
    format: str  # Pillow's name of the file's format, e.g. "JPEG"
    mode: str  # Pillow's mode of the stored pixels, e.g. "CMYK"


def decode(content: bytes, limits: Limits) -> Decoded:
    """Decode an image file; of an animation, its first frame.

    Args:
        content: the file.
        limits: what it may cost.

    Raises:
        Unusable: the file is empty, no image of a listed format, too large, or broken.
    """
    if not content:
        raise Unusable("empty", "the file is empty")
    if len(content) > limits.max_bytes:
        raise Unusable("too-large", f"the file has {len(content):,} bytes, more than {limits.max_bytes:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own cap is checked below
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata is no reason to refuse pixels
        try:
            return _decode(content, limits)
        except Image.DecompressionBombError as error:
            raise Unusable("too-large", f"it is too large to decode ({error})") from None
        except Image.UnidentifiedImageError:
            if brand := _brand(content):
                raise Unusable("other-format", f"it is {brand}, which is not read here: save it as JPEG") from None
            reason = f"it is none of {', '.join(FORMATS)}, or its header is broken"
            raise Unusable("not-an-image", reason) from None
        except _BROKEN as error:
            said = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
            raise Unusable("corrupt", f"it is corrupt ({said})") from None


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
        (width, height), kind, mode = opened.size, str(opened.format), opened.mode
        if max(width, height) > MAX_SIDE:
            raise Unusable("too-large", f"it is {width:,} x {height:,} pixels, wider or higher than {MAX_SIDE:,}")
        if width * height > limits.max_pixels:
            reason = f"it is {width:,} x {height:,} pixels, more than {limits.max_pixels:,} in all"
            raise Unusable("too-large", reason)
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)  # a copy of each upright photograph would cost a tenth of it
        return Decoded(_to_rgb(opened), kind, mode)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)  # 0..65535
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Unusable("unknown-range", f"its pixels are 32-bit numbers (mode {image.mode}) without a known range")
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclasses.dataclass(frozen=True)
class Resizer:
    """A stock image processor's geometry."""

    side: int  # of the square that comes out, pixels
    shortest_edge: int | None  # length of the short side before the middle is cut out; None squeezes the picture
    resample: int  # Pillow's filter, e.g. 3 (bicubic).
    border: tuple[int, int, int] | None = None  # colour of the padding that first makes it a square; None: none

    def __call__(self, image: Image.Image, limits: Limits) -> np.ndarray:
        """Return uint8 (side, side, 3).

        Args:
            image: mode RGB.
            limits: the size that resizing may reach; a strip one pixel high grows huge when its short side is enlarged.

        Raises:
            Unusable: the image is so thin that resizing it would break the limits.
        """
        longest = max(image.size)
        made = self.resized(image.width, image.height) if self.border is None else (longest, longest)
        if made[0] * made[1] > limits.max_pixels:
            size, grown = (f"{one[0]:,} x {one[1]:,}" for one in (image.size, made))
            raise Unusable("too-thin", f"it is {size} pixels, so thin that resizing makes it {grown}")
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


def thumbnail(pixels: np.ndarray) -> bytes:
    """Return the thumbnail of an image.

    Args:
        pixels: uint8 (height, width, 3).

    Returns:
        THUMBNAIL_BYTES bytes, row by row.
    """
    return Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()


class Lookalikes:
    """Pictures to be searched for others that show the same.

    Args:
        thumbnails: uint8 (n, THUMBNAIL_BYTES).
    """

    def __init__(self, thumbnails: np.ndarray) -> None:
        from scipy.spatial import KDTree

        self._thumbnails = thumbnails
        self._tree: KDTree | None = KDTree(_coarse(thumbnails)) if len(thumbnails) else None

    def match(self, thumbnails: np.ndarray) -> np.ndarray:
        """Return the nearest own row that shows the same as each of uint8 (m, THUMBNAIL_BYTES), -1 for none."""
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
            contrast = ours.reshape(-1, THUMBNAIL * THUMBNAIL, 3).std(axis=1).mean(axis=1)
            same = apart < np.minimum(_DISTANCE, _CONTRAST * contrast)
            found.append(np.stack([start + rows[same], own[same]], axis=1))
            distances.append(apart[same])
        return np.concatenate(found), np.concatenate(distances)


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Return grey values of 4 x 4 places, float32 (n, 16)."""
    step = THUMBNAIL // _COARSE
    blocks = thumbnails.reshape(len(thumbnails), _COARSE, step, _COARSE, step, 3)
    return blocks.mean(axis=(2, 4, 5), dtype=np.float32).reshape(len(thumbnails), _COARSE**2)
