"""A picture is its bytes: encoded once, and on one side of the split, whatever it is called."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from multimodal_gemma import config, files
from multimodal_gemma.config import Config
from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import preprocess
from tests.unit.data import making


def settings(*overrides: str) -> Config:
    return config.compose("sample", ["data.validation_fraction=0.3", *overrides])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.base_models(tmp_path_factory.mktemp("models") / "models")


@pytest.fixture(scope="module")
def photographs(shared: Path) -> dict[str, bytes]:
    paths = sorted((shared / "coco-sample" / "train2017").glob("*.jpg"))
    return {path.name: path.read_bytes() for path in paths}


def saved_again(content: bytes) -> bytes:
    """A copy at another quality and size: other bytes, the same picture."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    stream = io.BytesIO()
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(stream, "JPEG", quality=70)
    return stream.getvalue()


def sides(folder: Path) -> dict[str, set[int]]:
    dataset = ProcessedDataset(folder)
    return {name: set(dataset.split(name).image_indices.tolist()) - {-1} for name in ("train", "val")}


def test_one_photograph_under_two_names_is_stored_once_and_never_on_both_sides(
    photographs: dict[str, bytes], models: Path, tmp_path: Path
) -> None:
    """As GQA and Visual Genome name COCO's pictures anew."""
    images = photographs | {f"vg/{number}.jpg": body for number, body in enumerate(photographs.values())}
    source = making.raw_dataset(tmp_path / "raw", [making.conversation(name) for name in images], images)
    made = preprocess.run(settings(), source, models, None, tmp_path / "out")
    assert (made.numbers["images"], made.numbers["image_names"]) == (len(photographs), 2 * len(photographs))
    found = sides(tmp_path / "out")
    assert not found["train"] & found["val"]
    assert found["train"] | found["val"] == set(range(len(photographs)))
    assert found["val"]
    held = {name: ProcessedDataset(tmp_path / "out").split(name).image_ids for name in found}
    for number, name in enumerate(photographs):
        side = "val" if name.removesuffix(".jpg") in held["val"] else "train"
        assert f"vg/{number}.jpg" in held[side]


def test_near_copies_are_counted_and_stand_on_one_side(
    photographs: dict[str, bytes], models: Path, tmp_path: Path
) -> None:
    images = photographs | {f"small-{name}": saved_again(body) for name, body in photographs.items()}
    source = making.raw_dataset(tmp_path / "raw", [making.conversation(name) for name in images], images)
    made = preprocess.run(settings(), source, models, None, tmp_path / "out")
    assert made.numbers["images"] == made.numbers["near_copies"] == 2 * len(photographs)
    assert 0 < made.numbers["moved_near_copies"] <= len(photographs)
    held = {name: set(ProcessedDataset(tmp_path / "out").split(name).ids) for name in ("train", "val")}
    for name in photographs:
        assert any({name, f"small-{name}"} <= one for one in held.values()), name
    assert held["val"]
    assert "have near copies" in (tmp_path / "out" / "report.html").read_text()


def test_texts_without_a_picture_are_split_by_what_they_say(models: Path, tmp_path: Path) -> None:
    said = [
        making.conversation(None, ("How much?", f"It is {number % 40}."), identity=f"text{number}")
        for number in range(80)
    ]
    for number in range(40):  # of equal texts the second is another conversation, as its picture differs
        said[40 + number] = making.conversation(None, ("How much?", f"It is {number}."), identity=f"again{number}")
    source = making.raw_dataset(tmp_path / "raw", said, {})
    preprocess.run(settings(), source, models, None, tmp_path / "out")
    dataset = ProcessedDataset(tmp_path / "out")
    texts = {}
    for name in ("train", "val"):
        rows = dataset.split(name)
        texts[name] = {rows[row].input_ids.tobytes() for row in range(len(rows))}
    assert texts["val"]
    assert not texts["train"] & texts["val"]


