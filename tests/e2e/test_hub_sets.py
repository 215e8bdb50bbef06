"""Published sets as they lie on the hub, made small: Parquet with pictures inside, learnt from without a conversion."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import summary_of
from tests.unit.data.serving import COMMIT, Server, serve

Run = Callable[..., "subprocess.CompletedProcess[str]"]
TAG = "<image>"
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # how `datasets` stores a list of images
PART = pa.struct([("index", pa.int64()), ("text", pa.string()), ("type", pa.string())])
# The features of HuggingFaceH4/llava-instruct-mix-vsft, from its dataset card.
VSFT = pa.schema(
    [("messages", pa.list_(pa.struct([("content", pa.list_(PART)), ("role", pa.string())]))), ("images", IMAGES)]
)
# The columns of HuggingFaceM4/FineVision, as `load_dataset` lists them.
RATED = ("relevance", "image_correspondence", "visual_dependency", "formatting")
FINEVISION = pa.schema(
    [
        ("images", IMAGES),
        ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
        ("source", pa.string()),
        *(
            column
            for name in RATED
            for column in ((f"{name}_ratings", pa.list_(pa.int64())), (f"{name}_min", pa.int64()))
        ),
    ]
)


def vsft_row(item: dict[str, Any], photograph: bytes) -> dict[str, Any]:
    """Every turn is a list of parts; the first holds its picture's index behind or before the question."""
    messages = []
    for turn in item["conversations"]:
        words = turn["value"].replace(TAG, "").strip("\n")
        parts = [{"index": None, "text": words, "type": "text"}]
        if TAG in turn["value"]:
            parts.append({"index": 0, "text": None, "type": "image"})
        messages.append({"content": parts, "role": {"human": "user", "gpt": "assistant"}[turn["from"]]})
    return {"messages": messages, "images": [{"bytes": photograph, "path": None}]}


def finevision_row(item: dict[str, Any], photograph: bytes) -> dict[str, Any]:
    said = [turn["value"].replace(TAG, "").strip("\n") for turn in item["conversations"]]
    texts = [{"user": user, "assistant": answer} for user, answer in zip(said[::2], said[1::2], strict=True)]
    ratings = {f"{name}_ratings": [5] * len(texts) for name in RATED} | {f"{name}_min": 5 for name in RATED}
    named = {"bytes": photograph, "path": item["image"]}
    return {"images": [named], "texts": texts, "source": "sharegpt4v(coco)", **ratings}


def packed(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    path = folder / "one.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=10)
    return path.read_bytes()


@pytest.fixture(scope="module")
def hub(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    sample, scratch = shared / "coco-sample", tmp_path_factory.mktemp("hub")
    given = json.loads((sample / "llava_instruct_sample.json").read_text())
    photographs = {item["image"]: (sample / "train2017" / item["image"]).read_bytes() for item in given}
    half = len(given) // 2
    vsft = [vsft_row(item, photographs[item["image"]]) for item in given[:half]]
    rated = [finevision_row(item, photographs[item["image"]]) for item in given[half:]]
    with serve() as server:
        content = {
            "data/train-00000-of-00002.parquet": packed(scratch, vsft[:20], VSFT),
            "data/train-00001-of-00002.parquet": packed(scratch, vsft[20:], VSFT),
            "data/test-00000-of-00001.parquet": packed(scratch, vsft[:1], VSFT),
        }
        server.add_hub_repository("datasets", "HuggingFaceH4/llava-instruct-mix-vsft", "main", content, "cc-by-4.0")
        content = {
            "sharegpt4v(coco)/train-00000-of-00001.parquet": packed(scratch, rated, FINEVISION),
            "ai2d_merged/train-00000-of-00001.parquet": b"another subset, which nobody asked for",
        }
        server.add_hub_repository("datasets", "HuggingFaceM4/FineVision", "main", content)
        yield server


@pytest.fixture(scope="module")
def summary(hub: Server, shared: Path, tmp_path_factory: pytest.TempPathFactory, mmgemma: Run) -> dict[str, Any]:
    runs, sample = tmp_path_factory.mktemp("sets") / "runs", shared / "coco-sample"
    sets = "hf://datasets/HuggingFaceH4/llava-instruct-mix-vsft,hf://datasets/HuggingFaceM4/FineVision/sharegpt4v(coco)"
    done = mmgemma(
        "run",
        "--preset=sample",
        f"--runs={runs}",
        f"data.conversations=[{sets}]",
        "data.images=",
        "data.validation_fraction=0.2",
        "training.epochs=1",
        "training.sample_images=0",
        f"benchmarks.pope={sample / 'pope'}",
        f"benchmarks.vqa={sample / 'vqa'}",
        f"benchmarks.images={sample / 'train2017'}",
        "registry.floors=null",
        HF_ENDPOINT=hub.url,
        HF_HOME=str(tmp_path_factory.mktemp("cache")),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return summary_of(runs)


def artifact(summary: dict[str, Any], kind: str) -> Path:
    found = Path(summary["report"]).parent.rglob("manifest.json")
    return next(path.parent for path in found if json.loads(path.read_text())["kind"] == kind)


def test_every_row_of_both_layouts_is_learnt_from(summary: dict[str, Any]) -> None:
    sets = json.loads((artifact(summary, "raw-dataset") / "sets.json").read_text())
    assert {name: (entry["given"], entry["kept"], entry["dropped"]) for name, entry in sets.items()} == {
        "llava-instruct-mix-vsft": (36, 36, {}),
        "sharegpt4v(coco)": (36, 36, {}),
    }
    counts = json.loads((artifact(summary, "processed-dataset") / "manifest.json").read_text())["counts"]
    assert counts["train"] + counts["val"] == 72
    assert counts["val"] > 0


def test_what_is_read_are_the_published_conversations(summary: dict[str, Any], shared: Path) -> None:
    given = json.loads((shared / "coco-sample" / "llava_instruct_sample.json").read_text())
    lines = (artifact(summary, "raw-dataset") / "conversations.jsonl").read_text().splitlines()
    assert len(lines) == len(given)
    for wanted, line in zip(given, map(json.loads, lines), strict=True):
        plain = [
            [turn["value"].replace(TAG, "").strip("\n") for turn in one["conversations"]] for one in (wanted, line)
        ]
        assert plain[0] == plain[1]
        assert sum(turn["value"].count(TAG) for turn in line["conversations"]) == 1


def test_a_photograph_that_both_sets_hold_is_kept_once(summary: dict[str, Any]) -> None:
    counts = json.loads((artifact(summary, "raw-dataset") / "manifest.json").read_text())["counts"]
    assert counts["images"] == 36
    assert counts["missing"] == 0


def test_the_report_states_revision_and_licence(summary: dict[str, Any]) -> None:
    text = (artifact(summary, "processed-dataset") / "report.html").read_text()
    assert COMMIT in text
    assert "hf://datasets/HuggingFaceM4/FineVision/sharegpt4v(coco)" in text
    assert "cc-by-4.0" in text
    assert "not stated" in text  # of the other, whose card says nothing


def test_a_version_is_registered_and_exported(summary: dict[str, Any]) -> None:
    assert summary["status"] == "succeeded"
    assert summary["registry"]["version"]
    assert (Path(summary["export"]) / "model" / "config.json").is_file()
