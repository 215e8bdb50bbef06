"""The store of finished work: what one pod put there the next one gets, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma.data import delivery
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from multimodal_gemma.errors import InputError
from tests.unit.data.serving import Clock, Server, serve

KEY = "0" * 64


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    Clock(monkeypatch)
    with serve() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield running


def test_what_was_put_is_got_on_an_empty_disk(server: Server, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"pixels" * 1000)
    first, second = (delivery.open_store("s3://bucket/run", "slices") for _ in range(2))
    assert first
    assert second
    assert not second.get(KEY, tmp_path / "got")
    first.put(KEY, tmp_path / "made")
    assert second.get(KEY, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"pixels" * 1000
    assert f"/bucket/run/slices/{KEY}" in server.files


def test_other_bytes_than_were_put_are_as_good_as_none(server: Server, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"pixels")
    store = delivery.open_store("s3://bucket/run", "slices")
    assert store
    store.put(KEY, tmp_path / "made")
    server.files[f"/bucket/run/slices/{KEY}"] = b"pixelt"
    assert not store.get(KEY, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_file_whose_writer_was_killed_is_not_taken(server: Server, tmp_path: Path) -> None:
    server.files[f"/bucket/run/slices/{KEY}"] = b"half"
    store = delivery.open_store("s3://bucket/run", "slices")
    assert store
    assert not store.get(KEY, tmp_path / "got")


def test_a_store_that_is_down_is_said_once_and_hinders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Clock(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    (tmp_path / "made").write_bytes(b"x")
    store = delivery.open_store("s3://bucket/run", "slices")
    assert store
    store.put(KEY, tmp_path / "made")
    assert not store.get(KEY, tmp_path / "got")
    assert sum("does not answer" in record.message for record in caplog.records) <= 1


def test_no_location_is_no_store_and_another_scheme_is_a_sentence() -> None:
    assert delivery.open_store("", "slices") is None
    with pytest.raises(InputError, match=r"data.work_uri=/tmp/work is no bucket. Write s3://BUCKET/PREFIX or gs://"):
        delivery.open_store("/tmp/work", "slices")
