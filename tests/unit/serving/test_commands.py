"""The commands as a person types them: an answer, a gallery, or one sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from multimodal_gemma import cli, files
from multimodal_gemma.config.schema import Config
from multimodal_gemma.serving import ask
from tests.unit.evaluation import tiny

TINY = ("evaluation.device=cpu", "serving.max_new_tokens=8")


def test_ask_prints_the_answer(babbler: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", str(picture), "dog ?", "--model", str(babbler), "--quiet", *TINY]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\n")
    assert len(printed.split()) > 2


@pytest.mark.parametrize("damage", ["cut", "no weights", "no shard"])
def test_a_half_downloaded_model_is_one_sentence(
    damage: str, babbler: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(babbler, tmp_path / "model"))
    weights = model / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        weights.unlink()
    if damage == "no shard":
        shards = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
        files.write_json(model / "model.safetensors.index.json", shards)
    assert cli.main(["ask", str(picture), "dog ?", "--model", str(model), *TINY]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("mmgemma: model: ")
    assert "\n" not in error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for name, image in zip(("b.png", "a.jpg", "more/c.webp"), tiny.images(3), strict=True):
        image.save(place / name)
    (place / "notes.txt").write_text("not a picture")
    (place / "empty.jpg").write_bytes(b"")
    (place / ".hidden.jpg").write_bytes(b"")
    return place


def test_describe_answers_every_picture_and_says_what_it_skipped(
    babbler: Path, folder: Path, tmp_path: Path, config: Config
) -> None:
    from multimodal_gemma.serving.assistant import Assistant, Sampling

    made = ask.describe(config, str(babbler), folder, tmp_path / "out", question="dog ?")
    assert [json.loads(line) for line in (tmp_path / "out" / ask.ROWS).read_text().splitlines()] == made
    rows = {row["file"]: row for row in made}
    assert list(rows) == ["a.jpg", "b.png", "empty.jpg", "more/c.webp", "notes.txt"]
    assert rows["empty.jpg"]["skipped"] == "the file is empty."
    assert "none of JPEG" in rows["notes.txt"]["skipped"]
    alone = Assistant.load(str(babbler), config)
    for name, image in zip(("b.png", "more/c.webp"), (tiny.images(3)[0], None), strict=True):
        if image is not None:
            assert rows[name]["answer"] == alone.answer(image, "dog ?", Sampling(12))
    page = (tmp_path / "out" / ask.PAGE).read_text()
    assert page.count("<img") == 3
    assert "notes.txt" in page
    assert "<script" not in page


def test_describing_into_the_same_folder_again_finds_the_same_pictures(
    babbler: Path, folder: Path, config: Config
) -> None:
    first = ask.describe(config, str(babbler), folder, folder, question="dog ?")
    assert len(first) == 5
    assert ask.describe(config, str(babbler), folder, folder, question="dog ?") == first


@pytest.mark.parametrize("content", [{}, {"a.txt": b"words"}])
def test_a_folder_without_pictures_leaves_nothing_behind(
    content: dict[str, bytes], babbler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    for name, data in content.items():
        (place / name).write_bytes(data)
    out = tmp_path / "out"
    arguments = ["describe", str(place), "--model", str(babbler), "--output", str(out), *TINY, "--quiet"]
    assert cli.main(arguments) == 2
    assert "mmgemma: describe: " in capsys.readouterr().err
    assert not out.exists()


def test_names_that_are_no_utf8_are_described_and_told(babbler: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    tiny.images(1)[0].save(tmp_path / "picture.png")
    try:
        shutil.copyfile(tmp_path / "picture.png", os.fsencode(folder) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    output = tmp_path / "out"
    command = ["describe", str(folder), "--output", str(output), "--model", str(babbler), *TINY]
    assert cli.main(command) == 0
    (row,) = files.read_jsonl(output / "descriptions.jsonl", "descriptions")
    assert row["file"] == "caf\\xe9.png"
    assert "caf\\xe9.png" in (output / "index.html").read_text()
