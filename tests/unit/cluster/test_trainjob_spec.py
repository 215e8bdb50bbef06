"""The TrainJob: what Kubeflow Trainer's published types take, nothing secret in it, and a size from one place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from multimodal_gemma.cluster.trainjob import job as train_job
from multimodal_gemma.cluster.trainjob import spec as train_job_spec
from multimodal_gemma.config.schema import NodesConfig
from multimodal_gemma.errors import InputError
from tests.servers.kubernetes_api import KubernetesServer
from tests.servers.train_job_controller import PODS, runtime
from tests.unit.manifests.schemas import complaints

MANIFEST = Path(__file__).parents[3] / "manifests/trainer/runtime.yaml"
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    for name in ("KUBERNETES_SERVICE_HOST", "KFP_POD_NAME", "AWS_ENDPOINT_URL", "AWS_REGION", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with KubernetesServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        yield running


def built(asked: NodesConfig, around: train_job_spec.Surroundings | None = None, accelerators: int = 0) -> dict:
    around = around or train_job_spec.Surroundings()
    return train_job_spec.build(
        "mmgemma-1", "s3://work/jobs/mmgemma-1", 4, asked, runtime(accelerators), around, run_id="0a1b-run"
    )


def test_every_field_is_one_of_kubeflow_trainers():
    asked = NodesConfig(
        queue="multimodal-gemma",
        accelerator_count=2,
        cpu="10",
        memory="64Gi",
        node_selector={"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"},
        tolerations=[TOLERATION],
    )
    key = {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "object-store", "key": "accesskey"}}}
    job = built(asked, train_job_spec.Surroundings("trainer@sha256:0", [key], ["registry"]))
    assert complaints(job) == []
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "multimodal-gemma"
    trainer, patch = job["spec"]["trainer"], job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 2)
    wanted = {"cpu": "10", "memory": "64Gi", "nvidia.com/gpu": "2"}
    assert trainer["resourcesPerNode"] == {"limits": wanted, "requests": wanted}
    pod = patch["replicatedJobs"][0]["template"]["spec"]["template"]
    assert pod["spec"]["tolerations"] == [TOLERATION]
    assert pod["metadata"]["labels"]["multimodal-gemma/run"] == "0a1b-run"


def test_a_node_gets_a_volume_of_its_own_where_one_is_asked_for():
    job = built(NodesConfig(scratch="100Gi", scratch_class="premium-rwo"))
    assert complaints(job) == []
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = patch["template"]["spec"]["template"]["spec"]
    claim = pod["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["resources"]["requests"]["storage"], claim["storageClassName"]) == ("100Gi", "premium-rwo")
    mount = pod["containers"][0]["volumeMounts"][0]
    assert mount["name"] == pod["volumes"][0]["name"]
    assert job["spec"]["trainer"]["args"][1].startswith(f"{mount['mountPath']}/")  # which is where a node works


def test_a_misspelt_field_would_be_seen():
    job = built(NodesConfig())
    job["spec"]["trainer"]["numProcsPerNode"] = 2
    job["spec"]["podSpecOverrides"] = [{"nodeSelector": {"a": "b"}}]  # what 2.1 called runtimePatches
    found = " ".join(complaints(job))
    assert "/spec/trainer/numProcsPerNode" in found
    assert "podSpecOverrides" in found


def test_what_is_not_asked_for_is_the_runtimes():
    """Processes follow its accelerators; its resources, queue, image and place are left alone."""
    job = built(NodesConfig(), accelerators=8)
    assert complaints(job) == []
    assert job["spec"]["trainer"]["numProcPerNode"] == 8
    assert not {"resourcesPerNode", "image", "env"} & job["spec"]["trainer"].keys()
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]
    assert (
        "spec"
        not in job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0][
            "template"
        ]["spec"]["template"]
    )


def test_no_accelerator_is_a_choice():
    trainer = built(NodesConfig(accelerator_count=0), accelerators=8)["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 1
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "2", "memory": "4Gi"}


def test_the_runtime_of_the_manifests_fits():
    found = yaml.safe_load(MANIFEST.read_text())
    job = train_job_spec.build("x", "s3://w/x", 2, NodesConfig(), found, train_job_spec.Surroundings())
    assert job["spec"]["runtimeRef"]["name"] == found["metadata"]["name"]
    assert job["spec"]["trainer"]["numProcPerNode"] == 1
    with pytest.raises(InputError, match="has no container 'node' in a job 'node'"):
        train_job_spec.build("x", "s3://w/x", 2, NodesConfig(), {"spec": {}}, train_job_spec.Surroundings())


def test_a_retry_has_the_name_another_training_has_not():
    name = train_job_spec.job_name("run-1", {"seed": "42"})
    assert name == train_job_spec.job_name("run-1", {"seed": "42"})
    assert len({name, train_job_spec.job_name("run-2", {"seed": "42"}), train_job_spec.job_name("run-1", {})}) == 3
    assert len(f"{name}-node-0-0-abcde") <= 63
    assert train_job_spec.run_label("a run/of mine") == train_job_spec.run_label("a run/of mine")


def test_nodes_get_the_image_and_the_secrets_names_of_the_submitting_pod(server, monkeypatch):
    """Not one secret value is in the TrainJob, also where the environment holds it."""
    monkeypatch.setenv("KFP_POD_NAME", "train-model-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://seaweedfs.kubeflow:9000")
    reference = {"secretKeyRef": {"name": "team-store", "key": "secretkey", "optional": True}}
    env = [
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "huggingface", "key": "token"}}},
        {"name": "SOMETHING", "value": "else"},
    ]
    containers = [{"name": "wait", "image": "argo:1"}, {"name": "main", "image": "trainer@sha256:1", "env": env}]
    spec = {"containers": containers, "imagePullSecrets": [{"name": "registry"}]}
    server.put(f"{PODS}/train-model-1", {"spec": spec})
    around = train_job.surroundings(train_job.here())
    assert (around.image, around.pull_secrets) == ("trainer@sha256:1", ["registry"])
    assert around.env == [
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference},
        {"name": "AWS_ENDPOINT_URL", "value": "http://seaweedfs.kubeflow:9000"},
    ]
    assert "hunter2" not in json.dumps(built(NodesConfig(), around))


def test_a_laptops_own_addresses_stay_on_the_laptop(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert train_job.surroundings(train_job.here()).env == [{"name": "AWS_REGION", "value": "eu-west-1"}]
