"""What `make push` noted is what a compiled task runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components import images
from multimodal_gemma.errors import InputError

PINNED = "registry.example.com/team/pipeline@sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("IMAGE_REGISTRY", "IMAGE_TAG", "IMAGE_DIGEST_PIPELINE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "digests.json"
    path.write_text(json.dumps({"pipeline": PINNED}))
    monkeypatch.setenv("IMAGE_DIGESTS", str(path))
    return path


def test_a_pushed_image_is_named_by_its_bytes() -> None:
    assert images.image_of("pipeline") == PINNED


def test_a_tag_that_was_asked_for_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TAG", "1.2.3")
    assert images.image_of("pipeline").endswith("/pipeline:1.2.3")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"trainer": 3}', '{"trainer": "registry/trainer:1.2.3"}'])
def test_a_file_without_the_digest_is_a_sentence(noted: Path, text: str) -> None:
    noted.write_text(text)
    with pytest.raises(InputError, match=r"digests\.json names no trainer image by digest\. Write it with make push"):
        images.image_of("trainer")
