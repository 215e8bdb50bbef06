"""What is stored must be what transformers' own image processors compute, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from multimodal_gemma.data.decode import Limits, UnusableImage, decode
from multimodal_gemma.data.resize import resizer_of
from multimodal_gemma.errors import InputError

LIMITS = Limits(max_bytes=20_000_000, max_pixels=50_000_000)
PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "clip-336": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "clip-cropped": CLIPImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 225, "width": 225}),
    "siglip": SiglipImageProcessorPil(),
    "siglip-bilinear": SiglipImageProcessorPil(size={"height": 96, "width": 96}, resample=2),
}
SIZES = [(640, 480), (480, 640), (333, 500), (224, 224), (225, 224), (100, 37), (1, 1), (3, 1), (1, 3), (2000, 30)]


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
    with pytest.raises(UnusableImage) as caught:
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
