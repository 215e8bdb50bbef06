"""A cached result is reused when it would come out the same, and only then."""

import dataclasses
import json
from pathlib import Path

import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import preflight

CACHED = ("models", "dataset", "benchmarks", "preprocess")


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch):
    """A place for MLflow, named as a platform names it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder of conversations, images and benchmarks, as far as the preflight looks at them."""
    for name in ("images", "pope", "vqa", "vision", "language"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "conversations.json").write_text("[]")
    for setting in ("random", "popular", "adversarial"):
        (tmp_path / "pope" / f"coco_pope_{setting}.json").write_text("")
    for name in ("questions", "annotations"):
        (tmp_path / "vqa" / f"{name}.json").write_text("{}")
    return tmp_path


def plans(data: Path, *overrides: str) -> dict[str, str]:
    places = [
        f"data.conversations={data}/conversations.json",
        f"data.images={data}/images",
        f"benchmarks.pope={data}/pope",
        f"benchmarks.vqa={data}/vqa",
        f"benchmarks.images={data}/images",
        f"model.vision={data}/vision",
        f"model.language={data}/language",
    ]
    return dataclasses.asdict(preflight.run("sample", [*places, *overrides]))


def changed(data: Path, *overrides: str) -> set[str]:
    before, after = plans(data), plans(data, *overrides)
    return {stage for stage in CACHED if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("training.projector_lr=0.5", set()),
        ("training.epochs=9", set()),
        ("model.lora.rank=4", set()),
        ("model.vision_feature_layer=-2", set()),
        ("evaluation.max_new_tokens=3", set()),
        ("registry.floors=null", set()),
        ("export.dtype=float32", set()),
        ("data.validation_fraction=0.3", {"preprocess"}),
        ("data.max_text_tokens=99", {"preprocess"}),
        ("data.contamination=drop", {"preprocess"}),
        ("benchmarks.vqa_questions=5", {"benchmarks"}),
        ("data.max_image_bytes=1000", set(CACHED)),
    ],
)
def test_a_key_invalidates_exactly_what_it_shapes(data, override, stages):
    assert changed(data, override) == stages


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("conversations.json", {"dataset"}),
        ("images/new.jpg", {"dataset", "benchmarks"}),
        ("pope/coco_pope_random.json", {"benchmarks"}),
        ("language/config.json", {"models"}),
    ],
)
def test_another_file_at_a_source_invalidates_its_download(data, name, stages):
    before = plans(data)
    (data / name).write_text("other content")
    after = plans(data)
    assert {stage for stage in CACHED if before[stage] != after[stage]} == stages


def test_a_change_of_the_code_that_makes_a_result_invalidates_it(data, monkeypatch):
    before = plans(data)
    original = preflight.files.sha256_file
    monkeypatch.setattr(
        preflight.files, "sha256_file", lambda path: "changed" if path.name == "tokenize.py" else original(path)
    )
    assert plans(data)["preprocess"] != before["preprocess"]


def test_a_plan_tells_its_stage_the_values_that_shape_the_result(data):
    made = plans(data, "data.max_image_bytes=1000", "benchmarks.vqa_questions=5", "data.max_text_tokens=99")
    assert preflight.planned(made["dataset"]).data.max_image_bytes == 1000
    assert preflight.planned(made["dataset"]).data.conversations == (data / "conversations.json").as_uri()
    assert preflight.planned(made["benchmarks"]).benchmarks.vqa_questions == 5
    assert preflight.planned(made["preprocess"]).data.max_text_tokens == 99
    assert preflight.planned(made["models"]).model.vision.startswith((data / "vision").as_uri())


def test_every_key_of_the_data_section_reaches_a_cached_stage(data):
    """A new key that no stage were told of would change nothing, silently."""
    told = {key for stage in CACHED for key in json.loads(plans(data)[stage])["config"].get("data", {})}
    assert told == {field.name for field in dataclasses.fields(configuration.Config().data)}


def test_parameters_are_settings_and_overrides_win_over_them(data):
    settings = {"training_epochs": 7, "training_batch_size": 3, "registry_name": "it's mine", "training_lora_lr": 0.0}
    made = preflight.run("sample", ["training.batch_size=5"], settings, needed=[])
    config = configuration.from_json(made.config)
    assert (config.training.epochs, config.training.batch_size) == (7, 5)
    assert config.registry.name == "it's mine"
    assert config.training.lora_lr == configuration.compose("sample").training.lora_lr  # 0 leaves the preset's
    assert made.dataset == ""


def test_a_source_that_is_not_there_is_told_before_anything_is_downloaded(data):
    with pytest.raises(InputError, match="does not exist"):
        plans(data, f"data.images={data}/nowhere")


def test_an_override_that_is_no_text_is_refused():
    with pytest.raises(InputError, match="no override"):
        preflight.run("sample", [{"training.epochs": 1}])  # type: ignore[list-item]


def test_a_run_that_could_not_be_recorded_never_starts(data, monkeypatch):
    with pytest.raises(InputError, match=r"MLflow at http://127.0.0.1:9 cannot be reached\. Start it"):
        plans(data, "registry.tracking_uri='http://127.0.0.1:9'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match=r"no MLflow is named\. Set registry.tracking_uri"):
        plans(data)
