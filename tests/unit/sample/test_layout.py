"""The written sample: published structures, true answers, the same bytes for the same seed."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from multimodal_gemma.sample.layout import write_sample
from multimodal_gemma.sample.questions import SHORT_ANSWER_SUFFIX
from multimodal_gemma.sample.scenes import generate_distinct
from tests.unit.sample.oracle import true_answers

TRAIN, HELD_OUT, SEED = 60, 40, 5
SETTINGS = ("random", "popular", "adversarial")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train_scenes=TRAIN, held_out_scenes=HELD_OUT, seed=SEED)
    return folder


@pytest.fixture(scope="module")
def truth() -> dict[str, tuple]:
    """Arrangement by image file name."""
    arrangements = {}
    for split, count, first in (("train", TRAIN, 1), ("held_out", HELD_OUT, 900_001)):
        for number, scene in enumerate(generate_distinct(SEED, count, split), start=first):
            arrangements[f"{number:012d}.jpg"] = scene.arrangement
    return arrangements


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pope(folder: Path, setting: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "pope" / f"coco_pope_{setting}.json").read_text().splitlines()]


def test_the_same_seed_gives_the_same_bytes(sample, tmp_path):
    write_sample(tmp_path / "again", train_scenes=TRAIN, held_out_scenes=HELD_OUT, seed=SEED)
    assert digests(tmp_path / "again") == digests(sample)
    write_sample(tmp_path / "other", train_scenes=TRAIN, held_out_scenes=HELD_OUT, seed=SEED + 1)
    assert digests(tmp_path / "other")["images/000000000001.jpg"] != digests(sample)["images/000000000001.jpg"]


def test_every_image_named_exists_and_none_besides(sample, truth):
    assert {path.name for path in (sample / "images").iterdir()} == set(truth)
    with Image.open(sample / "images" / "000000900001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (112, 112))


def test_no_held_out_scene_has_a_training_conversation(sample, truth):
    trained = {entry["image"] for entry in json.loads((sample / "llava_instruct_sample.json").read_text())}
    asked = {line["image"] for setting in SETTINGS for line in pope(sample, setting)}
    assert len(trained) == TRAIN
    assert len(asked) == HELD_OUT
    assert not {truth[name] for name in trained} & {truth[name] for name in asked}


def test_conversations_have_llava_structure_and_true_short_answers(sample, truth):
    entries = json.loads((sample / "llava_instruct_sample.json").read_text())
    image_first = checked = 0
    for entry in entries:
        assert entry["image"] == f"{entry['id']}.jpg"
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert sum(turn["value"].count("<image>") for turn in turns) == 1
        image_first += turns[0]["value"].startswith("<image>\n")
        assert turns[0]["value"].startswith("<image>\n") or turns[0]["value"].endswith("\n<image>")
        for asked, answered in zip(turns[::2], turns[1::2], strict=True):
            question = asked["value"].replace("<image>\n", "").replace("\n<image>", "")
            if answered["value"].endswith("."):
                for kind, color, _ in truth[entry["image"]]:
                    assert color in answered["value"]
                    assert kind in answered["value"]
            else:
                assert true_answers(truth[entry["image"]], question) == {answered["value"]}
                checked += 1
    assert 0.5 * TRAIN < image_first < TRAIN
    assert checked > 3 * TRAIN
    assert any(SHORT_ANSWER_SUFFIX in turn["value"] for entry in entries for turn in entry["conversations"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_pope_label_is_true_and_half_are_yes(sample, truth, setting):
    lines = pope(sample, setting)
    assert [line["question_id"] for line in lines] == list(range(1, len(lines) + 1))
    for line in lines:
        assert true_answers(truth[line["image"]], line["text"]) == {line["label"]}
    for image in {line["image"] for line in lines}:
        labels = [line["label"] for line in lines if line["image"] == image]
        assert labels.count("yes") == labels.count("no")
        assert len({line["text"] for line in lines if line["image"] == image}) == len(labels)


def test_popular_negatives_are_more_frequent_kinds_than_random_ones(sample, truth):
    trained = [kinds for name, kinds in truth.items() if name < "000000900001.jpg"]
    frequency = {}
    for arrangement in trained:
        for kind in {kind for kind, _, _ in arrangement}:
            frequency[kind] = frequency.get(kind, 0) + 1

    def mean_frequency(setting: str) -> float:
        missing = [line["text"].split()[3] for line in pope(sample, setting) if line["label"] == "no"]
        return sum(frequency[kind] for kind in missing) / len(missing)

    assert mean_frequency("popular") > mean_frequency("adversarial") > 1.1 * mean_frequency("random")


def test_vqa_has_ten_distinct_annotators_and_a_true_majority(sample, truth):
    questions = json.loads((sample / "vqa" / "questions.json").read_text())
    annotations = json.loads((sample / "vqa" / "annotations.json").read_text())["annotations"]
    assert questions["task_type"] == "Open-Ended"
    asked = {question["question_id"]: question for question in questions["questions"]}
    assert len(asked) == len(questions["questions"]) == len(annotations)
    for annotation in annotations:
        question = asked[annotation["question_id"]]
        assert question["image_id"] == annotation["image_id"]
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        given = [answer["answer"] for answer in annotation["answers"]]
        truth_here = true_answers(truth[f"{annotation['image_id']:012d}.jpg"], question["question"])
        assert truth_here == {annotation["multiple_choice_answer"]}
        assert given.count(annotation["multiple_choice_answer"]) >= 7
        assert question["question"].lower().startswith(annotation["question_type"])
    kinds = {annotation["answer_type"] for annotation in annotations}
    assert kinds == {"yes/no", "number", "other"}
    winners = [annotation["multiple_choice_answer"] for annotation in annotations]
    assert max(map(winners.count, set(winners))) < 0.2 * len(winners)
