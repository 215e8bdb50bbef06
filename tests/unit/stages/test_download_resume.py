"""Interrupted, repeated, grown and concurrent downloads: what is there already is kept, and the end is the same."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma import locks, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.data import collect
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.data.sources.local import LocalSource
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import download
from tests.unit.data import making
from tests.unit.data.serving import Clock, Server, serve

NAMES = [f"{number:012d}.jpg" for number in range(1, 41)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves 40 images of about 800 bytes, and conversations about them."""
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    Clock(monkeypatch)
    with serve() as running:
        for number, name in enumerate(NAMES):
            running.files[f"/images/{name}"] = making.image_bytes((number, 5, 9))
        talk(running, NAMES)
        yield running


def talk(server: Server, names: list[str]) -> None:
    server.files["/talk.json"] = json.dumps([making.conversation(name) for name in names]).encode()


def settings(server: Server, *overrides: str) -> Config:
    """Groups of four images at most."""
    return configuration.compose(
        "sample",
        [
            f"data.conversations={server.url}/talk.json",
            f"data.images={server.url}/images",
            "data.shard_bytes=1600000",
            *overrides,
        ],
    )


def images_asked(server: Server) -> int:
    return sum(count for (_, path), count in server.asked.items() if path.startswith("/images/"))


def digests(folder: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in manifest.verify(folder).files.items()}


