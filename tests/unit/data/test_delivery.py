"""Folders through an object store: sent once, continued where they broke, whole or refused."""

from __future__ import annotations

import io

import pytest

from multimodal_gemma import manifest
from multimodal_gemma.data import delivery
from multimodal_gemma.errors import InputError
from tests.unit.training.test_store import bucket, names  # noqa: F401


@pytest.fixture
def place(bucket, tmp_path):  # noqa: F811
    """A prefix of the test's own: the store outlives it."""
    return f"s3://spot/{tmp_path.name}"


def make(folder, count=5):
    for number in range(count):
        path = folder / "part" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 1000)
    made = manifest.write(folder, "thing", config={})
    (folder / "page.html").write_text("no part of its identity")
    return made


def test_what_comes_back_is_what_was_sent(bucket, place, tmp_path):  # noqa: F811
    made = make(tmp_path / "here")
    assert delivery.deliver(tmp_path / "here", place) == 8  # five files, page, manifest, contents
    assert delivery.fetch(place, tmp_path / "there")
    assert manifest.verify(tmp_path / "there").digest == made.digest
    assert (tmp_path / "there/page.html").read_text() == "no part of its identity"
    assert not delivery.fetch(f"{place}-of-nobody", tmp_path / "nowhere")


def test_nothing_is_sent_twice(bucket, place, tmp_path):  # noqa: F811
    """Not where all is there, and after a delivery that was cut off only what had not arrived."""
    make(tmp_path / "here")
    delivery.deliver(tmp_path / "here", place)
    assert delivery.deliver(tmp_path / "here", place) == 0
    bucket.remove_object("spot", f"{tmp_path.name}/contents.json")
    bucket.remove_object("spot", f"{tmp_path.name}/part/3.bin")
    assert not delivery.fetch(place, tmp_path / "there")  # incomplete counts as absent
    assert delivery.deliver(tmp_path / "here", place) == 2


def test_a_fetch_takes_only_what_is_not_here(bucket, place, tmp_path):  # noqa: F811
    make(tmp_path / "here")
    delivery.deliver(tmp_path / "here", place)
    delivery.fetch(place, tmp_path / "there")
    kept = (tmp_path / "there/part/1.bin").stat().st_mtime_ns
    (tmp_path / "there/part/2.bin").write_bytes(b"half")
    delivery.fetch(place, tmp_path / "there")
    assert (tmp_path / "there/part/1.bin").stat().st_mtime_ns == kept
    assert manifest.verify(tmp_path / "there")


def test_bytes_that_changed_in_the_store_are_refused(bucket, place, tmp_path):  # noqa: F811
    make(tmp_path / "here")
    delivery.deliver(tmp_path / "here", place)
    bucket.put_object("spot", f"{tmp_path.name}/part/1.bin", io.BytesIO(b"x" * 1000), 1000)
    with pytest.raises(InputError, match=r"part/1.bin of s3://spot/\S+ differs from the sha256"):
        delivery.fetch(place, tmp_path / "there")
    assert not (tmp_path / "there/manifest.json").exists()


def test_what_stays_here_is_not_sent(bucket, place, tmp_path):  # noqa: F811
    make(tmp_path / "here")
    delivery.deliver(tmp_path / "here", place, without=lambda name: name.startswith("part/"))
    sent = {name.partition("/")[2] for name in names(bucket) if name.startswith(f"{tmp_path.name}/")}
    assert sent == {"contents.json", "manifest.json", "page.html"}
