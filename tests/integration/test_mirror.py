"""Real S3 servers: what is mirrored into one is read back by the pipeline's own sources, with the same digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multimodal_gemma import cli, manifest
from multimodal_gemma import config as configuration
from multimodal_gemma.config import Config
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import sources
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.data.sources import Unavailable, buckets
from multimodal_gemma.data.sources.buckets import S3Source
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import download, mirror
from tests.unit.data.serving import Clock, serve

BUCKET = "datasets"
KEY = "S3RVER"  # both the key and the secret that s3rver knows; moto takes any


def s3rver(port: int, folder: Path) -> list[str] | None:
    """Return the command of npm's s3rver, which refuses unknown keys; MMGEMMA_S3RVER names it where npx does not."""
    address = ["-a", "127.0.0.1", "-p", str(port), "-d", str(folder), "--configure-bucket", BUCKET]
    program = os.environ.get("MMGEMMA_S3RVER") or shutil.which("s3rver")
    if program:
        return [program, *address]
    npx = shutil.which("npx")
    known = (
        npx
        and not subprocess.run(
            [npx, "--no-install", "s3rver", "--version"], capture_output=True, check=False, timeout=1800
        ).returncode
    )
    return [str(npx), "--no-install", "s3rver", *address] if known else None


def moto(port: int, folder: Path) -> list[str] | None:
    program = Path(sys.executable).with_name("moto_server")
    return [str(program), "-H", "127.0.0.1", "-p", str(port)] if program.is_file() else None


