"""Download end to end, on photographs, from folders and over real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma import files, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.data import conversations
from multimodal_gemma.data.benchmarks import VQA_ARCHIVES, load_pope, load_vqa
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import download
from tests.unit.data.serving import Clock, Server, serve


@pytest.fixture
def photographs(shared: Path, tmp_path: Path) -> Path:
    """A copy of the photograph sample that a test may damage."""
    return Path(shutil.copytree(shared / "coco-sample", tmp_path / "given"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    Clock(monkeypatch)
    with serve() as running:
        yield running


def compose(base: str, *overrides: str) -> Config:
    """Return a configuration whose data lies at `base`, in the layout of the photograph sample."""
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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The dataset


def test_the_images_that_are_named_and_no_others_are_in_the_dataset(photographs: Path, tmp_path: Path) -> None:
    output = tmp_path / "raw"
    summary = download.run(compose(str(photographs)), "dataset", output)
    assert (summary.numbers["conversations"], summary.numbers["images"], summary.numbers["missing"]) == (72, 36, 0)
    named = conversations.image_names(conversations.load(output))
    shards = ImageShards(output)
    assert shards.names() == named
    assert all(shards.read(name) == (photographs / "train2017" / name).read_bytes() for name in shards.names())
    published = json.loads((photographs / "llava_instruct_sample.json").read_text())
    kept = [json.loads(line) for line in (output / "conversations.jsonl").read_text().splitlines()]
    assert [(row["id"], row["image"], row["conversations"]) for row in kept] == [
        (row["id"], row["image"], row["conversations"]) for row in published
    ]
    assert manifest.verify(output, "raw-dataset").digest == summary.digest
    assert sorted(path.name for path in output.iterdir()) == [
        "conversations.jsonl",
        "held.jsonl",
        "images-00000.parquet",
        "manifest.json",
        "missing.jsonl",
        "names.parquet",
        "sets.json",
        "sources.json",
    ]


def test_the_same_files_have_the_same_digest_from_wherever_they_come(
    photographs: Path, tmp_path: Path, server: Server
) -> None:
    server.add_folder(photographs, "/set")
    packed = tmp_path / "images.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in (photographs / "train2017").iterdir():
            archive.write(path, f"train2017/{path.name}")
    elsewhere = shutil.copytree(photographs, tmp_path / "elsewhere")
    digests = {
        name: download.run(config, "dataset", tmp_path / "out" / name).digest
        for name, config in {
            "folder": compose(str(photographs)),
            "another": compose(str(elsewhere)),
            "web": compose(f"{server.url}/set"),
            "archive": compose(str(photographs), f"data.images={packed}"),
        }.items()
    }
    assert len(set(digests.values())) == 1, digests
    for name in digests:
        assert not any(str(tmp_path).encode() in text for text in contents(tmp_path / "out" / name).values())


def test_an_archive_on_the_web_is_read_by_name(photographs: Path, tmp_path: Path, server: Server) -> None:
    packed = tmp_path / "images.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in (photographs / "train2017").iterdir():
            archive.write(path, path.name)
    server.files["/images.zip"] = packed.read_bytes()
    config = compose(str(photographs), f"data.images={server.url}/images.zip")
    assert download.run(config, "dataset", tmp_path / "raw").numbers["images"] == 36


def test_a_finished_dataset_is_not_fetched_again_until_its_source_changes(photographs: Path, tmp_path: Path) -> None:
    config, output = compose(str(photographs)), tmp_path / "raw"
    first = download.run(config, "dataset", output)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    second = download.run(config, "dataset", output)
    assert (first.cached, second.cached) == (False, True)
    assert second.digest == first.digest
    assert second.numbers == first.numbers
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    path = photographs / "llava_instruct_sample.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:10]))
    third = download.run(config, "dataset", output)
    assert not third.cached
    assert third.numbers["conversations"] == 10


def test_what_an_interrupted_attempt_left_is_cleared(photographs: Path, tmp_path: Path) -> None:
    output = tmp_path / "raw"
    (output / ".partial").mkdir(parents=True)
    (output / ".partial" / "images.zip").write_bytes(b"half")
    (output / "images-00007.parquet").write_bytes(b"of another attempt")
    interrupted = download.run(compose(str(photographs)), "dataset", output)
    undisturbed = download.run(compose(str(photographs)), "dataset", tmp_path / "undisturbed")
    assert interrupted.digest == undisturbed.digest
    assert contents(output).keys() == contents(tmp_path / "undisturbed").keys()


def test_a_folder_of_somebody_elses_files_is_not_touched(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds files that no download left, thesis.txt for one"):
        download.run(compose(str(photographs)), "dataset", tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}


def test_a_few_missing_images_are_recorded_and_more_fail(photographs: Path, tmp_path: Path) -> None:
    output = tmp_path / "raw"
    lost = sorted(path for path in (photographs / "train2017").iterdir())[0]
    named = json.loads((photographs / "llava_instruct_sample.json").read_text())
    assert lost.name in {entry["image"] for entry in named}
    lost.unlink()
    with pytest.raises(InputError) as caught:
        download.run(compose(str(photographs)), "dataset", output)
    assert str(caught.value) == (
        "download: 1 of 36 images could not be had (2.78%, allowed 0.10%). "
        f"First: {lost.name} (no such file). The list: {output / 'missing.jsonl'}. "
        "Allow more with data.max_missing_fraction=0.03."
    )
    assert files.read_jsonl(output / "missing.jsonl", "missing") == [{"file_name": lost.name, "reason": "no such file"}]
    assert not (output / manifest.NAME).exists()

    allowed = compose(str(photographs), "data.max_missing_fraction=0.03")
    summary = download.run(allowed, "dataset", output)
    assert (summary.numbers["images"], summary.numbers["missing"]) == (35, 1)
    assert lost.name not in ImageShards(output)
    with pytest.raises(InputError, match="1 of 36 images could not be had"):  # finished, but no longer good enough
        download.run(compose(str(photographs)), "dataset", output)


def test_an_over_sized_image_counts_as_missing(photographs: Path, tmp_path: Path) -> None:
    config = compose(str(photographs), "data.max_image_bytes=150000", "data.max_missing_fraction=1")
    download.run(config, "dataset", tmp_path / "raw")
    sizes = {path.name: path.stat().st_size for path in (photographs / "train2017").iterdir()}
    rows = files.read_jsonl(tmp_path / "raw" / "missing.jsonl", "missing")
    named = {entry["image"] for entry in json.loads((photographs / "llava_instruct_sample.json").read_text())}
    assert {row["file_name"] for row in rows} == {name for name in named if sizes[name] > 150_000}
    assert {row["reason"] for row in rows} == {"larger than 150,000 bytes"}


def test_an_image_name_that_points_outside_is_missing(photographs: Path, tmp_path: Path) -> None:
    path = photographs / "llava_instruct_sample.json"
    entries = json.loads(path.read_text())
    entries[0]["image"] = "../vqa/questions.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"questions.json \(its name points outside the location\)"):
        download.run(compose(str(photographs)), "dataset", tmp_path / "raw")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.conversations=/does/not/exist.json"], "/does/not/exist.json does not exist"),
        (["data.images=/does/not/exist"], "/does/not/exist does not exist"),
        (["data.images="], "data.images is empty, but 36 images are named, first 0000"),
        (["data.conversations="], "data.conversations is empty"),
        (["data.conversations=ftp://host/a"], "unknown scheme ftp://"),
        (["data.images=https://example.org/images"], "host example.org, which is not allowed"),
        (
            ["data.conversations=http://127.0.0.1:1/a.json"],
            "had .no connection, for 10 minutes.. Check data.conv",
        ),
        (
            ["data.conversations=s3://bucket/a.json"],
            "cannot be had .no connection to the store, for 10 minutes.. Check data.conv",
        ),
    ],
)
def test_a_wrong_location_is_one_sentence_and_leaves_nothing(
    overrides: list[str], said: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    Clock(monkeypatch)
    with pytest.raises(InputError, match=said):
        download.run(compose(str(photographs), *overrides), "dataset", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"id": "a", "conv', "no whole JSON document"),
        ("{}", "conversation 0 .* has no turns, 1 of 1 is faulty"),
        ("[]", "empty list"),
        ('[{"id": "a", "conversations": []}]', r"conversation 0 \(id a\) of .* has no turns"),
    ],
)
def test_faulty_conversations_are_one_sentence_and_leave_nothing(
    text: str, said: str, photographs: Path, tmp_path: Path
) -> None:
    path = photographs / "llava_instruct_sample.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        download.run(compose(str(photographs)), "dataset", tmp_path / "raw")
    assert path.as_uri() in str(caught.value)
    assert not (tmp_path / "raw").exists()


def test_text_alone_needs_no_images(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": "a", "conversations": said}]))
    config = configuration.compose("sample", [f"data.conversations={tmp_path}/text.json", "data.images="])
    assert download.run(config, "dataset", tmp_path / "raw").numbers["images"] == 0


def test_an_unwritable_output_is_a_sentence(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        download.run(compose(str(photographs)), "dataset", tmp_path / "file" / "raw")
    with pytest.raises(InputError, match="cannot be written"):
        download.run(compose(str(photographs)), "dataset", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may write anywhere")
def test_a_folder_without_permission_is_a_sentence(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written"):
        download.run(compose(str(photographs)), "dataset", tmp_path / "locked")


def test_the_generated_sample_is_downloaded_like_any_other(tmp_path: Path) -> None:
    config = configuration.compose("sample", ["data.sample.train_scenes=12", "data.sample.held_out_scenes=4"])
    summary = download.run(config, "dataset", tmp_path / "raw")
    assert summary.numbers["images"] == 12
    assert download.run(config, "dataset", tmp_path / "raw").cached
    summary = download.run(config, "benchmarks", tmp_path / "benchmarks")
    assert summary.numbers["images"] == 4
    trained = set(ImageShards(tmp_path / "raw").names())
    assert trained.isdisjoint(ImageShards(tmp_path / "benchmarks").names())


# The benchmarks


def test_the_benchmarks_hold_their_questions_and_images(photographs: Path, tmp_path: Path) -> None:
    output = tmp_path / "benchmarks"
    summary = download.run(compose(str(photographs)), "benchmarks", output)
    assert summary.numbers["pope_questions"] == 330
    assert summary.numbers["vqa_questions"] == 97
    asked = {question.image for setting in load_pope(output).values() for question in setting}
    asked |= {question.image for question in load_vqa(output)}
    assert set(ImageShards(output).names()) == asked
    assert len(asked) == 14
    published = (photographs / "vqa" / "annotations.json").read_bytes()
    assert (output / "vqa" / "annotations.json").read_bytes() == published
    manifest.verify(output, "benchmarks")


def test_the_official_vqa_archives_are_as_good_as_plain_files(photographs: Path, tmp_path: Path) -> None:
    plain = download.run(compose(str(photographs)), "benchmarks", tmp_path / "plain")
    official = tmp_path / "official"
    official.mkdir()
    for key, (archive, member) in zip(("questions", "annotations"), VQA_ARCHIVES.items(), strict=True):
        with zipfile.ZipFile(official / archive, "w") as packed:
            packed.write(photographs / "vqa" / f"{key}.json", member)
    config = compose(str(photographs), f"benchmarks.vqa={official}")
    assert download.run(config, "benchmarks", tmp_path / "packed").digest == plain.digest


def test_a_page_in_the_place_of_a_vqa_archive_is_called_a_page(photographs: Path, tmp_path: Path) -> None:
    """Such as a server sends to whoever has not signed in; "no whole zip archive" would send people the wrong way."""
    official = tmp_path / "official"
    official.mkdir()
    for archive in VQA_ARCHIVES:
        (official / archive).write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    config = compose(str(photographs), f"benchmarks.vqa={official}")
    with pytest.raises(InputError, match=r"official/v2_Questions_Val_mscoco.zip is a web page, not an archive"):
        download.run(config, "benchmarks", tmp_path / "benchmarks")


def test_only_the_images_of_drawn_questions_are_fetched(photographs: Path, tmp_path: Path) -> None:
    config = compose(str(photographs), "benchmarks.vqa_questions=3", "benchmarks.pope=")
    summary = download.run(config, "benchmarks", tmp_path / "benchmarks")
    assert summary.numbers["vqa_questions"] == 3
    assert 1 <= summary.numbers["images"] <= 3
    assert load_pope(tmp_path / "benchmarks") == {}


def test_a_benchmark_image_that_cannot_be_decoded_is_missing(photographs: Path, tmp_path: Path) -> None:
    path = photographs / "train2017" / "000000079841.jpg"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"1 of 14 images could not be had .* First: 000000079841.jpg"):
        download.run(compose(str(photographs)), "benchmarks", tmp_path / "benchmarks")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmarks.pope=", "benchmarks.vqa="], "both empty"),
        (["benchmarks.images="], "benchmarks.images is empty, but 14 images are named"),
        (
            ["benchmarks.pope=/"],
            "benchmarks.pope: file:/// holds neither coco_pope_random.json and coco_pope_popular.json and",
        ),
        (
            ["benchmarks.vqa=/"],
            "holds neither questions.json and annotations.json, nor v2_OpenEnded_mscoco_val2014_questions.json",
        ),
    ],
)
def test_a_wrong_benchmark_is_one_sentence_and_leaves_nothing(
    overrides: list[str], said: str, photographs: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        download.run(compose(str(photographs), *overrides), "benchmarks", tmp_path / "benchmarks")
    assert not (tmp_path / "benchmarks").exists()


def test_an_artifact_of_another_kind_is_not_overwritten(photographs: Path, tmp_path: Path) -> None:
    download.run(compose(str(photographs)), "dataset", tmp_path / "raw")
    with pytest.raises(InputError, match="is a raw-dataset, not a benchmarks"):
        download.run(compose(str(photographs)), "benchmarks", tmp_path / "raw")
