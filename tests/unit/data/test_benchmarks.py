"""POPE and VQA v2 as published: read whole, and a faulty file is refused before a model is scored on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma.data.benchmarks import draw_vqa, load_pope, load_vqa, vqa_file_name
from multimodal_gemma.errors import InputError


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    for part in ("pope", "vqa"):
        shutil.copytree(shared / "coco-sample" / part, tmp_path / part)
    return tmp_path


def edit(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_photograph_sample_is_read_whole(folder: Path) -> None:
    pope = load_pope(folder)
    assert {setting: len(questions) for setting, questions in pope.items()} == {
        "random": 110,
        "popular": 110,
        "adversarial": 110,
    }
    vqa = load_vqa(folder)
    assert len(vqa) == 97
    assert vqa[0].question == "How many backpacks are in the image?"
    assert (vqa[0].image, vqa[0].image_id) == ("000000079841.jpg", "000000079841")
    assert vqa[0].answers == ["2"] * 7 + ["3"] * 2 + ["1"]
    assert (vqa[0].answer_type, vqa[0].question_type) == ("number", "how many")


def test_the_published_pope_files_are_read_whole(shared: Path) -> None:
    pope = load_pope(shared)
    assert [len(questions) for questions in pope.values()] == [3000, 3000, 3000]
    assert len({question.image for questions in pope.values() for question in questions}) == 500


def test_a_benchmark_that_was_left_out_is_empty(tmp_path: Path) -> None:
    assert load_pope(tmp_path) == {}
    assert load_vqa(tmp_path) == []


def test_images_of_2014_have_the_name_of_their_release(folder: Path) -> None:
    edit(folder / "vqa" / "questions.json", lambda document: document.update(data_subtype="val2014"))
    assert load_vqa(folder)[0].image == "COCO_val2014_000000079841.jpg"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "maybe"}, "label 'maybe'"),
        ({"question_id": 1, "text": "Is it?", "label": "yes"}, "no 'image' of type str"),
        ({"question_id": 1, "image": "a.jpg", "text": "<image> Is it?", "label": "yes"}, "<image>"),
        ({"question_id": "1", "image": "a.jpg", "text": "Is it?", "label": "yes"}, "no 'question_id' of type int"),
    ],
)
def test_a_faulty_pope_line_is_a_sentence(folder: Path, line: dict[str, Any], said: str) -> None:
    (folder / "pope" / "coco_pope_popular.json").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=f"question 1 of .*popular.json has .*{said}"):
        load_pope(folder)


def test_a_repeated_pope_id_is_a_sentence(folder: Path) -> None:
    path = folder / "pope" / "coco_pope_random.json"
    path.write_text(path.read_text().splitlines()[0] + "\n" + path.read_text())
    with pytest.raises(InputError, match="stands twice"):
        load_pope(folder)


def test_an_absent_or_empty_pope_file_is_a_sentence(folder: Path) -> None:
    (folder / "pope" / "coco_pope_random.json").write_text("")
    with pytest.raises(InputError, match="holds no question"):
        load_pope(folder)
    (folder / "pope" / "coco_pope_random.json").unlink()
    with pytest.raises(InputError, match="does not exist"):
        load_pope(folder)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("annotations", lambda d: d["annotations"].pop(), "is in .*questions.json but not in .*annotations.json"),
        ("questions", lambda d: d["questions"].pop(), "is in .*annotations.json but not in .*questions.json"),
        ("questions", lambda d: d["questions"].append(d["questions"][0]), "stands twice"),
        ("questions", lambda d: d["questions"][0].update(question="<image>\nWhat?"), "has <image> in its text"),
        ("questions", lambda d: d.pop("questions"), "holds no list 'questions'"),
        ("annotations", lambda d: d["annotations"][0].update(answers=[]), "no list of answers"),
        ("annotations", lambda d: d["annotations"][0].update(answers=["yes"]), "no list of answers"),
        ("annotations", lambda d: d["annotations"][0].update(image_id=1), "another image"),
        ("annotations", lambda d: d["annotations"][0].pop("answer_type"), "no 'answer_type' of type str"),
    ],
)
def test_a_faulty_vqa_file_is_a_sentence(folder: Path, name: str, change: Any, said: str) -> None:
    edit(folder / "vqa" / f"{name}.json", change)
    with pytest.raises(InputError, match=said):
        load_vqa(folder)


def test_a_smaller_draw_is_part_of_a_larger_one(folder: Path) -> None:
    draw_vqa(folder / "vqa", 40)
    forty = {question.question_id for question in load_vqa(folder)}
    draw_vqa(folder / "vqa", 10)
    ten = {question.question_id for question in load_vqa(folder)}
    assert (len(forty), len(ten)) == (40, 10)
    assert ten < forty


def test_a_draw_of_everything_changes_no_byte(folder: Path) -> None:
    before = (folder / "vqa" / "questions.json").read_bytes()
    draw_vqa(folder / "vqa", 97)
    assert (folder / "vqa" / "questions.json").read_bytes() == before


def test_vqa_images_are_called_as_coco_released_them() -> None:
    assert vqa_file_name(262148, "val2014") == "COCO_val2014_000000262148.jpg"
    assert vqa_file_name(262148, "train2014") == "COCO_train2014_000000262148.jpg"
    assert vqa_file_name(79841, "train2017") == "000000079841.jpg"
    assert vqa_file_name(900001, "held_out") == "000000900001.jpg"
