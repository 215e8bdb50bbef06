"""A mirror that misbehaves: what a network does to a download, and what must come out of it all the same."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import files, progress
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import sources
from multimodal_gemma.data.sources import Unavailable, archive, retrying, transfer
from multimodal_gemma.data.sources.base import copy
from multimodal_gemma.data.sources.buckets import S3Source
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from multimodal_gemma.errors import InputError
from tests.unit.data.serving import Clock, Server, serve

DATA = DataConfig()
BODY = os.urandom(400_000)
LIMIT = 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Server]:
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        running.files = {"/bucket/set/a.zip": BODY, "/bucket/set/small.jpg": b"small picture"}
        yield running


def both(server: Server) -> list[sources.Source]:
    return [sources.open(f"{server.url}/bucket/set/", DATA), sources.open("s3://bucket/set", DATA)]


@pytest.mark.parametrize("fault", ["cut", "reset", 429, 503])
def test_a_fault_that_passes_is_not_noticed(fault: int | str, server: Server, tmp_path: Path) -> None:
    for source in both(server):
        server.faults["/bucket/set/a.zip"] = [fault]
        assert source.read("a.zip", LIMIT) == BODY
        server.faults["/bucket/set/a.zip"] = [fault, fault]
        source.fetch("a.zip", tmp_path / "a.zip")
        assert (tmp_path / "a.zip").read_bytes() == BODY
        assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_what_has_arrived_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    for source in both(server):
        server.ranges.clear()
        server.faults["/bucket/set/a.zip"] = ["cut", "cut", "cut"]
        source.fetch("a.zip", tmp_path / "a.zip")
        starts = [int(wanted.removeprefix("bytes=").partition("-")[0]) for _, wanted in server.ranges]
        assert starts == sorted(starts)
        assert starts[0] == 199_999
        assert starts[-1] > 340_000
        assert (tmp_path / "a.zip").read_bytes() == BODY


def test_the_next_process_continues_where_the_last_one_died(server: Server, tmp_path: Path) -> None:
    for source in both(server):
        destination = tmp_path / source.uri[:4] / "a.zip"
        server.faults["/bucket/set/a.zip"] = ["cut", *[503] * 100]
        with pytest.raises(Unavailable, match="(503|ServiceUnavailable|error), for 10 minutes"):
            source.fetch("a.zip", destination)
        assert not destination.exists()
        assert transfer.part_of(destination).stat().st_size == 200_000
        server.ranges.clear()
        server.faults.clear()
        source.fetch("a.zip", destination)
        assert len(server.ranges) == 1
        assert destination.read_bytes() == BODY


def test_parts_of_two_versions_are_never_joined(server: Server, tmp_path: Path) -> None:
    for source in both(server):
        server.files["/bucket/set/a.zip"] = BODY
        server.faults["/bucket/set/a.zip"] = ["cut", *[503] * 100]
        with pytest.raises(Unavailable):
            source.fetch("a.zip", tmp_path / "a.zip")
        server.faults.clear()
        server.files["/bucket/set/a.zip"] = newer = os.urandom(300_000)
        source.fetch("a.zip", tmp_path / "a.zip")
        assert (tmp_path / "a.zip").read_bytes() == newer
        (tmp_path / "a.zip").unlink()


def test_every_new_byte_gives_the_file_its_whole_time_again(
    server: Server, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six outages of eight minutes and more, between which the file gets on, are survived; one of ten is not."""
    monkeypatch.setattr(retrying, "FIRST_WAIT", 500.0)
    monkeypatch.setattr(retrying, "LONGEST_WAIT", 500.0)
    monkeypatch.setattr("random.uniform", lambda *_: 1.0)
    for source in both(server):
        clock.waits.clear()
        server.faults["/bucket/set/a.zip"] = ["cut"] * 6
        source.fetch("a.zip", tmp_path / "a.zip")
        assert (tmp_path / "a.zip").read_bytes() == BODY
        assert clock.waits == [500.0] * 6
        server.faults["/bucket/set/a.zip"] = ["cut", 503, 503]
        with pytest.raises(sources.Unreachable, match="for 10 minutes"):
            source.fetch("a.zip", tmp_path / "a.zip")
        assert clock.waits[6:] == [500.0, 100.0]
        server.faults.clear()


