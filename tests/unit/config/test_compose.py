"""A configuration is right, or a sentence says which key is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma.config import compose, differences, from_json, presets, to_json
from multimodal_gemma.errors import InputError


def test_the_named_presets_exist() -> None:
    assert {"sample", "llava-150k", "llava-1.5"} <= set(presets())


@pytest.mark.parametrize("preset", ["sample", "llava-150k", "llava-1.5", "llava-1.5-align"])
def test_a_preset_names_itself_and_survives_json(preset: str) -> None:
    config = compose(preset)
    assert config.preset == preset
    assert from_json(to_json(config)) == config


def test_the_recipe_is_the_published_one() -> None:
    config = compose("llava-150k")
    assert (config.model.lora.rank, config.model.lora.alpha, config.model.lora.dropout) == (64, 128, 0.1)
    assert (config.training.projector_lr, config.training.lora_lr) == (1e-3, 2e-4)
    assert (config.training.epochs, config.training.batch_size, config.training.warmup_fraction) == (3, 40, 0.03)
    assert (config.training.weight_decay, config.training.max_grad_norm, config.training.seed) == (0.01, 1.0, 42)
    assert config.data.validation_fraction == 0.02


def test_an_override_wins_over_the_preset() -> None:
    config = compose(
        "sample", ["training.epochs=9", "model.language=hf://Qwen/Qwen3-0.6B@main", "registry.floors=null"]
    )
    assert config.training.epochs == 9
    assert config.model.language == "hf://Qwen/Qwen3-0.6B@main"
    assert config.registry.floors is None


def test_a_floor_is_set_by_its_metric() -> None:
    assert compose("sample", ["registry.floors={vqa_accuracy: 0.6}"]).registry.floors == {"vqa_accuracy": 0.6}
    added = compose("sample", ["registry.floors.vqa_accuracy=0.6"]).registry.floors
    assert added == {**compose("sample").registry.floors, "vqa_accuracy": 0.6}


def test_a_folder_becomes_an_absolute_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose("sample", ["data.images=photos, of=mine/set 1", f"data.conversations={tmp_path}/c.json"])
    assert config.data.images == [(tmp_path / "photos, of=mine" / "set 1").as_uri()]
    assert config.data.conversations == [(tmp_path / "c.json").as_uri()]


def test_what_differs_from_the_defaults_is_all_that_travels() -> None:
    config = compose("sample", ["data.sample.seed=3", "registry.floors={}", "registry.margins={vqa_accuracy: 0.1}"])
    told = differences(config)
    assert told["data"]["sample"] == {"train_scenes": 1600, "seed": 3}
    assert "serving" not in told
    assert from_json(json.dumps(told)) == config  # a table is replaced, not merged with the default's


def test_a_table_may_hold_any_name() -> None:
    selector = compose("sample", ["nodes.node_selector={cloud.google.com/gke-accelerator: nvidia-l4}"]).nodes
    assert selector.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-l4"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainig.lora_lr=1", r"'trainig.lora_lr' is no key of preset sample\. Did you mean 'training.lora_lr'\?"),
        ("training.lr=1", r"'training.lr' is no key of preset sample\. Did you mean 'training.lora_lr'\?"),
        ("model.visoin=x", r"Did you mean 'model.vision'\?"),
        ("training.epochs=many", r"'training.epochs=many' does not fit preset sample: .*Integer"),
        ("training.epochs=0", r"training.epochs=0 is not allowed\. Give a number that is at least 1"),
        ("data.validation_fraction=0.9", r"between 0 and 0.5"),
        ("export.formats=[adapter,onnx]", "export.formats holds 'onnx'.* Choose among adapter, int8, space"),
        ("export.formats=[int8,int8]", "stands there twice"),
        ("training.projector_lr=nan", r"training.projector_lr=nan is not allowed"),
        ("data.contamination=maybe", r"Choose one of fail, drop, allow"),
        ("training.batch_size=null", r"does not fit preset sample: .*not Optional"),
        ("training.epochs", r"is no override\. Write section.key=value"),
        ("training.epochs=[", r"do(es)? not fit preset sample"),
        ("preset=llava-150k", r"is chosen with --preset"),
    ],
)
def test_a_wrong_override_is_named(override: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^config: .*{said}") as caught:
        compose("sample", [override])
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"there is no preset 'smaple'\. Did you mean 'sample'\?"):
        compose("smaple")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("registry.experiment=2026_11_25", "2026_11_25"),
        ("registry.name=1.10", "1.10"),
        ("registry.name=1e3", "1e3"),
        ("registry.name=null", "null"),
        ("registry.name=ünï", "ünï"),
        ("registry.name=a ${b} [c] {d}", "a ${b} [c] {d}"),
        ("registry.name='quoted'", "quoted"),
        (r"registry.name='it\'s a \\ and \n'", r"it's a \ and \n"),
        (r'evaluation.suffix="\nShort."', "\nShort."),
        (r"export.publish=a\b", r"a\b"),
    ],
)
def test_a_text_stays_what_was_typed(override: str, text: str) -> None:
    config = compose("sample", [override])
    section, _, name = override.partition("=")[0].partition(".")
    assert getattr(getattr(config, section), name) == text
    assert getattr(getattr(from_json(to_json(config)), section), name) == text


@pytest.mark.parametrize("location", ["scratch${x}", "scratch\\b"])
def test_any_path_is_a_location(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose("sample", [f"data.images={location}"]).data.images == [(tmp_path / location).as_uri()]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match=r"training\.seed=-1 is not allowed"):
        compose("sample", ["training.seed=-1"])