def interrupt(config: Config, output: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Run a download that dies, as by SIGKILL, once `after` images have arrived."""
    real, seen = collect.fetch_all, 0

    def dying(*arguments: object) -> Iterator[tuple[str, object]]:
        nonlocal seen
        for item in real(*arguments):  # type: ignore[arg-type]
            seen += 1
            if seen > after:
                raise SystemExit(137)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(collect, "fetch_all", dying)
        with pytest.raises(SystemExit):
            download.run(config, "dataset", output)


def test_finished_shards_survive_an_interruption_and_the_end_is_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = download.run(settings(server), "dataset", tmp_path / "undisturbed")
    output = tmp_path / "raw"
    interrupt(settings(server), output, monkeypatch, after=30)
    assert not (output / manifest.NAME).exists()
    server.asked.clear()
    summary = download.run(settings(server), "dataset", output)
    assert summary.digest == undisturbed.digest
    assert summary.numbers == undisturbed.numbers
    assert images_asked(server) <= 10 + 4
    assert not (output / ".partial").exists()


def test_a_finished_shard_with_other_bytes_is_fetched_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = download.run(settings(server), "dataset", tmp_path / "undisturbed")
    output = tmp_path / "raw"
    interrupt(settings(server), output, monkeypatch, after=30)
    path = sorted((output / ".partial").glob("group-*.parquet"))[2]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert download.run(settings(server), "dataset", output).digest == undisturbed.digest


def test_an_image_that_was_missing_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    undisturbed = digests(download.run(settings(server), "dataset", tmp_path / "undisturbed").folder)
    lost = server.files.pop(f"/images/{NAMES[0]}")
    with pytest.raises(InputError, match="1 of 40 images could not be had"):
        download.run(settings(server), "dataset", tmp_path / "raw")
    server.files[f"/images/{NAMES[0]}"] = lost
    server.asked.clear()
    summary = download.run(settings(server), "dataset", tmp_path / "raw")
    assert (summary.numbers["images"], summary.numbers["missing"]) == (40, 0)
    assert images_asked(server) == 1
    assert digests(tmp_path / "raw") == undisturbed


@pytest.mark.parametrize(("before", "after"), [(NAMES[5:35], NAMES), (NAMES[:39], NAMES), (NAMES, NAMES[3:])])
def test_a_dataset_that_grows_or_shrinks_fetches_what_is_new_and_ends_as_if_made_at_once(
    before: list[str], after: list[str], server: Server, tmp_path: Path
) -> None:
    output = tmp_path / "raw"
    talk(server, before)
    first = download.run(settings(server), "dataset", output)
    sums = {entry["sha256"] for name, entry in manifest.read(output).files.items() if name.startswith("images-")}
    talk(server, after)
    server.asked.clear()
    changed = download.run(settings(server), "dataset", output)
    assert not changed.cached
    assert changed.digest != first.digest
    assert images_asked(server) == len(set(after) - set(before))
    assert ImageShards(output).names() == after
    assert changed.digest == download.run(settings(server), "dataset", tmp_path / "fresh").digest
    if len(after) - len(before) == 1:  # one more picture changes one shard, two if it splits it
        now = {entry["sha256"] for name, entry in manifest.read(output).files.items() if name.startswith("images-")}
        assert len(sums - now) == 1
    assert download.run(settings(server), "dataset", output).cached


def test_another_text_fetches_no_image(server: Server, tmp_path: Path) -> None:
    download.run(settings(server), "dataset", tmp_path / "raw")
    said = [making.conversation(name, ("Who?", "Nobody.")) for name in NAMES]
    server.files["/talk.json"] = json.dumps(said).encode()
    server.asked.clear()
    assert not download.run(settings(server), "dataset", tmp_path / "raw").cached
    assert images_asked(server) == 0


def test_one_photograph_under_two_names_is_stored_once(server: Server, tmp_path: Path) -> None:
    same = server.files[f"/images/{NAMES[0]}"]
    server.files[f"/images/{NAMES[9]}"] = server.files[f"/images/{NAMES[31]}"] = same
    summary = download.run(settings(server), "dataset", tmp_path / "raw")
    assert (summary.numbers["images"], summary.numbers["names"], summary.numbers["missing"]) == (38, 40, 0)
    shards = ImageShards(tmp_path / "raw")
    assert len(shards) == len({digest for _, digest in shards.digests()}) == 38
    assert shards.names() == NAMES
    assert shards.read(NAMES[9]) == shards.read(NAMES[31]) == same
    talk(server, NAMES[1:])  # the name under which it is stored goes
    server.asked.clear()
    again = download.run(settings(server), "dataset", tmp_path / "raw")
    assert images_asked(server) == 0
    assert ImageShards(tmp_path / "raw").read(NAMES[31]) == same
    assert again.digest == download.run(settings(server), "dataset", tmp_path / "fresh").digest


def test_the_next_pod_on_an_empty_disk_fetches_nothing_twice(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    config = settings(server, "data.work_uri=s3://bucket/work")
    undisturbed = download.run(settings(server), "dataset", tmp_path / "undisturbed")
    interrupt(config, tmp_path / "lost", monkeypatch, after=30)
    server.asked.clear()
    successor = download.run(config, "dataset", tmp_path / "successor")
    assert successor.digest == undisturbed.digest
    assert images_asked(server) <= 10 + 4  # of the group that was not whole, all
    assert server.asked["GET", "/talk.json"] == 0
    server.asked.clear()
    server.files["/images/more.jpg"] = making.image_bytes((9, 9, 9))
    talk(server, [*NAMES, "more.jpg"])
    grown = download.run(config, "dataset", tmp_path / "grown")
    assert grown.numbers["images"] == 41
    assert images_asked(server) <= 5  # what its group holds


def test_two_downloads_into_one_folder_are_refused(server: Server, tmp_path: Path) -> None:
    with (
        locks.only_writer(tmp_path / "raw", "download"),
        pytest.raises(InputError, match="another process is writing to .*raw. Wait until it ends"),
    ):
        download.run(settings(server), "dataset", tmp_path / "raw")
    assert download.run(settings(server), "dataset", tmp_path / "raw").numbers["images"] == 40


def test_a_web_page_in_place_of_a_photograph_is_missing(server: Server, tmp_path: Path) -> None:
    server.faults[f"/images/{NAMES[7]}"] = ["html"]
    with pytest.raises(InputError, match=rf"First: {NAMES[7]} \(a web page, not an image\)"):
        download.run(settings(server), "dataset", tmp_path / "raw")


def test_a_checksum_that_differs_is_a_sentence(server: Server, tmp_path: Path) -> None:
    right = hashlib.sha256(server.files["/talk.json"]).hexdigest()
    config = settings(server, f"data.conversations_sha256={right}")
    assert download.run(config, "dataset", tmp_path / "right").numbers["images"] == 40
    server.files["/talk.json"] += b" "
    with pytest.raises(InputError, match="has sha256 [0-9a-f]{64}, not the one that data.conversations_sha256 demands"):
        download.run(config, "dataset", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_file_of_conversations_beyond_its_limit_is_a_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be had .larger than 50 bytes.. Check data.conversations"):
        download.run(settings(server, "data.max_file_bytes=50"), "dataset", tmp_path / "raw")


def test_only_the_images_of_drawn_conversations_are_fetched(server: Server, tmp_path: Path) -> None:
    few = download.run(settings(server, "data.limit=10"), "dataset", tmp_path / "few")
    more = download.run(settings(server, "data.limit=20"), "dataset", tmp_path / "more")
    assert (few.numbers["images"], more.numbers["images"]) == (10, 20)
    assert set(ImageShards(tmp_path / "few").names()) < set(ImageShards(tmp_path / "more").names())


def test_images_of_a_mixed_dataset_come_from_the_place_of_their_prefix(server: Server, tmp_path: Path) -> None:
    said = [
        making.conversation(f"coco/train2017/{NAMES[0]}"),
        making.conversation(f"gqa/images/{NAMES[1]}"),
        making.conversation(None, ("Hi", "Hello")),
    ]
    server.files["/talk.json"] = json.dumps(said).encode()
    local = tmp_path / "gqa"
    local.mkdir()
    (local / NAMES[1]).write_bytes(making.image_bytes((1, 1, 1)))
    roots = f"data.image_roots=['coco/train2017/={server.url}/images','gqa/images/={local}']"
    summary = download.run(settings(server, "data.images=", roots), "dataset", tmp_path / "raw")
    assert summary.numbers["images"] == 2
    shards = ImageShards(tmp_path / "raw")
    assert shards.read(f"coco/train2017/{NAMES[0]}") == server.files[f"/images/{NAMES[0]}"]
    assert shards.read(f"gqa/images/{NAMES[1]}") == (local / NAMES[1]).read_bytes()
    said[0]["image"] = "vg/VG_100K/1.jpg"
    server.files["/talk.json"] = json.dumps(said).encode()
    with pytest.raises(InputError, match="no prefix of data.image_roots fits 1 of 2 image names, first vg"):
        download.run(settings(server, "data.images=", roots), "dataset", tmp_path / "raw")
    with pytest.raises(InputError, match="data.image_roots holds 'coco'. Write PREFIX=LOCATION"):
        download.run(settings(server, "data.image_roots=[coco]"), "dataset", tmp_path / "raw")


def tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "elsewhere"
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz", "images.zip"])
def test_an_archive_on_this_machine_is_as_good_as_a_folder_and_read_in_place(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = download.run(settings(server), "dataset", tmp_path / "plain")
    members = {f"./train2017/{image}": server.files[f"/images/{image}"] for image in NAMES}
    packed = (zipped if name.endswith(".zip") else tar)(tmp_path / name, members)
    config = settings(server, f"data.images={packed}")
    with monkeypatch.context() as patch:  # it lies here: 19 GB would be copied for nothing
        patch.setattr(LocalSource, "fetch", None)
        assert download.run(config, "dataset", tmp_path / "packed").digest == plain.digest
    assert packed.is_file()
    pinned = settings(server, f"data.images={packed}", f"data.images_sha256={'0' * 64}")
    with pytest.raises(InputError, match=r"has sha256 [0-9a-f]+, not the one that data.images_sha256 demands"):
        download.run(pinned, "dataset", tmp_path / "pinned")
    assert packed.is_file()


def test_a_hostile_or_broken_tar_archive_is_a_sentence(server: Server, tmp_path: Path) -> None:
    def made_of(path: Path) -> None:
        download.run(settings(server, f"data.images={path}"), "dataset", tmp_path / "raw")

    for name in ("../a.jpg", "/etc/passwd", "x/../../a.jpg"):
        with pytest.raises(InputError, match="a name that points outside"):
            made_of(tar(tmp_path / "a.tar", {name: b"x"}))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with pytest.raises(InputError, match="holds the link 'a.jpg'"):
            made_of(tar(tmp_path / "a.tar", {"a.jpg": b""}, kind))
    with pytest.raises(InputError, match="holds none of the 40 images that are named, first 000000000001.jpg"):
        made_of(tar(tmp_path / "a.tar", {"other.jpg": b"x"}))
    whole = tar(tmp_path / "whole.tar", {NAMES[0]: b"x" * 9000}).read_bytes()
    (tmp_path / "half.tar").write_bytes(whole[:5000])
    with pytest.raises(InputError, match="is no whole tar archive"):
        made_of(tmp_path / "half.tar")
    zipped = tar(tmp_path / "whole.tar.gz", {NAMES[0]: os.urandom(9000)}).read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(zipped[:5000])
    with pytest.raises(InputError, match="is no whole gzip file"):
        made_of(tmp_path / "half.tar.gz")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    mount = shutil.which("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], check=False, capture_output=True, timeout=300
    )
    if not made or made.returncode:
        pytest.skip("a small file system can only be mounted by the root user of a machine")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=300)


def test_a_disk_that_fills_up_is_a_sentence_and_what_is_finished_is_kept(server: Server, small_disk: Path) -> None:
    for name in NAMES:
        server.files[f"/images/{name}"] = making.image_bytes() + os.urandom(20_000)
    config = settings(server)
    with pytest.raises(InputError, match="the disk is full. Free some space and run again; what is finished is kept"):
        download.run(config, "dataset", small_disk / "raw")
    kept = list((small_disk / "raw" / ".partial").glob("group-*.parquet"))
    assert kept
    subprocess.run(["mount", "-o", "remount,size=5m", str(small_disk)], check=True, timeout=300)
    server.asked.clear()
    assert download.run(config, "dataset", small_disk / "raw").numbers["images"] == 40
    assert sum(count for (_, path), count in server.asked.items() if path.startswith("/images/")) < 40
