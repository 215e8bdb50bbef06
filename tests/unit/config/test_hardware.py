"""Hardware by its name: what a pod asks for, and what is refused before a node is paid for."""

from __future__ import annotations

import pytest

from multimodal_gemma.config import compose, hardware
from multimodal_gemma.errors import InputError

PLACES = ["training.checkpoint_uri=s3://bucket/checkpoints", "nodes.work_uri=s3://bucket/work"]


def resolved(preset: str, *overrides: str):
    return hardware.resolve(compose(preset, list(overrides)))


def test_a_gpu_by_its_name_is_label_taint_and_size() -> None:
    asked = resolved("llava-150k", "resources.hardware=a100-spot").resources
    assert asked.accelerator_count == 1
    assert asked.node_selector == {
        "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
        "cloud.google.com/gke-spot": "true",
    }
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in asked.tolerations
    assert (asked.cpu, asked.memory, asked.spot) == ("10", "64Gi", True)


def test_what_is_said_wins_over_the_profile() -> None:
    said = ["resources.hardware=l4", "resources.cpu=1", "resources.node_selector={pool: mine}"]
    asked = resolved("sample", *said, "resources.accelerator_count=2").resources
    assert (asked.cpu, asked.node_selector, asked.accelerator_count) == ("1", {"pool": "mine"}, 2)
    assert asked.memory == "24Gi"


def test_accelerators_mean_cuda_for_training_and_evaluation_and_none_leaves_the_choice() -> None:
    on = resolved("sample", "resources.accelerator_count=1")
    assert (on.training.device, on.evaluation.device) == ("cuda", "cuda")
    off = resolved("sample")
    assert (off.training.device, off.evaluation.device) == ("auto", "auto")


@pytest.mark.parametrize("section", ["training", "evaluation"])
def test_a_gpu_that_would_stand_idle_is_refused(section: str) -> None:
    with pytest.raises(InputError, match=f"{section}.device=cpu, but the hardware has accelerators"):
        resolved("sample", "resources.hardware=l4", f"{section}.device=cpu")


def test_custom_fills_nothing() -> None:
    with pytest.raises(InputError, match="custom says nothing about resources.cpu"):
        resolved("sample", "resources.hardware=custom")
    with pytest.raises(InputError, match="custom says nothing about resources.memory"):
        resolved("sample", "resources.hardware=custom", "resources.cpu=4")
    asked = resolved("sample", "resources.hardware=custom", "resources.cpu=4", "resources.memory=8Gi").resources
    assert (asked.accelerator_count, asked.node_selector, asked.tolerations) == (0, {}, [])


def test_a_recipe_without_a_gpu_is_refused_unless_a_cpu_is_asked_for() -> None:
    with pytest.raises(InputError, match="preset llava-150k would train for days without a GPU"):
        hardware.require(resolved("llava-150k"))
    hardware.require(resolved("llava-150k", "training.device=cpu"))
    hardware.require(resolved("llava-150k", "resources.hardware=l4"))
    hardware.require(resolved("sample"))


def test_spot_without_a_place_for_what_was_learnt_is_refused() -> None:
    with pytest.raises(InputError, match=r"Set training.checkpoint_uri=s3://"):
        hardware.require(resolved("llava-150k", "resources.hardware=a100-spot"))
    with pytest.raises(InputError, match=r"Set nodes.work_uri=s3://|nodes.work_uri=s3://BUCKET"):
        hardware.require(resolved("llava-150k", "resources.hardware=a100-spot", PLACES[0]))
    hardware.require(resolved("llava-150k", "resources.hardware=a100-spot", *PLACES))
    with pytest.raises(InputError, match="checkpoint_uri"):  # said by hand, too
        hardware.require(resolved("sample", "resources.spot=true"))


def test_hardware_that_nobody_knows_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match="resources.hardware='a10' is not allowed. Choose one of cpu, l4, a100"):
        compose("sample", ["resources.hardware=a10"])
