"""Who asks for the accelerators: the task's own pod, or the nodes that it waits for."""

from __future__ import annotations

import pytest

from multimodal_gemma import config
from multimodal_gemma.cluster.trainjob import place
from multimodal_gemma.errors import InputError

PARAMETERS = {
    "resources_accelerator": "nvidia.com/gpu",
    "resources_accelerator_count": "8",
    "resources_cpu": "90",
    "resources_memory": "600Gi",
    "resources_node_selector": {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
    "resources_tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "secret_hub": "huggingface",
}
OWN = ("8", "90", "600Gi", PARAMETERS["resources_node_selector"], PARAMETERS["resources_tolerations"])


def test_one_node_is_the_tasks_own():
    settings = config.compose("sample", [])
    assert place.divide(settings, PARAMETERS) == (settings, OWN)


def test_several_nodes_get_the_accelerators_and_the_task_none():
    settings = config.compose("sample", ["training.nodes=2", "nodes.work_uri=s3://b/work", "nodes.memory=500Gi"])
    placed, own = place.divide(settings, PARAMETERS)
    assert own == ("0", "2", "8Gi", {}, [])
    nodes = config.from_json(config.to_json(placed)).nodes  # as the next task reads it
    assert (nodes.accelerator_count, nodes.cpu, nodes.memory) == (8, "90", "500Gi")  # an override wins
    assert (nodes.node_selector, nodes.tolerations) == OWN[3:]


def test_without_parameters_the_runtime_decides():
    settings = config.compose("sample", ["training.nodes=2", "nodes.work_uri=s3://b/work"])
    assert place.divide(settings, {})[0] == settings


def test_what_cannot_be_is_said_before_anything_is_downloaded():
    settings = config.compose("sample", ["training.nodes=2"])
    with pytest.raises(InputError, match="Set nodes.work_uri=s3://BUCKET/PREFIX"):
        place.divide(settings, PARAMETERS)
    settings = config.compose("sample", ["training.nodes=2", "nodes.work_uri=s3://b/work"])
    with pytest.raises(InputError, match="resources_accelerator_count='two' is no number"):
        place.divide(settings, {**PARAMETERS, "resources_accelerator_count": "two"})
