"""A cached result is reused when it would come out the same, and only then."""

import dataclasses
import json
from pathlib import Path

import pytest

from multimodal_gemma import config as configuration
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import preflight
from tests.unit.registry.artifacts import ensure_run

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


def plans(data: Path, *overrides: str, run_id: str = "") -> dict[str, str]:
    places = [
        f"data.conversations={data}/conversations.json",
        f"data.images={data}/images",
        f"benchmarks.pope={data}/pope",
        f"benchmarks.vqa={data}/vqa",
        f"benchmarks.images={data}/images",
        f"model.vision={data}/vision",
        f"model.language={data}/language",
    ]
    return dataclasses.asdict(preflight.run({"preset": "sample", "overrides": [*places, *overrides], "run_id": run_id}))


def told(plan: str) -> configuration.Config:
    """Return the configuration of a plan, as its stage reads it."""
    return configuration.from_json(json.dumps(json.loads(plan)["config"]))


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
    ("override", "again"),
    [
        ("registry.floors=null", set()),  # what one mends when the gate or MLflow was the mistake
        ("registry.name=other", set()),
        ("export.dtype=float32", set()),
        ("evaluation.max_new_tokens=3", {"evaluate"}),
        ("training.projector_lr=0.01", {"train", "evaluate"}),
        ("model.lora.rank=4", {"train", "evaluate"}),
    ],
)
def test_a_later_run_on_a_cluster_trains_again_only_what_would_differ(data, monkeypatch, override, again):
    monkeypatch.setenv("KFP_POD_NAME", "a-pod")
    before, after = (plans(data, *more, run_id=run) for run, more in (("one", []), ("two", [override])))
    assert {stage for stage in ("train", "evaluate") if before[stage] != after[stage]} == again
    assert "one" not in before["train"]
    monkeypatch.delenv("KFP_POD_NAME")
    assert json.loads(plans(data, run_id="one")["train"])["run_id"] == "one"  # nothing is taken over on a laptop


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


@pytest.mark.parametrize(
    ("place", "stages"),
    [
        ("stages.preprocess", {"preprocess"}),
        ("data.tokens", {"preprocess"}),
        ("data.collect", {"dataset", "benchmarks"}),
    ],
)
def test_a_new_format_invalidates_what_was_made_in_the_old_one(place, stages, data, monkeypatch):
    before = plans(data)
    monkeypatch.setattr(f"multimodal_gemma.{place}.FORMAT", 99)
    after = plans(data)
    assert {stage for stage in CACHED if before[stage] != after[stage]} == stages


def test_another_version_of_what_makes_the_pixels_invalidates_them(data, monkeypatch):
    before = plans(data)
    monkeypatch.setattr(preflight.metadata, "version", lambda name: f"another-{name}")
    after = plans(data)
    assert {stage for stage in CACHED if before[stage] != after[stage]} == {"preprocess"}


def test_a_plan_tells_its_stage_the_values_that_shape_the_result(data):
    made = plans(data, "data.max_image_bytes=1000", "benchmarks.vqa_questions=5", "data.max_text_tokens=99")
    assert told(made["dataset"]).data.max_image_bytes == 1000
    assert told(made["dataset"]).data.conversations == [(data / "conversations.json").as_uri()]
    assert told(made["benchmarks"]).benchmarks.vqa_questions == 5
    assert told(made["preprocess"]).data.max_text_tokens == 99
    assert told(made["models"]).model.vision.startswith((data / "vision").as_uri())


def test_every_key_of_the_data_section_shapes_a_cached_stage():
    """A new key that no stage were told of would change nothing, silently."""
    config = configuration.Config()
    heard = {key for stage in CACHED for key in preflight.shaping(stage, config).get("data", {})}
    assert heard == {field.name for field in dataclasses.fields(config.data)}


def test_a_value_that_a_plan_leaves_out_is_still_part_of_the_cache_key(data, monkeypatch):
    """Plans hold only what differs from the defaults; a default that changes must not find the old result."""
    monkeypatch.setattr(configuration, "differences", lambda config: {"preset": config.preset})
    assert changed(data, "data.split_seed=43") == {"preprocess"}


def test_parameters_are_settings_and_overrides_win_over_them(data):
    asked = {"preset": "sample", "registry_name": "it's mine", "hardware": "l4", "contamination": "drop", "needed": []}
    made = preflight.run({**asked, "overrides": ["data.contamination=allow", "resources.cpu=3"]})
    config = told(made.plan)
    assert config.registry.name == "it's mine"
    assert (config.data.contamination, config.resources.hardware, config.resources.cpu) == ("allow", "l4", "3")
    assert made.dataset == ""


def test_a_form_that_nobody_touched_leaves_what_the_preset_says(data):
    asked = {"preset": "sample", "contamination": "as the preset says", "data_images": "", "needed": []}
    assert told(preflight.run(asked).plan).data == configuration.compose("sample").data


def test_pods_get_the_hardware_and_the_stages_its_device(data):
    made = preflight.run({"preset": "sample", "hardware": "a100", "needed": []})
    assert (made.train_count, made.train_cpu, made.train_memory, made.accelerator) == (
        "1",
        "10",
        "64Gi",
        "nvidia.com/gpu",
    )
    assert made.train_nodes == made.evaluate_nodes == {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
    assert told(made.plan).training.device == told(made.plan).evaluation.device == "cuda"
    assert preflight.run({"preset": "sample", "needed": []}).train_count == "0"


def test_the_platforms_mlflow_wins_over_the_forms_guess_and_an_override_over_both(tmp_path):
    asked = {"preset": "sample", "registry_tracking_uri": "http://mlflow.mlflow:5000", "needed": []}
    assert told(preflight.run(asked).plan).registry.tracking_uri == ""  # MLFLOW_TRACKING_URI, in every pod
    own = f"sqlite:///{tmp_path}/own.db"
    made = preflight.run({**asked, "overrides": [f"registry.tracking_uri={own}"]})
    assert told(made.plan).registry.tracking_uri == own


@pytest.mark.parametrize(("address", "name"), [("10.0.0.1", "sample-20261125-232731"), ("", "0b1c")])
def test_mlflows_run_is_called_like_the_pipelines(monkeypatch, address, name):
    """On a cluster; kfp.local gives every run the same name, so there its id, which a folder has too, is the name."""
    from multimodal_gemma.registry import server

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", address)
    monkeypatch.setattr(preflight, "_look_at_cluster", lambda *_, **__: None)

    asked = {"preset": "sample", "needed": ["preprocess"], "run_id": "0b1c", "run_name": "sample-20261125-232731"}
    plan = json.loads(preflight.run(asked).plan)
    assert plan["run_id"] == "0b1c"
    registry = configuration.compose("sample").registry
    with server.connected(registry) as client:
        assert client.get_run(ensure_run(registry, "0b1c")).info.run_name == name


def test_a_source_that_is_not_there_is_told_before_anything_is_downloaded(data):
    with pytest.raises(InputError, match="does not exist"):
        plans(data, f"data.images={data}/nowhere")


def test_an_override_that_is_no_text_is_refused():
    with pytest.raises(InputError, match="no override"):
        preflight.run({"preset": "sample", "overrides": [{"training.epochs": 1}]})


def test_a_run_that_could_not_be_recorded_never_starts(data, monkeypatch):
    with pytest.raises(InputError, match=r"MLflow at http://127.0.0.1:9 cannot be reached\. Start it"):
        plans(data, "registry.tracking_uri='http://127.0.0.1:9'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match=r"no MLflow is named\. Set registry.tracking_uri"):
        plans(data)