def test_bytes_that_had_come_before_are_no_progress(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.faults["/bucket/set/a.zip"] = ["cut"] * 200
    with pytest.raises(sources.Unreachable, match="the connection broke, for 10 minutes"):
        both(server)[0].fetch("a.zip", tmp_path / "a.zip")


def test_a_server_without_ranges_is_asked_for_the_whole(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    source = both(server)[0]
    server.faults["/bucket/set/a.zip"] = ["cut", "cut"]
    source.fetch("a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_server_that_trickles_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PATIENCE", 0.1)
    for source in both(server):
        server.faults["/bucket/set/a.zip"] = ["slow"] * 4
        with monkeypatch.context() as patch, pytest.raises(Unavailable, match="slower than 2,000 bytes a second, for"):
            patch.setattr(retrying, "FIRST_WAIT", 400.0)
            patch.setattr(retrying, "LONGEST_WAIT", 400.0)
            source.read("a.zip", LIMIT)
    for source in both(server):
        server.faults["/bucket/set/a.zip"] = ["slow"]
        assert source.read("a.zip", LIMIT) == BODY


def test_a_file_that_is_too_large_is_not_read_to_its_end(server: Server, tmp_path: Path) -> None:
    for source in both(server):
        with pytest.raises(Unavailable, match="larger than 1,000 bytes"):
            source.fetch("a.zip", tmp_path / "a.zip", 1_000)
        assert list(tmp_path.iterdir()) == []


def test_a_redirect_to_a_private_address_is_refused(server: Server) -> None:
    source = both(server)[0]
    for where in ("http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/x", "https://169.254.169.254/"):
        server.faults["/bucket/set/small.jpg"] = [f"-> {where}"]
        with pytest.raises(Unavailable, match="not https|not allowed"):
            source.read("small.jpg", LIMIT)


def test_a_revision_that_is_a_branch_is_refused_where_a_commit_is_demanded() -> None:
    data = DataConfig(require_commits=True)
    for uri in ("hf://org/name@main", "hf://org/name", "hf://datasets/org/set@v1.0/file.json"):
        with pytest.raises(InputError, match="is no commit, and data.require_commits demands one"):
            sources.open(uri, data)
    sources.open(f"hf://org/name@{'0' * 40}", data)


def test_a_large_file_has_lines_of_progress_in_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a pod's log: what is fetched, sent, read back, unpacked, copied and hashed, and no control characters."""
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(transfer, "_LARGE", 1000)
    monkeypatch.setattr(files, "_LARGE", 1000)
    server.files["/bucket/set/a.zip"] = BODY * 5
    caplog.set_level("INFO")
    store = S3Source("s3://bucket/set")
    store.fetch("a.zip", tmp_path / "copy")
    store.put("b.zip", tmp_path / "copy", "")
    store.digest("a.zip")
    copy(tmp_path / "copy", tmp_path / "again")
    files.sha256_file(tmp_path / "copy")
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "copy", "a.jpg")
    archive.unpack(tmp_path / "images.tar.gz", "file:///images.tar.gz", tmp_path / "images.tar", 10**9)
    lines = [f"{record.name.rpartition('.')[2]}: {record.message}" for record in caplog.records]
    for start in (
        "download: a.zip: 2 of 2 MB, ",
        "upload: b.zip: 2 of 2 MB, ",
        "read back: a.zip: 2 of 2 MB, ",
        "copy: copy: 2 of 2 MB, ",
        "hash: copy: 2 of 2 MB, ",
        "unpack: images.tar.gz: 2 of 2 MB, ",
    ):
        assert any(line.startswith(start) and " MB/s" in line for line in lines), (start, lines[-3:])
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_a_file_of_the_hub_has_such_lines_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server.add_hub_repository("models", "org/name", "main", {"model.safetensors": BODY * 5})
    caplog.set_level("INFO")
    sources.open("hf://org/name@main", DATA).fetch("model.safetensors", tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == BODY * 5
    assert any(record.message.startswith("model.safetensors: 2 of 2 MB, ") for record in caplog.records)
