"""CHAIR on captions whose mentions were counted by hand; what is there is taken from COCO's own two files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import benchmarks, sources
from multimodal_gemma.data.benchmarks import Described, load_objects
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation import chair, report, scoring
from multimodal_gemma.evaluation.chair import Finder

NAMES = """person bicycle car motorcycle airplane bus train truck boat traffic_light bench bird cat dog horse sheep cow
    elephant bear zebra giraffe umbrella tie sports_ball cup wine_glass knife sandwich orange hot_dog chair couch bed
    potted_plant dining_table toilet tv laptop mouse cell_phone refrigerator book clock scissors teddy_bear
    hair_drier"""
CATEGORIES = [name.replace("_", " ") for name in NAMES.split()]


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("A man and two women ride bikes past parked cars.", ["person", "person", "bicycle", "car"]),
        ("Hot dogs on a table, not a dog.", ["hot dog", "dining table", "dog"]),
        ("It is hot. Dogs sleep.", ["dog"]),  # a full stop parts two words
        ("A teddy-bear beside a baby bear.", ["teddy bear", "bear"]),  # the baby is no person
        ("A baby holds a teddy.", ["person", "teddy bear"]),
        ("The toilet seat is up; a seat stands beside it.", ["toilet", "chair"]),
        ("He wears a bow tie.", ["tie"]),
        ("A passenger jet over a passenger train", ["airplane", "train"]),
        ("A passenger waits on the train tracks.", ["person"]),
        ("Home plate, a license plate and a bus stop", []),
        ("Buses, benches, sandwiches, knives and glasses", ["bus", "bench", "sandwich", "knife"]),
        ("Two wine glasses, scissors, mice", ["wine glass", "scissors", "mouse"]),
        ("TVs, sofas and fridges", ["tv", "couch", "refrigerator"]),
        ("Children pet ponies and puppies", ["person", "horse", "dog"]),
        ("A catalogue of bedding for carpets", []),
        ("", []),
    ],
)
def test_mentions_are_those_a_person_counts(text: str, objects: list[str]) -> None:
    assert [mention.object for mention in Finder(CATEGORIES).mentions(text)] == objects


def test_a_mention_knows_where_its_words_stand() -> None:
    text = "Two Hot Dogs and a fork"
    (mention,) = Finder(CATEGORIES).mentions(text)
    assert text[mention.start : mention.end] == "Hot Dogs"


def test_the_names_of_another_set_are_all_that_counts() -> None:
    # "ball" is a word for COCO's sports ball; where a set has a ball of its own, it is that.
    found = Finder(["ball", "box", "cross", "umbrella"]).mentions(
        "Two red balls, boxes and crosses under a man's umbrella"
    )
    assert [mention.object for mention in found] == ["ball", "box", "cross", "umbrella"]


DESCRIBED = {
    "1.jpg": Described("1", ("dog", "person"), ("A man walks his dog.",)),
    "2.jpg": Described("2", ("cat",), ("A cat on a sofa.",)),  # the couch is only in the caption
    "3.jpg": Described("3", ("car",), ()),
    "4.jpg": Described("4", (), ()),
}
SAID = {
    "1.jpg": "A dog beside a cat and another cat.",  # 3 mentions, 2 invented
    "2.jpg": "A cat on a couch.",  # 2, none
    "3.jpg": "",  # silent
    "4.jpg": "A bus.",  # 1, invented
}


def test_score_is_rohrbachs_worked_by_hand() -> None:
    found = chair.score(chair.rows(DESCRIBED, CATEGORIES, SAID, "Describe."), 0.95)
    assert found["chair_i"]["value"] == pytest.approx(3 / 6)  # a mean of the captions' shares would be 5 / 9
    assert found["chair_s"]["value"] == pytest.approx(2 / 4)  # the silent one counts among all
    assert found["recall"]["value"] == pytest.approx(3 / 5)  # dog of dog, person; cat and couch; no car
    assert (found["mentions"], found["captions"], found["silent"]) == (6, 4, 1)
    assert found["chair_i"]["interval"] is None  # four images are too few for one


def test_a_silent_model_has_no_rate_and_no_recall_to_show_for_it() -> None:
    rows = chair.rows(DESCRIBED, CATEGORIES, dict.fromkeys(SAID, ""), "Describe.")
    flat = scoring.score([], rows)["metrics"]
    assert "chair_i" not in flat
    assert flat["chair_s"] == 0
    assert flat["chair_recall"] == 0
    assert flat["chair_mentions"] == 0


def test_interval_of_chair_i_is_that_of_a_ratio_of_sums() -> None:
    # 40 pictures, of which every fourth is told with 4 mentions and 3 inventions, the others with 1 true mention.
    described = {f"{n}.jpg": Described(str(n), ("dog",), ()) for n in range(40)}
    said = {f"{n}.jpg": "a cat, a bus, a car, a dog" if n % 4 == 0 else "a dog" for n in range(40)}
    found = chair.score(chair.rows(described, CATEGORIES, said, "Describe."), 0.95)
    ratio = 30 / 70
    assert found["chair_i"]["value"] == pytest.approx(ratio)
    deviations = [3 - 4 * ratio] * 10 + [0 - ratio] * 30
    error = (40 / 39 * sum(value**2 for value in deviations)) ** 0.5 / 70  # Cochran's, by hand
    low, high = found["chair_i"]["interval"]
    assert low < ratio - 1.5 * error < ratio + 1.5 * error < high
    assert high - low < 5 * error


def test_the_report_marks_what_is_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(report, "_picture", lambda row, shards: Image.new("RGB", (8, 8)))
    (row,) = chair.rows({"1.jpg": DESCRIBED["1.jpg"]}, CATEGORIES, {"1.jpg": "<b>A dog</b> & a cat"}, "Describe.")
    (text, _), (verdict, mark), (there, _) = report._described(row, None).lines  # type: ignore[arg-type]
    assert text == "&lt;b&gt;A dog&lt;/b&gt; &amp; a <mark>cat</mark>"
    assert (verdict, mark, there) == ("not there: cat", "bad", "there: dog, person")


# --- Where the truth comes from --------------------------------------------------------------------------------------


def _coco(folder: Path, split: str) -> str:
    instances = {
        "images": [
            {"id": 7, "file_name": f"COCO_{split}_000000000007.jpg"},
            {"id": 8, "file_name": "000000000008.jpg"},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 7, "category_id": 18}],
    }
    (folder / f"instances_{split}.json").write_text(json.dumps(instances))
    captions = {"annotations": [{"image_id": 7, "caption": "A man and his dog"}, {"image_id": 9, "caption": "x"}]}
    (folder / f"captions_{split}.json").write_text(json.dumps(captions))
    return folder.as_uri()


def _fetch(uri: str, folder: Path, images: list[str]) -> tuple[list[str], dict[str, Described]]:
    path = folder / "out" / "objects.json"
    benchmarks.fetch_instances(sources.open(uri, DataConfig()), path, images)
    return load_objects(path)


def test_cocos_files_are_joined_and_what_was_made_of_them_is_a_source_again(tmp_path: Path) -> None:
    uri = _coco(tmp_path, "val2014")
    images = ["COCO_val2014_000000000007.jpg", "COCO_val2014_000000000008.jpg"]
    categories, found = _fetch(uri, tmp_path, images)
    assert categories == ["dog", "person"]
    assert found[images[0]] == Described("000000000007", ("dog",), ("A man and his dog",))
    assert found[images[1]] == Described("000000000008", (), ())
    (tmp_path / "again").mkdir()
    assert _fetch((tmp_path / "out").as_uri(), tmp_path / "again", images) == (categories, found)


def test_an_unknown_picture_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not know 1 of the 1 pictures of POPE, the first is 000000000009.jpg"):
        _fetch(_coco(tmp_path, "val2014"), tmp_path, ["000000000009.jpg"])


def test_a_place_without_annotations_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither objects.json, nor instances_val2014.json and captions_val2014"):
        _fetch(tmp_path.as_uri(), tmp_path, ["000000000009.jpg"])


@pytest.mark.parametrize(
    "text",
    ["{}", '{"images": []}', '{"images": {"a": 1}}', '{"categories": ["a"], "images": {"a": {"objects": ["b"]}}}'],
)
def test_a_faulty_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "objects.json").write_text(text)
    with pytest.raises(InputError, match="^chair: "):
        load_objects(tmp_path / "objects.json")


def test_real_annotations_know_what_people_wrote(tmp_path: Path, shared: Path) -> None:
    folder = shared / "coco-sample"
    lines = (folder / "pope" / "coco_pope_random.json").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    categories, described = _fetch((folder / "annotations").as_uri(), tmp_path, [row["image"] for row in asked])
    assert len(described) == 14
    # POPE's labels were derived from the same instances: whoever answers with its objects invents nothing.
    said = {image: ", ".join(known.objects) for image, known in described.items()}
    found = chair.score(chair.rows(described, categories, said, "Describe."), 0.95)
    assert found["chair_i"]["value"] == 0
    assert found["recall"]["value"] > 0.7  # the captions name things that nobody outlined
    absent = {row["image"]: row["text"] for row in asked if row["label"] == "no"}
    made_up = chair.score(chair.rows(described, categories, {**said, **absent}, "Describe."), 0.95)
    assert made_up["chair_i"]["value"] > 0.8