@contextlib.contextmanager
def running(make: Callable[[int, Path], list[str] | None], folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = make(port, folder)
    if command is None:
        pytest.skip(f"{make.__name__} is not installed")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module", params=[s3rver, moto], ids=["s3rver", "moto"])
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(request.param, tmp_path_factory.mktemp("s3")) as address:
        with pytest.MonkeyPatch.context() as patch:
            use(address, patch)
            client = S3Source(f"s3://{BUCKET}")._client
            if not client.bucket_exists(BUCKET):
                client.make_bucket(BUCKET)
        yield address


def use(address: str, patch: pytest.MonkeyPatch, key: str = KEY) -> None:
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", key)
    patch.setenv("AWS_REGION", "us-east-1")
    patch.delenv("AWS_SESSION_TOKEN", raising=False)
    Clock(patch)


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use(endpoint, monkeypatch)
    return endpoint


def photographs(base: str, *overrides: str) -> Config:
    return configuration.compose(
        "sample",
        [
            f"data.conversations={base}/llava_instruct_sample.json",
            f"data.images={base}/train2017",
            f"benchmarks.pope={base}/pope",
            f"benchmarks.vqa={base}/vqa",
            f"benchmarks.images={base}/train2017",
            *overrides,
        ],
    )


def test_a_mirror_gives_the_digests_of_the_original_places(store: str, shared: Path, tmp_path: Path) -> None:
    config = photographs(str(shared / "coco-sample"))
    summary = mirror.run(config, mirror.PARTS, tmp_path / "work", f"s3://{BUCKET}/one")
    assert summary.numbers["written"] == summary.numbers["objects"] > 20
    record = json.loads(S3Source(f"s3://{BUCKET}/one").read("mirror.json", 10**7))
    mirrored = configuration.compose("sample", record["overrides"])
    for part in mirror.PARTS:
        found = download.run(mirrored, part, tmp_path / "read" / part)
        assert found.digest == manifest.read(tmp_path / "work" / part).digest
    told = json.loads((tmp_path / "read/dataset/sources.json").read_text())["sources"]
    assert told["data.conversations (data.images)"] == {"scheme": "file"}  # the mirror's own source, with its licence
    again = mirror.run(config, mirror.PARTS, tmp_path / "work", f"s3://{BUCKET}/one")
    assert (again.numbers["written"], again.cached) == (0, True)


def test_http_s3_a_folder_and_an_archive_give_one_digest(
    store: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    given = shared / "coco-sample"
    source = S3Source(f"s3://{BUCKET}/plain")
    for path in given.rglob("*"):
        if path.is_file():
            source.put(path.relative_to(given).as_posix(), path, "")
    packed = tmp_path / "images.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in (given / "train2017").iterdir():
            archive.write(path, f"train2017/{path.name}")
    with serve() as web:
        web.add_folder(given, "/set")
        places = {
            "folder": photographs(str(given)),
            "http": photographs(f"{web.url}/set"),
            "s3": photographs(f"s3://{BUCKET}/plain"),
            "zip": photographs(str(given), f"data.images={packed}", f"benchmarks.images={packed}"),
        }
        for part in ("dataset", "benchmarks"):
            digests = {
                name: download.run(config, part, tmp_path / name / part).digest for name, config in places.items()
            }
            assert len(set(digests.values())) == 1, digests


def test_an_interrupted_mirror_continues(
    store: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = photographs(str(shared / "coco-sample"))
    real, sent = S3Source.put, 0

    def dying(self: S3Source, *arguments: object) -> None:
        nonlocal sent
        sent += 1
        if sent > 3:
            raise SystemExit(137)
        real(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(S3Source, "put", dying)
        with pytest.raises(SystemExit):
            mirror.run(config, ["dataset"], tmp_path / "work", f"s3://{BUCKET}/two")
    assert not S3Source(f"s3://{BUCKET}/two").exists("mirror.json")
    summary = mirror.run(config, ["dataset"], tmp_path / "work", f"s3://{BUCKET}/two")
    assert summary.numbers["written"] == summary.numbers["objects"] - 3


def test_an_object_that_is_not_what_was_recorded_is_refused(store: str, tmp_path: Path) -> None:
    source = S3Source(f"s3://{BUCKET}/three")
    source.put("a.jpg", b"the bytes", "0" * 64)
    with pytest.raises(Unavailable, match="its sha256 is not the one that was recorded with it"):
        source.read("a.jpg", 100)
    source.put("talk.json", b"[]", "0" * 64)
    config = configuration.compose("sample", [f"data.conversations=s3://{BUCKET}/three/talk.json"])
    with pytest.raises(InputError, match="talk.json cannot be had .its sha256 is not the one .* Check data.conv"):
        download.run(config, "dataset", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_an_object_that_was_changed_in_the_bucket_is_sent_again(store: str, shared: Path, tmp_path: Path) -> None:
    """Same size, same recorded sha256, other bytes: its ETag tells."""
    config, place = photographs(str(shared / "coco-sample")), f"s3://{BUCKET}/five"
    mirror.run(config, ["dataset"], tmp_path / "work", place, read_back=True)
    source = S3Source(place)
    name = next(name for name in source.names() if name.endswith(".parquet") and "images" in name)
    content = source.read(name, 10**8)
    digest = hashlib.sha256(content).hexdigest()
    source.put(name, content[:-1] + b"?", digest)
    again = mirror.run(config, ["dataset"], tmp_path / "work", place)
    assert again.numbers["written"] == 1
    assert S3Source(place).digest(name) == digest


def test_a_store_that_keeps_other_bytes_than_were_sent_is_found_out(
    store: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = photographs(str(shared / "coco-sample"))
    real = S3Source.put

    def damaging(self: S3Source, name: str, content: bytes | Path, sha256: str) -> None:
        whole = content if isinstance(content, bytes) else content.read_bytes()
        real(self, name, whole[:-1] + b"?" if name.endswith("conversations.jsonl") else content, sha256)

    monkeypatch.setattr(S3Source, "put", damaging)
    with pytest.raises(InputError, match=r"mirror: dataset/conversations.jsonl has not arrived whole in s3://.*six"):
        mirror.run(config, ["dataset"], tmp_path / "work", f"s3://{BUCKET}/six")
    assert not S3Source(f"s3://{BUCKET}/six").exists("mirror.json")


def test_a_large_object_goes_in_parts_and_is_checked_by_its_bytes(
    store: str, shared: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An ETag of parts is no digest of the bytes: the recorded sha256 is compared, and the bytes where asked."""
    name = "dataset/conversations.jsonl"
    given = tmp_path / "given"
    shutil.copytree(shared / "coco-sample", given)
    talk = given / "llava_instruct_sample.json"
    rows = json.loads(talk.read_text())
    rows[0]["conversations"][0]["value"] += " word" * (buckets.SINGLE_PART // 5 + 1_000_000)
    talk.write_text(json.dumps(rows))
    config, place = photographs(str(given)), f"s3://{BUCKET}/seven"
    first = mirror.run(config, ["dataset"], tmp_path / "work", place)
    assert first.numbers["written"] == 6
    stored = S3Source(place).stored(name)
    assert stored is not None
    assert stored.size > buckets.SINGLE_PART
    if "moto" in request.node.name:  # s3rver gives the object the ETag of a whole one
        assert stored.etag.strip('"').endswith("-2")
    content = (tmp_path / "work" / name).read_bytes()
    sent = hashlib.sha256(content).hexdigest()
    assert stored.sha256 == sent == S3Source(place).digest(name)
    assert mirror.run(config, ["dataset"], tmp_path / "work", place, read_back=True).numbers["written"] == 0
    damaged = bytearray(content)
    damaged[-1] = ord(" ")
    S3Source(place).put(name, bytes(damaged), sent)  # as by a disk that flips a bit
    with pytest.raises(InputError, match=rf"conversations.jsonl in {place} has sha256 [0-9a-f]+, not {sent} as it was"):
        mirror.run(config, ["dataset"], tmp_path / "work", place, read_back=True)


def test_a_wrong_bucket_is_a_sentence(store: str, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no bucket 'nowhere'"):
        mirror.run(photographs(str(shared / "coco-sample")), ["dataset"], tmp_path / "work", "s3://nowhere/x")
    config = configuration.compose("sample", ["data.conversations=s3://nowhere/talk.json"])
    with pytest.raises(InputError, match="there is no bucket 'nowhere'"):
        download.run(config, "dataset", tmp_path / "raw")
    with pytest.raises(InputError, match="https://somewhere is no bucket. Write s3://BUCKET/PREFIX"):
        mirror.run(config, ["dataset"], tmp_path / "work", "https://somewhere")


def test_wrong_credentials_are_a_sentence(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if "moto" in request.node.name:
        pytest.skip("moto takes any credentials")
    with pytest.MonkeyPatch.context() as patch:
        use(store, patch, key="WRONG")
        config = configuration.compose("sample", [f"data.conversations=s3://{BUCKET}/talk.json"])
        with pytest.raises(InputError, match=r"the store refuses s3://datasets/talk.json .* Check AWS_ACCESS_KEY_ID"):
            download.run(config, "dataset", tmp_path / "raw")


def test_the_command_prints_the_overrides(
    store: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = shared / "coco-sample"
    code = cli.main(
        [
            "mirror",
            f"s3://{BUCKET}/four",
            f"--work={tmp_path / 'work'}",
            "--only=dataset",
            "--read-back",
            f"data.conversations={given / 'llava_instruct_sample.json'}",
            f"data.images={given / 'train2017'}",
        ]
    )
    assert code == 0
    lines = [
        f"data.conversations=s3://{BUCKET}/four/dataset",
        "data.images=",
    ]
    assert capsys.readouterr().out.splitlines() == lines
    assert sources.open(f"s3://{BUCKET}/four/dataset", DataConfig()).names()[0] == "conversations.jsonl"
    assert len(ImageShards(tmp_path / "work" / "dataset")) == 36
