"""What is shown of a dataset is what the model reads and learns, token by token."""

from __future__ import annotations

import re

import numpy as np
import pytest

from multimodal_gemma import cli, config, files
from multimodal_gemma.data import report
from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.stages import preprocess
from tests.unit.data import making

NAMES = [f"{number:012d}.jpg" for number in range(1, 31)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ProcessedDataset:
    folder = tmp_path_factory.mktemp("look")
    models = making.base_models(folder / "models")
    said = [making.conversation(name, ("What is it?", "A <b>box</b>."), ("Sure?", "Yes.")) for name in NAMES]
    said.append(making.conversation(None, ("Hi.", "Hello."), identity="text"))
    raw = making.raw_dataset(folder / "raw", said, making.pictures(NAMES))
    told = {"conversations": {"uri": "hf://datasets/a/b", "commit": "abc123", "licence": "cc-by-4.0"}}
    files.write_json(raw / "sources.json", {"sources": {**told, "images": {"uri": "s3://bucket/images"}}})
    preprocess.run(config.compose("sample", ["data.validation_fraction=0.3"]), raw, models, None, folder / "out")
    return ProcessedDataset(folder / "out")


def test_the_pieces_are_all_tokens_and_the_learnt_ones_are_the_answers(dataset: ProcessedDataset) -> None:
    seen = report.look(dataset, report.tokenizer_of(dataset), "train", 0)
    read = "".join(piece.text for piece in seen.pieces)
    assert read.startswith("<bos><start_of_turn>user\n[image: 16 positions]\nWhat is it?<end_of_turn>\n")
    learnt = "|".join(piece.text for piece in seen.pieces if piece.learnt)
    assert learnt == "A <b>box</b>.|<end_of_turn>|Yes.|<end_of_turn>"
    sample = dataset.split("train")[0]
    assert seen.learnt == sample.supervised.sum()
    assert seen.positions == len(sample.input_ids) - 1 + 16
    assert seen.picture is not None
    assert np.array_equal(seen.picture, dataset.image(sample.image_index))


def test_the_report_shows_twelve_conversations_and_where_they_come_from(dataset: ProcessedDataset) -> None:
    page = (dataset.folder / "report.html").read_text()
    assert page.count("class='talk'") == 12
    assert "<span class='learnt'>A &lt;b&gt;box&lt;/b&gt;.</span>" in page
    assert "<b>box" not in page
    shown = set(re.findall(r"(?:train|val) \d+, id ([^,]+),", page))
    assert len(shown) == 12
    held = set(dataset.split("val").ids)
    assert len(shown & held) == 2
    sources = page[page.index("Sources") : page.index("Conversations</h2>")]
    for text in ("hf://datasets/a/b", "abc123", "cc-by-4.0", "s3://bucket/images", "not stated"):
        assert text in sources


def test_show_prints_a_conversation_and_marks_what_is_learnt(
    dataset: ProcessedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(dataset.folder), "1", "--split=val"]) == 0
    said = capsys.readouterr().out
    assert f"val 1   id {dataset.split('val').ids[1]}" in said
    assert "⟦A <b>box</b>.<end_of_turn>⟧" in said
    assert "⟦Yes.<end_of_turn>⟧" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("row", ["400", "-1"])
def test_a_row_that_is_not_there_is_a_sentence(
    dataset: ProcessedDataset, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    assert cli.main(["show", str(dataset.folder), "--", row]) == 2
    assert f"so no row {row}. They begin at 0." in capsys.readouterr().err
