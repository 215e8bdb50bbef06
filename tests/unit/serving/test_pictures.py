"""What a person hands over that is no picture is named in one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.serving import pictures
from tests.unit.data.serving import Clock


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def enormous_png() -> bytes:
    """200 megapixels stated in 60 bytes."""
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"not a picture at all", "it is none of JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "it is an SVG drawing"),
        (enormous_png(), "200000000 pixels"),
        (b"\xff\xd8\xff" + bytes(50_000_000), "50,000,003 bytes, more than 20,000,000"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:60], "corrupt"),
    ],
    ids=["empty", "text", "svg", "svg with a comment", "200 megapixels", "50 MB", "cut"],
)
def test_no_picture_is_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "upload.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be used") as error:
        pictures.read(str(path), Config())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (20, 10), (200, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 200))
    path = tmp_path / "moving.gif"
    path.write_bytes(encoded(red, "GIF", save_all=True, append_images=[blue, red]))
    seen = pictures.read(str(path), Config())
    assert "3 frames" in seen.note
    assert np.asarray(seen.image)[0, 0].tolist() == [200, 0, 0]
    path.write_bytes(encoded(red, "GIF"))
    assert pictures.read(str(path), Config()).note == ""


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://169.254.169.254/latest/meta-data", "is not read"),
        ("file:///etc/passwd", "is not read"),
        ("https://10.0.0.8/cat.jpg", "not allowed"),
        ("https://localhost/cat.jpg", "not allowed"),
        ("/nowhere/cat.jpg", "does not exist"),
        ("/", "is a folder"),
    ],
)
def test_a_place_that_must_not_or_cannot_be_read(location: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pictures.read(location, Config())


def test_a_listed_host_in_a_private_network_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    config = Config()
    config.data.allowed_hosts = ["localhost"]
    with pytest.raises(InputError, match="cannot be had"):
        pictures.read("https://localhost/cat.jpg", config)
