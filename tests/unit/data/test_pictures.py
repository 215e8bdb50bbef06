"""Pixels are what a person, stock Pillow and transformers' own image processors see, or there is a reason why not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from multimodal_gemma.data.pictures import Limits, decode, not_an_image, resizer_of
from multimodal_gemma.errors import InputError, Unusable

LIMITS = Limits(max_bytes=20_000_000, max_pixels=50_000_000)
PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "clip-336": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "clip-cropped": CLIPImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 225, "width": 225}),
    "siglip": SiglipImageProcessorPil(),
    "siglip-bilinear": SiglipImageProcessorPil(size={"height": 96, "width": 96}, resample=2),
}
SIZES = [(640, 480), (480, 640), (333, 500), (224, 224), (225, 224), (100, 37), (1, 1), (3, 1), (1, 3), (2000, 30)]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture without any symmetry: red grows to the right, green downwards."""
    columns, rows = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([columns, rows, 255 - columns], axis=-1).astype(np.uint8))


def refused(content: bytes, limits: Limits = LIMITS) -> Unusable:
    with pytest.raises(Unusable) as caught:
        decode(content, limits)
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds hardly any data: what a bomb looks like before it is decoded."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_ordinary_file_has_the_pixels_that_pillow_reads(kind: str) -> None:
    content = encoded(picture(), kind)
    decoded = decode(content, LIMITS)
    assert decoded.format == kind
    assert np.array_equal(decoded.image, Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_stands_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(), "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    decoded = decode(content, LIMITS).image
    assert decoded.size == ((30, 40) if orientation >= 5 else (40, 30))
    assert np.array_equal(decoded, upright)


def test_cmyk_becomes_rgb() -> None:
    content = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    decoded = decode(content, LIMITS)
    assert decoded.mode == "CMYK"
    assert np.array_equal(decoded.image, Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.abs(np.asarray(decoded.image, int) - np.asarray(picture(), int)).mean() < 12  # and looks like the picture


def test_a_palette_with_alpha_shows_what_transformers_load_image_shows(tmp_path: Any) -> None:
    from transformers.image_utils import load_image

    path = tmp_path / "palette.png"
    path.write_bytes(encoded(picture().convert("P"), "PNG", transparency=bytes(range(256))))
    assert "transparency" in Image.open(path).info
    assert np.array_equal(decode(path.read_bytes(), LIMITS).image, load_image(str(path)))


def test_an_alpha_channel_is_dropped_as_transformers_load_image_drops_it(tmp_path: Any) -> None:
    from transformers.image_utils import load_image

    image = picture()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = tmp_path / "alpha.png"
    path.write_bytes(encoded(image, "PNG"))
    assert np.array_equal(decode(path.read_bytes(), LIMITS).image, load_image(str(path)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greys_are_scaled_and_not_clipped_to_white(kind: str) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    decoded = np.asarray(decode(encoded(Image.fromarray(values), kind), LIMITS).image)
    assert decoded.shape == (32, 32, 3)
    assert np.array_equal(decoded[..., 0], np.rint(values / 257.0).astype(np.uint8))  # 65535 = 257 x 255


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_greys_become_rgb(mode: str) -> None:
    content = encoded(picture().convert(mode), "PNG")
    assert np.array_equal(decode(content, LIMITS).image, Image.open(io.BytesIO(content)).convert("RGB"))


def test_one_pixel_is_an_image() -> None:
    decoded = decode(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), LIMITS).image
    assert decoded.size == (1, 1)
    assert decoded.getpixel((0, 0)) == (9, 8, 7)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content, LIMITS).image.getpixel((0, 0)) == (255, 0, 0)


def test_an_empty_file_is_refused() -> None:
    assert refused(b"").kind == "empty"


def test_a_text_file_is_refused() -> None:
    assert refused(b"<!doctype html><title>404 Not Found</title>" * 20).kind == "not-an-image"


def test_a_format_that_is_not_listed_is_refused_although_pillow_reads_it() -> None:
    assert refused(encoded(picture(), "PPM")).kind == "not-an-image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused_and_not_filled_with_grey(kind: str) -> None:
    content = encoded(picture((200, 150)), kind)
    assert refused(content[: len(content) // 2]).kind in ("corrupt", "not-an-image")


def test_a_corrupt_file_is_refused() -> None:
    content = bytearray(encoded(picture((200, 150)), "PNG"))
    content[len(content) // 2] ^= 0xFF
    assert refused(bytes(content)).kind == "corrupt"


@pytest.mark.filterwarnings("error")  # Pillow's own warning would be noise: the file is refused
def test_a_bomb_is_refused_by_its_header() -> None:
    error = refused(png_header(10_000, 10_000))
    assert error.kind == "too-large"
    assert "10,000 x 10,000" in error.reason


def test_a_bomb_that_pillow_itself_refuses_is_refused_with_a_reason() -> None:
    assert refused(png_header(20_000, 20_000)).kind == "too-large"


def test_a_strip_of_60000_pixels_is_refused() -> None:
    error = refused(encoded(Image.new("RGB", (60_000, 2)), "JPEG"))
    assert error.kind == "too-large"
    assert "60,000 x 2" in error.reason


def test_a_file_over_the_byte_cap_is_refused_before_it_is_opened() -> None:
    assert refused(b"x" * 101, Limits(max_bytes=100, max_pixels=100)).kind == "too-large"


def test_floating_point_pixels_are_refused_because_their_range_is_unknown() -> None:
    assert refused(encoded(Image.new("F", (4, 4), 0.5), "TIFF")).kind == "unknown-range"


def test_a_png_is_read_however_much_stands_beside_its_pixels(shared: Path) -> None:
    """A colour profile or a text of megabytes, which Pillow refuses together with the pixels."""
    for path in (shared / "cases" / "13-png-large-metadata").glob("*.png"):
        assert decode(path.read_bytes(), LIMITS).image.size == (160, 120)


def test_a_photograph_of_a_telephone_is_named_with_what_to_do(shared: Path) -> None:
    content = (shared / "cases" / "15-heic" / "photo.jpg").read_bytes()
    error = refused(content)
    assert (error.kind, error.reason) == ("other-format", "it is HEIC, which is not read here: save it as JPEG")
    assert "HEIC" in not_an_image(content)


def test_a_pointer_of_git_lfs_is_called_one() -> None:
    """What a clone holds in place of every photograph where Git LFS is not installed."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 101000\n"
    assert "Git LFS" in not_an_image(pointer)


def noise(size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(size[0] * 7919 + size[1])
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def stock_pixels(processor: Any, image: Image.Image) -> np.ndarray:
    unscaled = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.moveaxis(unscaled, 0, -1)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_the_stock_processors(name: str, size: tuple[int, int]) -> None:
    processor, image = PROCESSORS[name], noise(size)
    ours, stock = resizer_of(processor)(image, LIMITS), stock_pixels(processor, image)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, stock)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_photographs_normalised_afterwards_equal_the_stock_pixel_values(name: str, shared: Path) -> None:
    processor = PROCESSORS[name]
    resize = resizer_of(processor)
    for path in sorted((shared / "coco-sample" / "train2017").glob("*.jpg"))[:12]:
        stock = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
        pixels = resize(decode(path.read_bytes(), LIMITS).image, LIMITS).astype(np.float32)
        normalised = (pixels / 255 - np.float32(processor.image_mean)) / np.float32(processor.image_std)
        assert np.abs(np.moveaxis(normalised, -1, 0) - stock).max() < 1e-6


def test_a_strip_that_resizing_would_blow_up_is_refused() -> None:
    with pytest.raises(Unusable) as caught:
        resizer_of(PROCESSORS["clip"])(Image.new("RGB", (20_000, 10)), LIMITS)
    assert caught.value.kind == "too-thin"


@pytest.mark.parametrize(
    "settings",
    [
        {"do_center_crop": False},
        {"do_resize": False},
        {"crop_size": {"height": 224, "width": 200}},
        {"crop_size": {"height": 300, "width": 300}},
        {"size": {"shortest_edge": 224, "longest_edge": 500}},
        {"size": {"height": 200, "width": 224}, "do_center_crop": False},
    ],
)
def test_a_processor_whose_images_are_no_squares_of_one_size_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^preprocess: the vision encoder's CLIPImageProcessorPil cannot be used"):
        resizer_of(CLIPImageProcessorPil(**settings))
