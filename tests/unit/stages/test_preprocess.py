from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaProcessor

from multimodal_gemma import config, files, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.data.shards import ImageShards, write_image_shards
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import preprocess
from multimodal_gemma.stages.summary import Summary
from tests.unit.data import making

NAMES = [f"{number:012d}.jpg" for number in range(1, 41)]


def settings(*overrides: str) -> Config:
    return config.compose("sample", ["data.validation_fraction=0.2", *overrides])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.base_models(tmp_path_factory.mktemp("models") / "models")


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw dataset of the reference photographs."""
    folder = shared / "coco-sample"
    conversations = json.loads((folder / "llava_instruct_sample.json").read_text())
    images = {entry["image"]: (folder / "train2017" / entry["image"]).read_bytes() for entry in conversations}
    return making.raw_dataset(tmp_path_factory.mktemp("raw") / "raw", conversations, images)


@pytest.fixture(scope="module")
def made(photographs: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """What preprocess makes of the reference photographs."""
    return preprocess.run(config.compose("sample"), photographs, models, None, tmp_path_factory.mktemp("made") / "out")


def raw(folder: Path, **replaced: bytes) -> Path:
    """A raw dataset of one-colour images, some of them replaced by other bytes."""
    images = making.pictures(NAMES)
    conversations = [making.conversation(name) for name in images]
    images.update({f"{int(key.removeprefix('image_')):012d}.jpg": content for key, content in replaced.items()})
    return making.raw_dataset(folder, conversations, images)


def dropped(output: Path) -> list[dict[str, Any]]:
    return files.read_jsonl(output / "dropped.jsonl", "dropped")


def test_the_photographs_become_a_dataset_that_training_can_read(made: Summary, shared: Path) -> None:
    """72 conversations on 36 photographs, split by image, with the pixels of the stock image processor."""
    dataset = ProcessedDataset(made.folder)
    train, val = dataset.split("train"), dataset.split("val")
    assert len(train) + len(val) == 72
    assert dataset.image_count == 36
    assert len(val) > 0
    assert not set(train.image_ids) & set(val.image_ids)
    assert made.numbers["train"] == len(train)
    assert made.digest == dataset.manifest.digest
    assert (dataset.image_size, dataset.image_tokens) == (56, 16)
    assert dropped(made.folder) == []
    manifest.verify(made.folder, "processed-dataset")

    processor = dataset.processor()
    assert isinstance(processor, LlavaProcessor)
    for index in (0, 17, 35):
        photograph = Image.open(shared / "coco-sample" / "train2017" / dataset.file_names[index])
        stock = processor.image_processor(photograph, do_rescale=False, do_normalize=False, return_tensors="np")
        assert np.array_equal(dataset.image(index), np.moveaxis(stock["pixel_values"][0], 0, -1))
    for row in range(len(train)):
        sample = train[row]
        assert f"{train.image_ids[row]}.jpg" == dataset.file_names[sample.image_index]
        assert sample.supervised.any()


def test_the_report_is_small_and_the_statistics_are_for_machines(made: Summary) -> None:
    assert (made.folder / "report.html").stat().st_size < 2_000_000
    statistics = json.loads((made.folder / "statistics.json").read_text())
    assert sum(split["conversations"] for split in statistics["splits"].values()) == 72
    assert statistics["images"]["formats"] == {"JPEG": 36}


def test_a_finished_dataset_is_not_made_again(tmp_path: Path, models: Path) -> None:
    made = preprocess.run(settings(), raw(tmp_path / "raw"), models, None, tmp_path / "out")
    (shard,) = (tmp_path / "out" / "pixels").glob("*.arrow")
    before = shard.stat().st_mtime_ns
    again = preprocess.run(settings(), tmp_path / "raw", models, None, tmp_path / "out")
    assert (made.cached, again.cached) == (False, True)
    assert again.digest == made.digest
    assert again.numbers == {name: count for name, count in made.numbers.items() if "items" not in name}
    assert shard.stat().st_mtime_ns == before


def test_worker_processes_change_nothing(tmp_path: Path, models: Path) -> None:
    source = raw(tmp_path / "raw", image_3=b"not an image")
    runs = [
        preprocess.run(
            settings(f"data.workers={workers}", "data.max_missing_fraction=0.1"),
            source,
            models,
            None,
            tmp_path / f"out{workers}",
        )
        for workers in (1, 2)
    ]
    assert runs[0].digest == runs[1].digest


def test_odd_but_good_images_simply_work(tmp_path: Path, models: Path) -> None:
    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    rotated = Image.Exif()
    rotated[0x0112] = 6
    red = Image.new("RGB", (60, 40), (250, 10, 10))
    source = raw(
        tmp_path / "raw",
        image_1=encoded(red.convert("CMYK"), "JPEG"),
        image_2=encoded(red.quantize(4), "PNG", transparency=0),
        image_3=encoded(Image.fromarray(np.full((40, 60), 40_000, np.uint16)), "PNG"),
        image_4=encoded(red, "JPEG", exif=rotated),
        image_5=encoded(Image.new("RGB", (1, 1), (250, 10, 10)), "PNG"),
    )
    preprocess.run(settings(), source, models, None, tmp_path / "out")
    dataset = ProcessedDataset(tmp_path / "out")
    assert dataset.image_count == 40
    assert dropped(tmp_path / "out") == []
    for index in (0, 1, 3, 4):  # red, give or take the file's compression
        assert np.abs(dataset.image(index).astype(int) - [250, 10, 10]).max() < 10
    assert np.abs(dataset.image(2).astype(int) - 40_000 // 257).max() <= 1


def test_bad_images_are_recorded_with_their_conversations_and_never_replaced(tmp_path: Path, models: Path) -> None:
    source = raw(
        tmp_path / "raw",
        image_1=b"",
        image_2=b"<html>404 Not Found</html>",
        image_3=making.image_bytes(size=(300, 300))[:500],
        image_4=making.image_bytes(size=(60_000, 1)),
    )
    summary = preprocess.run(settings("data.max_missing_fraction=0.1"), source, models, None, tmp_path / "out")
    rows = dropped(tmp_path / "out")
    kinds = dict(zip(NAMES, ("empty", "not-an-image", "corrupt", "too-large"), strict=False))
    assert {row["id"]: row["kind"] for row in rows if row["what"] == "image"} == kinds
    lost = {row["image"]: row["kind"] for row in rows if row["what"] == "conversation"}
    assert lost == {name: f"image-{kind}" for name, kind in kinds.items()}
    dataset = ProcessedDataset(tmp_path / "out")
    assert sorted(dataset.file_names) == NAMES[4:]
    assert len(dataset.split("train")) + len(dataset.split("val")) == 36
    assert summary.numbers["lost_images"] == 4
    assert summary.numbers["dropped_conversations"] == 4


def test_more_lost_images_than_allowed_is_a_sentence_with_the_list(tmp_path: Path, models: Path) -> None:
    """What download could not have and what cannot be decoded count together."""
    images = making.pictures(NAMES[:38]) | {NAMES[0]: b"broken"}
    source = making.raw_dataset(
        tmp_path / "raw", [making.conversation(name) for name in NAMES], images, {NAMES[38]: "404"}
    )
    with pytest.raises(InputError) as caught:
        preprocess.run(settings("data.max_missing_fraction=0.07"), source, models, None, tmp_path / "out")
    sentence = str(caught.value)
    assert sentence.startswith(
        "preprocess: 3 of 40 images cannot be used (7.50%, allowed 7.00%). First: 000000000001.jpg"
    )
    assert "data.max_missing_fraction=0.075" in sentence
    assert not (tmp_path / "out" / manifest.NAME).exists()
    reasons = {item["image"]: item["reason"] for item in dropped(tmp_path / "out") if item["what"] == "image"}
    assert reasons[NAMES[38]] == "404"
    assert reasons[NAMES[39]] == "it is not in the raw dataset"
    preprocess.run(settings("data.max_missing_fraction=0.075"), source, models, None, tmp_path / "out")


def test_conversations_that_are_too_long_are_cut_or_dropped_and_counted(tmp_path: Path, models: Path) -> None:
    long = "many words " * 60
    conversations = [making.conversation(name) for name in NAMES]
    conversations.append(making.conversation(NAMES[0], ("Why?", "So."), ("Why?", long), identity="cut"))
    conversations.append(making.conversation(NAMES[1], ("Why?", long), identity="too long"))
    source = making.raw_dataset(tmp_path / "raw", conversations, making.pictures(NAMES))
    summary = preprocess.run(settings("data.max_text_tokens=60"), source, models, None, tmp_path / "out")
    kinds = {(item["what"], item["id"], item["kind"]) for item in dropped(tmp_path / "out")}
    assert kinds == {("turns", "cut", "cut"), ("conversation", "too long", "too-long")}
    assert summary.numbers["cut_conversations"] == 1
    assert summary.numbers["dropped_conversations_too_long"] == 1


def test_text_only_conversations_are_kept(tmp_path: Path, models: Path) -> None:
    conversations = [making.conversation(name) for name in NAMES] + [making.conversation(None, ("Hi.", "Hello."))]
    source = making.raw_dataset(tmp_path / "raw", conversations, making.pictures(NAMES))
    preprocess.run(settings(), source, models, None, tmp_path / "out")
    dataset = ProcessedDataset(tmp_path / "out")
    assert sum((dataset.split(name).image_indices == -1).sum() for name in ("train", "val")) == 1


def test_a_siglip_encoder_is_a_matter_of_configuration(tmp_path: Path) -> None:
    siglip = making.base_models(tmp_path / "models", kind="siglip")
    preprocess.run(settings(), raw(tmp_path / "raw"), siglip, None, tmp_path / "out")
    assert ProcessedDataset(tmp_path / "out").image_tokens == 16


@pytest.mark.parametrize("asked", [{"images": [f"COCO_val2014_{NAMES[4]}"]}, {"images": ["x.jpg"], "vqa_ids": (5,)}])
def test_an_image_that_a_benchmark_asks_about_stops_the_run(
    tmp_path: Path, models: Path, asked: dict[str, Any]
) -> None:
    """Under whatever name: COCO_val2014_000000000005.jpg and 000000000005.jpg are one photograph."""
    benchmarks = making.benchmarks(tmp_path / "benchmarks", **asked)
    with pytest.raises(InputError, match=r"1 of 40 images of the dataset are in the benchmarks \(000000000005\)"):
        preprocess.run(settings(), raw(tmp_path / "raw"), models, benchmarks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_contaminated_images_are_dropped_on_request(tmp_path: Path, models: Path) -> None:
    benchmarks = making.benchmarks(tmp_path / "benchmarks", [f"COCO_val2014_{NAMES[4]}", "COCO_val2014_x.jpg"])
    settings_ = settings("data.contamination=drop")
    summary = preprocess.run(settings_, raw(tmp_path / "raw"), models, benchmarks, tmp_path / "out")
    dataset = ProcessedDataset(tmp_path / "out")
    assert "000000000005" not in {*dataset.split("train").image_ids, *dataset.split("val").image_ids}
    assert dataset.image_count == 39
    assert dataset.manifest.facts["contamination"] == {
        "status": "clean",
        "images": ["000000000005"],
        "lookalikes": {},
        "dropped": True,
    }
    assert dataset.manifest.inputs["benchmarks"] == manifest.read(benchmarks).digest
    assert [item["kind"] for item in dropped(tmp_path / "out")] == ["contaminated"]
    assert summary.facts["contamination"] == "clean"


def test_contaminated_images_that_are_allowed_are_said(tmp_path: Path, models: Path) -> None:
    benchmarks = making.benchmarks(tmp_path / "benchmarks", [NAMES[4]])
    settings_ = settings("data.contamination=allow")
    summary = preprocess.run(settings_, raw(tmp_path / "raw"), models, benchmarks, tmp_path / "out")
    assert summary.facts["contamination"] == "allowed"
    assert summary.numbers["contaminated_images"] == 1
    assert summary.numbers["images"] == 40


def test_without_benchmarks_contamination_is_unknown(tmp_path: Path, models: Path) -> None:
    summary = preprocess.run(settings(), raw(tmp_path / "raw"), models, None, tmp_path / "out")
    assert summary.facts["contamination"] == "unknown"


def test_zero_usable_conversations_is_a_sentence(tmp_path: Path, models: Path) -> None:
    conversations = [making.conversation(name, ("Why?", " ")) for name in NAMES]
    source = making.raw_dataset(tmp_path / "raw", conversations, making.pictures(NAMES))
    with pytest.raises(InputError, match=r"zero usable conversations; all were dropped \(no-answer\)"):
        preprocess.run(settings(), source, models, None, tmp_path / "out")
    assert len(dropped(tmp_path / "out")) == 40


def test_a_photograph_under_another_name_is_recognised(photographs: Path, models: Path, tmp_path: Path) -> None:
    """Saved again at another quality and size, under a name without digits."""
    shards = ImageShards(photographs)
    known = shards.names()[3]
    picture = Image.open(io.BytesIO(shards.read(known))).convert("RGB")
    stream = io.BytesIO()
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(stream, "JPEG", quality=70)
    asked = making.benchmarks(tmp_path / "benchmarks", ["holiday.jpg"])
    write_image_shards(asked, [("holiday.jpg", stream.getvalue())])
    with pytest.raises(InputError, match=f"1 images of the dataset show pictures .*{known} is holiday.jpg"):
        preprocess.run(config.compose("sample"), photographs, models, asked, tmp_path / "out")
    drop = config.compose("sample", ["data.contamination=drop"])
    summary = preprocess.run(drop, photographs, models, asked, tmp_path / "out")
    assert (summary.numbers["lookalike_images"], summary.numbers["images"]) == (1, 35)
    assert summary.facts["contamination"] == "clean"
    assert {item["kind"] for item in dropped(tmp_path / "out")} == {"contaminated"}
    assert known not in ProcessedDataset(tmp_path / "out").file_names
    allow = config.compose("sample", ["data.contamination=allow"])
    assert preprocess.run(allow, photographs, models, asked, tmp_path / "allowed").facts["contamination"] == "allowed"


def test_no_two_reference_photographs_look_alike(photographs: Path, models: Path, tmp_path: Path, shared: Path) -> None:
    asked = making.benchmarks(tmp_path / "benchmarks", ["x.jpg"])
    own = set(ImageShards(photographs).names())
    others = sorted(path for path in (shared / "coco-sample" / "train2017").iterdir() if path.name not in own)
    write_image_shards(asked, [(f"other-{number:03d}", path.read_bytes()) for number, path in enumerate(others)])
    summary = preprocess.run(config.compose("sample"), photographs, models, asked, tmp_path / "out")
    assert (summary.numbers["lookalike_images"], summary.facts["contamination"]) == (0, "clean")


def test_what_download_left_out_is_in_the_report_and_in_the_counts(tmp_path: Path, models: Path) -> None:
    source = raw(tmp_path / "raw")
    lost = {"no-turns": {"count": 7, "examples": [{"index": 3, "id": "<c3>", "reason": "has no turns"}]}}
    told = {"given": 50, "kept": 40, "not_drawn": 3, "dropped": lost}
    other = {"given": 1, "kept": 0, "not_drawn": 1, "dropped": {}}
    files.write_json(source / "sets.json", {"": told, "captions": other})
    manifest.write(source, "raw-dataset", config={})
    made = preprocess.run(settings(), source, models, None, tmp_path / "out")
    assert made.numbers["dropped_conversations_no_turns"] == made.numbers["dropped_conversations"] == 7
    assert made.numbers["not_drawn_conversations"] == 4
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["dropped"] == [
        {
            "what": "conversation",
            "kind": "no-turns",
            "count": 7,
            "examples": [{"id": "<c3>", "image": "", "reason": "has no turns"}],
        }
    ]
    first, second = statistics["sets"]
    assert (first["given"], first["not_drawn"], first["train"] + first["val"]) == (50, 3, 40)
    assert (second["set"], second["train"] + second["val"]) == ("captions", 0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no-turns" in page
    assert "&lt;c3&gt;" in page
    assert "captions" in page


def test_a_shard_that_was_edited_by_hand_is_a_sentence(tmp_path: Path, models: Path) -> None:
    source = raw(tmp_path / "raw")
    content = bytearray((source / "images-00000.parquet").read_bytes())
    content[200] ^= 1
    (source / "images-00000.parquet").write_bytes(content)
    with pytest.raises(InputError, match="images-00000.parquet differs from its sha256 in the manifest"):
        preprocess.run(settings(), source, models, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_a_newer_schema_is_a_sentence(tmp_path: Path, models: Path) -> None:
    source = raw(tmp_path / "raw")
    value = json.loads((source / manifest.NAME).read_text())
    (source / manifest.NAME).write_text(json.dumps({**value, "schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99, newer than the 1 known here. Update multimodal-gemma"):
        preprocess.run(settings(), source, models, None, tmp_path / "out")


def test_a_validation_split_of_zero_images_is_a_sentence(tmp_path: Path, models: Path) -> None:
    few = settings("data.validation_fraction=0.0001")
    with pytest.raises(InputError, match=r"validation split has zero images: data\.validation_fraction=0\.0001"):
        preprocess.run(few, raw(tmp_path / "raw"), models, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistake_leaves_the_finished_dataset_as_it_was(tmp_path: Path, models: Path) -> None:
    source = raw(tmp_path / "raw")
    made = preprocess.run(settings(), source, models, None, tmp_path / "out")
    with pytest.raises(InputError, match="validation split"):
        preprocess.run(settings("data.validation_fraction=0.0001"), source, models, None, tmp_path / "out")
    assert manifest.verify(tmp_path / "out").digest == made.digest


def test_a_fraction_of_zero_asks_for_no_validation(tmp_path: Path, models: Path) -> None:
    summary = preprocess.run(
        settings("data.validation_fraction=0"), raw(tmp_path / "raw"), models, None, tmp_path / "out"
    )
    assert (summary.numbers["train"], summary.numbers["val"]) == (40, 0)


def test_an_input_of_another_kind_is_a_sentence(tmp_path: Path, models: Path) -> None:
    with pytest.raises(InputError, match="is a base-models, not a raw-dataset"):
        preprocess.run(settings(), models, models, None, tmp_path / "out")


def test_a_folder_with_other_things_is_not_emptied(tmp_path: Path, models: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis.txt', which is no part of a processed dataset"):
        preprocess.run(settings(), raw(tmp_path / "raw"), models, None, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path: Path, models: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        preprocess.run(settings(), raw(tmp_path / "raw"), models, None, tmp_path / "file" / "out")
