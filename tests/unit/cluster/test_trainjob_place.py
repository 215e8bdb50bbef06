"""Who asks for the accelerators: the task's own pod, or the nodes that it waits for."""

from __future__ import annotations

import pytest

from multimodal_gemma import config
from multimodal_gemma.cluster.trainjob.place import divide
from multimodal_gemma.config import hardware
from multimodal_gemma.errors import InputError

ASKED = ["resources.hardware=a100-80gb", "resources.accelerator_count=8", "resources.cpu=90", "resources.memory=600Gi"]
NODES = ["training.nodes=2", "nodes.work_uri=s3://b/work"]


SPOT = ["resources.spot=true", "training.checkpoint_uri=s3://b/kept", "nodes.work_uri=s3://b/work"]


def placed(*overrides: str, trainer: bool = False):
    settings = hardware.resolve(config.compose("sample", [*ASKED, *overrides]))
    return settings, *divide(settings, trainer=trainer)


def test_one_node_is_the_tasks_own():
    settings, same, own = placed()
    assert same == settings
    assert own == settings.resources
    assert (own.accelerator_count, own.cpu, own.memory) == (8, "90", "600Gi")


def test_several_nodes_get_the_accelerators_and_the_task_none():
    settings, made, own = placed(*NODES, "nodes.memory=500Gi")
    assert (own.accelerator_count, own.node_selector, own.tolerations) == (0, {}, [])
    nodes = config.from_json(config.to_json(made)).nodes  # as the next task reads it
    assert (nodes.accelerator_count, nodes.cpu, nodes.memory) == (8, "90", "500Gi")  # an override wins
    assert nodes.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}
    assert nodes.tolerations == settings.resources.tolerations


def test_spot_nodes_train_as_a_trainjob_where_there_is_a_trainer():
    """Also one: in a task's own pod python has less than a second after SIGTERM, and no checkpoint is written."""
    _, made, own = placed(*SPOT, trainer=True)
    assert config.from_json(config.to_json(made)).delegates
    assert (made.training.nodes, made.nodes.accelerator_count, made.nodes.cpu) == (1, 8, "90")
    assert (own.accelerator_count, own.cpu, own.memory, own.tolerations) == (0, "500m", "2Gi", [])  # it only waits
    settings, same, own = placed(*SPOT, trainer=False)
    assert (same, own) == (settings, settings.resources)
    assert not same.delegates
    assert not placed("nodes.work_uri=s3://b/work", trainer=True)[1].delegates  # nodes that stay need none


def test_what_cannot_be_is_said_before_anything_is_downloaded():
    with pytest.raises(InputError, match="Set nodes.work_uri=s3://BUCKET/PREFIX"):
        placed("training.nodes=2")
    with pytest.raises(InputError, match="a training on spot nodes needs .* Set nodes.work_uri=s3://BUCKET/PREFIX"):
        placed("resources.spot=true", trainer=True)
