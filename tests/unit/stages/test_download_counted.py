"""Sources that grow, shrink, change or fail: the servers count what they are asked for."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma import files
from multimodal_gemma.config import Config
from multimodal_gemma.data import collect
from multimodal_gemma.data.sources.local import LocalSource
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import download
from tests.unit.data import making
from tests.unit.data.serving import Clock, Server, serve

NAMES = [f"{number:03d}.jpg" for number in range(24)]
PICTURES = making.pictures(NAMES)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    from huggingface_hub import constants

    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    Clock(monkeypatch)
    with serve() as running:
        for name in ("AWS_ENDPOINT_URL", "HF_ENDPOINT"):
            monkeypatch.setenv(name, running.url)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield running


class Images:
    """Images at one kind of place; tells which of them were asked for."""

    def __init__(self, kind: str, server: Server, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._kind, self._server, self._folder, self._patch = kind, server, folder, patch
        self._base = {"web": "/images/", "s3": "/bucket/images/"}.get(kind, "/datasets/org/images/resolve/")
        self._read: Counter[str] = Counter()
        self.uri = {
            "folder": str(folder),
            "web": f"{server.url}/images",
            "s3": "s3://bucket/images",
            "hub": "hf://datasets/org/images@main",
        }[kind]
        if kind == "folder":
            folder.mkdir()
            real = LocalSource.read

            def read(source: LocalSource, name: str, max_bytes: int) -> bytes:
                self._read[name] += 1
                return real(source, name, max_bytes)

            patch.setattr(LocalSource, "read", read)

    def publish(self, pictures: dict[str, bytes]) -> None:
        """Put these there, and no others."""
        if self._kind == "folder":
            for name, content in pictures.items():
                path = self._folder / name
                if not path.is_file() or path.read_bytes() != content:
                    path.write_bytes(content)
        elif self._kind == "hub":
            commit = hashlib.sha1(b"".join(pictures.values())).hexdigest()
            self._server.add_hub_repository("datasets", "org/images", "main", pictures, commit=commit)
        else:
            self._server.files |= {f"{self._base}{name}": content for name, content in pictures.items()}

    def asked(self) -> Counter[str]:
        """Return how often each image was asked for since the last time."""
        found = Counter(self._read)
        for (method, path), count in self._server.asked.items():
            if path.startswith(self._base) and method == "GET" and path.endswith(".jpg"):
                found[path.rpartition("/")[2]] += count
        self._server.asked.clear()
        self._read.clear()
        return found


def talk(server: Server, names: list[str], *said: tuple[str, str]) -> None:
    server.files["/talk.json"] = json.dumps([making.conversation(name, *said) for name in names]).encode()


def settings(server: Server, images: str, *overrides: str) -> Config:
    """Groups of four images at most."""
    places = [f"data.conversations={server.url}/talk.json", f"data.images={images}"]
    return configuration.compose("sample", [*places, "data.shard_bytes=1600000", *overrides])


def zipped(names: list[str], folder: str = "train2017/") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(f"{folder}{name}"), PICTURES[name])
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["folder", "web", "s3", "hub"])
def test_of_a_place_that_grew_exactly_what_is_new_is_asked_for(
    kind: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(kind, server, tmp_path / "images", monkeypatch)
    config, output = settings(server, images.uri), tmp_path / "raw"

    def made(names: list[str], pictures: dict[str, bytes]) -> tuple[str, Counter[str]]:
        images.publish(pictures)
        talk(server, names)
        return download.run(config, "dataset", output).digest, images.asked()

    some = {name: PICTURES[name] for name in NAMES[:20]}
    _, asked = made(NAMES[:20], some)
    assert asked == Counter(NAMES[:20])
    _, asked = made(NAMES[:21], {name: PICTURES[name] for name in NAMES[:21]})
    assert asked == Counter([NAMES[20]])
    digest, asked = made(NAMES, PICTURES)
    assert asked == Counter(NAMES[21:])
    assert digest == download.run(config, "dataset", tmp_path / "fresh").digest
    images.asked()
    _, asked = made(NAMES[1:], PICTURES)  # one conversation is removed
    assert not asked
    talk(server, NAMES[1:], ("Who?", "Nobody."))  # another text
    download.run(config, "dataset", output)
    assert not images.asked()
    if kind != "web":  # a picture is changed; a web server's images are trusted to stay
        _, asked = made(NAMES[1:], PICTURES | {NAMES[5]: making.image_bytes((9, 99, 199))})
        assert asked == Counter([NAMES[5]])


def test_an_archive_is_fetched_once_and_again_when_it_has_grown(server: Server, tmp_path: Path) -> None:
    config, output = settings(server, f"{server.url}/images.zip"), tmp_path / "raw"

    def fetched(names: list[str], *said: tuple[str, str]) -> int:
        talk(server, names, *said)
        server.asked.clear()
        download.run(config, "dataset", output)
        return server.asked["GET", "/images.zip"]

    server.files["/images.zip"] = zipped(NAMES[:20])
    assert fetched(NAMES[:20]) == 1
    assert fetched(NAMES[1:20]) == 0
    assert fetched(NAMES[1:19], ("Who?", "Nobody.")) == 0
    server.files["/images.zip"] = zipped(NAMES)
    assert fetched(NAMES) == 1


def test_one_more_archive_fetches_that_one(server: Server, tmp_path: Path) -> None:
    server.files |= {"/a.zip": zipped(NAMES[:12]), "/b.zip": zipped(NAMES[12:])}
    roots = [f"a/={server.url}/a.zip", f"b/={server.url}/b.zip"]
    for count, expected in ((1, {"/a.zip": 1, "/b.zip": 0}), (2, {"/a.zip": 0, "/b.zip": 1})):
        talk(server, [f"a/{name}" for name in NAMES[:12]] + [f"b/{name}" for name in NAMES[12:]][: 12 * (count - 1)])
        server.asked.clear()
        download.run(settings(server, "", f"data.image_roots={roots[:count]}"), "dataset", tmp_path / "raw")
        assert {path: server.asked["GET", path] for path in expected} == expected


def test_a_second_archive_that_fails_keeps_the_first(server: Server, tmp_path: Path) -> None:
    """It is a web page, then it breaks off for good, then it is whole."""
    server.files |= {"/a.zip": zipped(NAMES[:12]), "/b.zip": b"<!DOCTYPE html><title>Sign in</title>"}
    talk(server, [f"a/{name}" for name in NAMES[:12]] + [f"b/{name}" for name in NAMES[12:]])
    config = settings(server, "", f"data.image_roots=['a/={server.url}/a.zip','b/={server.url}/b.zip']")
    with pytest.raises(InputError, match=r"/b.zip is a web page, not an archive. Check the address"):
        download.run(config, "dataset", tmp_path / "raw")
    assert server.asked["GET", "/a.zip"] == 1
    server.files["/b.zip"] = whole = zipped(NAMES[12:])
    server.knows_ranges = False
    server.faults["/b.zip"] = ["", *["cut"] * 1000]  # its head is told
    with pytest.raises(InputError, match="/b.zip cannot be had .the connection broke, for 10 minutes"):
        download.run(config, "dataset", tmp_path / "raw")
    server.faults.clear()
    server.knows_ranges = True
    server.ranges.clear()
    assert download.run(config, "dataset", tmp_path / "raw").numbers["images"] == 24
    assert server.asked["GET", "/a.zip"] == 1
    assert server.ranges == [("/b.zip", f"bytes={len(whole) // 2 - 1}-")]  # what had come of it is kept, too


def test_an_archive_that_is_a_web_page_leaves_nothing(server: Server, tmp_path: Path) -> None:
    talk(server, NAMES)
    for name in ("images.zip", "images.tar", "images.tar.gz"):
        server.files[f"/{name}"] = b"\n<html><title>Sign in</title>"
        with pytest.raises(InputError, match=rf"/{name} is a web page, not an archive. Check the address"):
            download.run(settings(server, f"{server.url}/{name}"), "dataset", tmp_path / "raw")
        assert not (tmp_path / "raw").exists()


def test_a_compressed_archive_that_grows_beyond_its_limit_is_a_sentence(server: Server, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo(NAMES[0])
        member.size = 30_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    server.files["/images.tar.gz"] = stream.getvalue()
    assert len(stream.getvalue()) < 100_000
    talk(server, NAMES[:1])
    config = settings(server, f"{server.url}/images.tar.gz", "data.max_file_bytes=20000000")
    with pytest.raises(InputError, match=r"unpacks to more than 20,000,000 bytes. Allow more with data.max_file_bytes"):
        download.run(config, "dataset", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_one_object_that_may_not_be_read_is_a_missing_image(server: Server, tmp_path: Path) -> None:
    server.files |= {f"/bucket/images/{name}": content for name, content in PICTURES.items()}
    server.errors[f"/bucket/images/{NAMES[3]}"] = "AccessDenied"
    talk(server, NAMES)
    config = settings(server, "s3://bucket/images", "data.max_missing_fraction=0.1")
    assert download.run(config, "dataset", tmp_path / "raw").numbers["missing"] == 1
    (row,) = files.read_jsonl(tmp_path / "raw" / "missing.jsonl", "missing")
    assert row == {"file_name": NAMES[3], "reason": "the store refuses it (AccessDenied)"}


def test_a_killed_pods_successor_on_an_empty_disk_fetches_nothing_twice_that_was_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images("s3", server, tmp_path / "images", monkeypatch)
    images.publish(PICTURES)
    talk(server, NAMES)
    config = settings(server, images.uri, "data.work_uri=s3://bucket/work")
    real, seen = collect.fetch_all, 0

    def dying(*arguments: object) -> Iterator[tuple[str, object]]:
        nonlocal seen
        for item in real(*arguments):  # type: ignore[arg-type]
            seen += 1
            if seen > 17:
                raise SystemExit(137)
            yield item

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(collect, "fetch_all", dying)
        download.run(config, "dataset", tmp_path / "lost")
    kept = {
        name
        for path, content in server.files.items()
        if path.startswith("/bucket/work/shards/") and not path.endswith(".sha256")
        for name in pq.read_table(io.BytesIO(content)).column("file_name").to_pylist()
    }
    assert 12 <= len(kept) <= 17
    images.asked()
    successor = download.run(config, "dataset", tmp_path / "successor")
    assert server.asked["GET", "/talk.json"] == 0
    assert images.asked() == Counter(set(NAMES) - kept)
    third = download.run(config, "dataset", tmp_path / "third")
    assert not [path for method, path in server.asked if method == "PUT"]
    assert not images.asked()
    alone = download.run(settings(server, images.uri), "dataset", tmp_path / "alone")
    assert successor.digest == third.digest == alone.digest


def test_the_next_pod_fetches_no_archive_whose_images_are_kept(server: Server, tmp_path: Path) -> None:
    server.files["/images.zip"] = zipped(NAMES)
    talk(server, NAMES)
    config = settings(server, f"{server.url}/images.zip", "data.work_uri=s3://bucket/work")
    first = download.run(config, "dataset", tmp_path / "first")
    server.asked.clear()
    assert download.run(config, "dataset", tmp_path / "second").digest == first.digest
    assert server.asked["GET", "/images.zip"] == 0
    assert not [path for method, path in server.asked if method == "PUT"]