def test_a_benchmarks_picture_is_found_under_all_of_its_names(
    photographs: dict[str, bytes], models: Path, tmp_path: Path
) -> None:
    """One name has COCO's digits, the other has none; the benchmark's own file is not there to compare looks with."""
    known, *_ = photographs
    images = photographs | {"holiday.jpg": photographs[known]}
    source = making.raw_dataset(tmp_path / "raw", [making.conversation(name) for name in images], images)
    asked = making.benchmarks(tmp_path / "benchmarks", [f"COCO_val2014_{known}"])
    with pytest.raises(InputError, match="are in the benchmarks"):
        preprocess.run(settings(), source, models, asked, tmp_path / "out")
    made = preprocess.run(settings("data.contamination=drop"), source, models, asked, tmp_path / "out")
    assert made.numbers["dropped_conversations_contaminated"] == 2
    assert made.numbers["images"] == len(photographs) - 1


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squeeze"])
def test_pictures_are_fitted_as_the_stock_processors_do_and_the_exported_one_says_so(
    photographs: dict[str, bytes], tmp_path: Path, kind: str, fit: str
) -> None:
    encoder = making.base_models(tmp_path / "models", kind=kind)
    few = dict(list(photographs.items())[:8])
    source = making.raw_dataset(tmp_path / "raw", [making.conversation(name) for name in few], few)
    preprocess.run(settings(f"data.image_fit={fit}", "data.split_seed=3"), source, encoder, None, tmp_path / "out")
    dataset = ProcessedDataset(tmp_path / "out")
    exported = dataset.processor().image_processor
    own = files.read_json(encoder / "vision" / "preprocessor_config.json", "processor")
    scale = {"image_mean": own["image_mean"], "image_std": own["image_std"], "resample": own["resample"]}
    square = {"height": 56, "width": 56}
    stock = {
        "crop": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=square, do_pad=False, **scale),
        "pad": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=square, do_pad=True, **scale),
        "squeeze": SiglipImageProcessorPil(size=square, **scale),
    }[fit]
    for index, name in enumerate(dataset.file_names):
        photograph = Image.open(io.BytesIO(few[name]))
        unscaled = stock(photograph, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(dataset.image(index), np.moveaxis(unscaled, 0, -1))
        wanted = stock(photograph, return_tensors="np")["pixel_values"]
        assert np.array_equal(exported(photograph, return_tensors="np")["pixel_values"], wanted)


def test_pixels_may_be_kept_as_jpeg(photographs: dict[str, bytes], tmp_path: Path) -> None:
    models = making.base_models(tmp_path / "models", image_size=224)
    few = dict(list(photographs.items())[:12])
    source = making.raw_dataset(tmp_path / "raw", [making.conversation(name) for name in few], few)
    for kept in ("raw", "jpeg"):
        preprocess.run(settings(f"data.pixels={kept}"), source, models, None, tmp_path / f"{kept}-out")
    raw, jpeg = (ProcessedDataset(tmp_path / f"{kept}-out") for kept in ("raw", "jpeg"))
    assert raw.file_names == jpeg.file_names
    for index in range(len(few)):
        apart = np.abs(raw.image(index).astype(int) - jpeg.image(index))
        assert 0 < apart.mean() < 3  # levels of 255
    sizes = [sum(path.stat().st_size for path in (data.folder / "pixels").iterdir()) for data in (raw, jpeg)]
    assert sizes[1] < sizes[0] / 3


def test_control_tokens_in_a_text_are_recorded(models: Path, tmp_path: Path, shared: Path) -> None:
    """Tokenized as they stand they would end a turn in the middle of a text."""
    case = shared / "cases" / "12-control-tokens-in-text"
    images = {path.name: path.read_bytes() for path in (case / "img").iterdir()}
    source = making.raw_dataset(tmp_path / "raw", json.loads((case / "c.json").read_text()), images)
    preprocess.run(settings("data.validation_fraction=0.5"), source, models, None, tmp_path / "out")
    (lost,) = files.read_jsonl(tmp_path / "out" / "dropped.jsonl", "dropped")
    assert (lost["id"], lost["kind"]) == ("c1", "control-token")
    assert "'<end_of_turn>', a control token of the language model" in lost["reason"]


def test_an_image_in_a_turn_that_is_cut_off_is_recorded(models: Path, tmp_path: Path, shared: Path) -> None:
    case = shared / "cases" / "26-too-long"
    images = {path.name: path.read_bytes() for path in (case / "img").iterdir()}
    source = making.raw_dataset(tmp_path / "raw", json.loads((case / "c.json").read_text()), images)
    with pytest.raises(InputError, match=r"zero usable conversations; all were dropped \(image-cut\)"):
        preprocess.run(settings("data.validation_fraction=0.5"), source, models, None, tmp_path / "out")
    lost = files.read_jsonl(tmp_path / "out" / "dropped.jsonl", "dropped")
    assert [row["kind"] for row in lost if row["what"] == "conversation"] == ["image-cut"] * 6


def test_odd_pictures_are_read_or_recorded_and_never_replaced(models: Path, tmp_path: Path, shared: Path) -> None:
    folders = ("13-png-large-metadata", "14-odd-pictures")
    paths = [path for folder in folders for path in (shared / "cases" / folder).iterdir() if path.suffix]
    images = {path.name: path.read_bytes() for path in paths}
    source = making.raw_dataset(tmp_path / "raw", [making.conversation(name) for name in sorted(images)], images)
    lenient = settings("data.max_missing_fraction=1", "data.validation_fraction=0")  # all show one picture
    preprocess.run(lenient, source, models, None, tmp_path / "out")
    lost = files.read_jsonl(tmp_path / "out" / "dropped.jsonl", "dropped")
    kinds = {row["image"]: row["kind"] for row in lost if row["what"] == "image"}
    unreadable = {"bomb.png": "too-large", "html.jpg": "not-an-image", "zero.jpg": "empty"}
    assert {name: kinds.get(name) for name in unreadable} == unreadable
    readable = {"apng.png", "cmyk.jpg", "exif6.jpg", "gif_as.jpg", "grey16.png", "la.png", "mpo.jpg", "webp.jpg"}
    assert readable | {"icc_large.png", "text_large.png"} <= set(ProcessedDataset(tmp_path / "out").file_names)
    assert not readable & set(kinds)
