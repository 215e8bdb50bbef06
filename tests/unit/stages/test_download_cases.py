"""Inputs that people really have, from the reference cases: each download does what its README calls right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma.data import conversations
from multimodal_gemma.data.benchmarks import load_pope, load_vqa
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import download
from tests.unit.data import making
from tests.unit.data.test_formats import VSFT, parquet


def dataset(case: Path, output: Path, *overrides: str) -> list[conversations.Conversation]:
    given = [f"data.conversations={case}/c.json", f"data.images={case}/img", *overrides]
    download.run(configuration.compose("sample", given), "dataset", output)
    return conversations.load(output)


@pytest.mark.parametrize(
    "case", ["01-line-separator-in-text", "04-jsonl", "08-image-one-element-list", "10-text-only-row", "26-too-long"]
)
def test_what_is_right_is_taken(case: str, shared: Path, tmp_path: Path) -> None:
    assert dataset(shared / "cases" / case, tmp_path / "raw")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("02-lone-surrogate-text", r"half of a character .* data.max_faulty_fraction"),
        ("06-huge-number", r"thousands of digits"),
        ("07-deep-nesting", r"nested too deeply"),
        ("09-two-image-tags", r"conversation \d+ \(id .*2 image tags"),
        ("11-gpt-first", r"does not start with a user.*data.max_faulty_fraction="),
        ("35-empty-answers", r"has an empty turn, so there is nothing to learn"),
    ],
)
def test_what_is_wrong_is_one_sentence(case: str, said: str, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        dataset(shared / "cases" / case, tmp_path / "raw")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "raw").exists()


def benchmarks(case: Path, output: Path, **places: str) -> None:
    given = {"pope": "", "vqa": "", "images": "val2014", **places}
    overrides = [f"benchmarks.{key}={case / place if place else ''}" for key, place in given.items()]
    download.run(configuration.compose("sample", overrides), "benchmarks", output)


def test_the_names_that_vqa_files_have_after_unzip_are_taken(shared: Path, tmp_path: Path) -> None:
    benchmarks(shared / "cases" / "18-vqa-official-file-names", tmp_path / "out", vqa="vqa")
    assert (tmp_path / "out" / "vqa" / "questions.json").is_file()


@pytest.mark.parametrize(
    ("case", "folder"),
    [("20-pope-separator", "pope"), *(("21-pope-variants", name) for name in ("caps", "jsonl_ext", "fewer"))],
)
def test_variants_of_pope_are_taken(case: str, folder: str, shared: Path, tmp_path: Path) -> None:
    benchmarks(shared / "cases" / case, tmp_path / "out", pope=folder)
    questions = [question for setting in load_pope(tmp_path / "out").values() for question in setting]
    assert questions
    assert {question.label for question in questions} <= {"yes", "no"}


@pytest.mark.parametrize(("folder", "said"), [("nolabel", "'label'"), ("two", "coco_pope_adversarial.json")])
def test_a_pope_folder_that_lacks_something_is_one_sentence(
    folder: str, said: str, shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        benchmarks(shared / "cases" / "21-pope-variants", tmp_path / "out", pope=folder)


def test_sets_are_mixed_by_their_shares_each_with_its_own_images(tmp_path: Path) -> None:
    """Equal names in two sets are two pictures; one set has its pictures inside, as llava-instruct-mix-vsft has."""
    for name, colour in (("one", 10), ("two", 200)):
        (tmp_path / name).mkdir()
        said = [making.conversation(f"{number}.jpg", (f"Q {name}", "A")) for number in range(8)]
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
        for number in range(8):
            (tmp_path / name / f"{number}.jpg").write_bytes(making.image_bytes((colour, number * 20, 5)))
    asked = [{"index": 0, "text": None, "type": "image"}, {"index": None, "text": "What?", "type": "text"}]
    answer = [{"index": None, "text": "A cat.", "type": "text"}]
    messages = [{"content": asked, "role": "user"}, {"content": answer, "role": "assistant"}]
    pictures = [{"bytes": making.image_bytes((5, 5, number * 20)), "path": None} for number in range(4)]
    (tmp_path / "vsft").mkdir()
    rows = [{"messages": messages, "images": [picture]} for picture in pictures]
    parquet(tmp_path / "vsft" / "train-00000-of-00001.parquet", rows, VSFT)
    sets = f"[{tmp_path}/one.json#3,{tmp_path}/two.json*0.5,{tmp_path}/vsft*2]"
    images = f"[{tmp_path}/one,{tmp_path}/two,'']"
    config = configuration.compose("sample", [f"data.conversations={sets}", f"data.images={images}"])
    summary = download.run(config, "dataset", tmp_path / "raw")
    kept = conversations.load(tmp_path / "raw")
    table = json.loads((tmp_path / "raw" / conversations.SETS).read_text())
    assert {name: (entry["given"], entry["kept"], entry["not_drawn"]) for name, entry in table.items()} == {
        "one": (8, 3, 5),
        "two": (8, 4, 4),
        "vsft": (4, 8, 0),
    }
    assert not any(entry["dropped"] for entry in table.values())
    assert summary.numbers["images"] == 3 + 4 + 4
    shards = ImageShards(tmp_path / "raw")
    for item in kept:
        assert item.image is not None
        if item.set != "vsft":
            folder, _, name = item.image.partition("/")
            assert folder == item.set
            assert shards.read(item.image) == (tmp_path / folder / name).read_bytes()
        else:
            assert shards.read(item.image) in [picture["bytes"] for picture in pictures]
    again = download.run(config, "dataset", tmp_path / "again")
    assert again.digest == summary.digest


@pytest.mark.parametrize(
    ("share", "said"),
    [
        *(
            (share, "which is no share")
            for share in ("*-1", "*nan", "*inf", "#-1", "*1e3", "#", "*2.", "#3*2", "*1001")
        ),
        ("#" + "9" * 5_000, "which is no share"),
        ("*0", "asks for nothing"),
        ("#00", "asks for nothing"),
        ("*0.001", "draw none of 2"),
    ],
)
def test_a_share_that_is_none_is_one_sentence(share: str, said: str, tmp_path: Path) -> None:
    """And never a sentence about a file of that name, or memory for a thousand million copies."""
    path = tmp_path / "set.json"
    path.write_text(json.dumps([making.conversation(None, ("Q", "A")), making.conversation(None, ("R", "B"))]))
    with pytest.raises(InputError, match=said) as caught:
        download.run(
            configuration.compose("sample", [f"data.conversations={path}{share}"]), "dataset", tmp_path / "raw"
        )
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "raw").exists()


def test_a_published_column_called_set_is_none_of_ours(tmp_path: Path) -> None:
    """Else a row of the second set would be looked for among the images of the first."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(making.image_bytes((len(name), ord(name[0]), 5)))
        rows = [{**making.conversation("a.jpg", (f"Q {name}", "A")), "set": "train\ud800"}]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    sets, images = (f"[{tmp_path}/one{end},{tmp_path}/two{end}]" for end in (".json", ""))
    overrides = [f"data.conversations={sets}", f"data.images={images}"]
    download.run(configuration.compose("sample", overrides), "dataset", tmp_path / "raw")
    shards = ImageShards(tmp_path / "raw")
    for item in conversations.load(tmp_path / "raw"):
        assert item.image == f"{item.set}/a.jpg"
        assert shards.read(item.image) == (tmp_path / item.set / "a.jpg").read_bytes()


def test_annotations_of_a_part_of_the_questions_are_one_sentence(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"question \d+ is in .*but not in .*Give two files of the same release"):
        benchmarks(shared / "cases" / "23-vqa-subset", tmp_path / "out", vqa="vqa")


def test_a_separator_within_a_question_of_vqa_is_kept(shared: Path, tmp_path: Path) -> None:
    benchmarks(shared / "cases" / "19-vqa-separator-in-question", tmp_path / "out", vqa="vqa")
    assert any("\x85" in question.question or "\u2028" in question.question for question in load_vqa(tmp_path / "out"))
