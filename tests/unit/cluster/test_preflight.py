"""What would stop a run on a cluster is found before the run, and told with what to do about it."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from multimodal_gemma import config
from multimodal_gemma.cli import main
from multimodal_gemma.cluster.kube import client, pods
from multimodal_gemma.cluster.preflight import needs as needs_of
from multimodal_gemma.cluster.preflight import nodes
from multimodal_gemma.cluster.preflight.findings import Finding, require
from multimodal_gemma.cluster.preflight.look import look as look_at
from multimodal_gemma.cluster.preflight.needs import Needs
from multimodal_gemma.cluster.trainjob import spec
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import preflight as stage
from tests.servers.kubernetes_api import KubernetesServer
from tests.unit.training.test_store import bucket  # noqa: F401

A100 = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
NEEDS = Needs("ml", count=1, cpu="8", memory="32Gi", node_selector=A100, tolerations=[TOLERATION])


CONTROLLER = "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"
CLAIM = "/api/v1/namespaces/kubeflow/persistentvolumeclaims/seaweedfs-pvc"


def defaults(policy: str) -> str:
    """The key `workflowDefaults` as Kubeflow Pipelines 2.17 ships it, but for the policy."""
    strategy = f"retryStrategy: {{limit: '2', retryPolicy: {policy}}}"
    return f"spec:\n  ttlStrategy: {{secondsAfterCompletion: 3600}}\n  templateDefaults:\n    {strategy}\n"


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    """A cluster where everything is as a run needs it: one CPU node, one node with an A100."""
    with KubernetesServer() as made:
        made.put("/api/v1/namespaces/ml/serviceaccounts/multimodal-gemma", {})
        made.put(CONTROLLER, {"data": {"workflowDefaults": defaults("OnError")}})
        put_node(made, "cpu", {}, {"cpu": "4", "memory": "16Gi"})
        put_node(made, "gpu", A100, {"cpu": "12", "memory": "85Gi", "nvidia.com/gpu": "1"}, [TAINT])
        yield made


def put_node(server: KubernetesServer, name: str, labels: dict, room: dict, taints: list | None = None, **spec) -> None:
    status = {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}
    content = {"metadata": {"labels": labels}, "spec": {"taints": taints or [], **spec}, "status": status}
    server.put(f"/api/v1/nodes/{name}", content)


def put_pod(server: KubernetesServer, name: str, node: str, asked: dict, *, restart: str = "Always", **status) -> None:
    containers = [{"name": "main", "resources": {"requests": asked}}]
    spec = {"nodeName": node, "restartPolicy": restart, "containers": containers}
    server.put(f"/api/v1/namespaces/kube-system/pods/{name}", {"spec": spec, "status": {"phase": "Running", **status}})


def look(server: KubernetesServer, tmp_path: Path, needs: Needs = NEEDS, **options) -> dict[str, Finding]:
    path = server.kubeconfig(tmp_path / "kubeconfig")
    findings = look_at(lambda: client.connect(path), needs, **{"patience": 2.0, **options})
    return {finding.check: finding for finding in findings}


def with_needs(**changes) -> Needs:
    return dataclasses.replace(NEEDS, **changes)


def test_a_cluster_that_has_everything_passes(server, tmp_path) -> None:
    found = look(server, tmp_path)
    assert {check: finding.state for check, finding in found.items()} == dict.fromkeys(
        ["api", "rights", "node", "quota", "retries"], "ok"
    )
    assert "1 of 2 nodes" in found["node"].told


def test_an_accelerator_that_no_node_has_names_those_that_are_there(server, tmp_path) -> None:
    found = look(server, tmp_path, with_needs(node_selector={"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}))
    assert found["node"].state == "failed"
    assert "no node has 1 x nvidia.com/gpu and cloud.google.com/gke-accelerator=nvidia-h100-80gb" in found["node"].told
    assert "nvidia-tesla-a100 (1 a node)" in found["node"].told


def test_a_pool_that_grows_from_nothing_is_no_failure(server, tmp_path) -> None:
    server.put("/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status", {"data": {}})
    found = look(server, tmp_path, with_needs(count=8))
    assert found["node"].state == "unknown"
    assert "autoscaler" in found["node"].told


def test_a_taint_that_is_not_tolerated_is_named_with_its_toleration(server, tmp_path) -> None:
    found = look(server, tmp_path, with_needs(tolerations=[]))
    assert "nvidia.com/gpu=present:NoSchedule" in found["node"].told
    assert '{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}' in found["node"].remedy


@pytest.mark.parametrize(
    ("toleration", "state"),
    [
        ({"operator": "Exists"}, "ok"),
        ({"key": "nvidia.com/gpu", "value": "present"}, "ok"),
        ({"key": "nvidia.com/gpu", "operator": "Equal", "value": "absent"}, "failed"),
        ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}, "failed"),
        ({"key": "other", "operator": "Exists"}, "failed"),
    ],
)
def test_tolerations_match_as_the_scheduler_matches_them(server, tmp_path, toleration, state) -> None:
    assert look(server, tmp_path, with_needs(tolerations=[toleration]))["node"].state == state


def test_a_node_that_is_too_small_or_cordoned_is_told(server, tmp_path) -> None:
    found = look(server, tmp_path, with_needs(cpu="16"))["node"]
    assert found.told == (
        "no node is large enough for a training pod of 16 cores, 32 GiB of memory and 1 nvidia.com/gpu; the largest of "
        "1 has 12 cores, 85 GiB of memory and 1 nvidia.com/gpu"
    )
    put_node(server, "gpu", A100, {"cpu": "12", "memory": "85Gi", "nvidia.com/gpu": "1"}, [TAINT], unschedulable=True)
    assert "cordoned" in look(server, tmp_path)["node"].told


def test_a_pod_counts_what_is_free_of_a_node_not_its_size(server, tmp_path) -> None:
    """Daemons and the platform's own pods take a part of every node, and stay."""
    put_node(server, "cpu", {}, {"cpu": "2", "memory": "7900Mi"})
    put_pod(server, "kube-proxy", "cpu", {"cpu": "130m", "memory": "200Mi"})
    put_pod(server, "ml-pipeline", "cpu", {"cpu": "500m", "memory": "1Gi"})
    put_pod(server, "done", "cpu", {"cpu": "1"}, restart="Never", phase="Succeeded")  # takes nothing any more
    put_pod(server, "elsewhere", "gpu", {"cpu": "10"})
    small = {"count": 0, "memory": "2Gi", "node_selector": {}, "tolerations": []}
    put_node(server, "gpu", A100, {"cpu": "1", "memory": "85Gi", "nvidia.com/gpu": "1"}, [TAINT])
    found = look(server, tmp_path, with_needs(cpu="2", **small))["node"]
    assert found.state == "failed"
    assert found.told == (
        "no node has 2 cores and 2 GiB of memory free for a training pod: of cpu's 2 cores and 7.71 GiB of memory, "
        "services take 0.63 cores and 1.2 GiB of memory, which leaves 1.37 cores and 6.52 GiB of memory"
    )
    assert look(server, tmp_path, with_needs(cpu="1300m", **small))["node"].state == "ok"
    server.put("/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status", {"data": {}})
    assert look(server, tmp_path, with_needs(cpu="2", **small))["node"].state == "unknown"  # a new node has more free


def test_a_node_that_only_other_runs_occupy_is_worth_waiting_for(server, tmp_path) -> None:
    put_pod(server, "another-run", "gpu", {"cpu": "8", "nvidia.com/gpu": "1"}, restart="Never")
    found = look(server, tmp_path)["node"]
    assert found.state == "ok"
    assert (
        "when others are done: work that ends takes 8 cores, 0 GiB of memory and 1 nvidia.com/gpu of gpu" in found.told
    )


def test_pods_that_may_not_be_looked_at_leave_a_node_in_doubt(server, tmp_path) -> None:
    server.denied.add(("list", "", "pods"))
    found = look(server, tmp_path)["node"]
    assert found.state == "unknown"
    assert "1 of 2 nodes can take a training pod with 1 x nvidia.com/gpu by their size" in found.told


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pod-out-of-memory", {"cpu": "0.2", "memory": 450 * 2**20, "nvidia.com/gpu": "0"}),
        ("pod-failed", {"cpu": "1", "memory": 2 * 2**30}),
        ("pod-evicted", {"cpu": "0.2", "memory": 8 * 2**30, "nvidia.com/gpu": "0", "ephemeral-storage": 20 * 2**20}),
    ],
)
def test_requests_are_added_up_as_the_scheduler_does(shared, name, expected) -> None:
    """Real pods of a run: init containers run before, not beside (the launcher's 100m and 256Mi are not added)."""
    pod = json.loads((shared / "kfp-2.17" / f"{name}.json").read_text())
    assert pods.requested(pod) == {key: Decimal(value) for key, value in expected.items()}
    assert not pods.stays(pod)


def test_a_sidecar_stays_beside_what_follows_it() -> None:
    """By hand: the sidecar and the larger of what runs with it."""
    inits = [
        {"name": "before", "resources": {"requests": {"cpu": "3"}}},
        {"name": "sidecar", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
        {"name": "after", "resources": {"requests": {"cpu": "2500m"}}},
    ]
    main = {"name": "main", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}}}
    pod = {"spec": {"initContainers": inits, "containers": [main], "overhead": {"cpu": "100m"}}}
    assert pods.requested(pod) == {"cpu": Decimal("3.6"), "memory": Decimal(2**30)}


@pytest.mark.parametrize("label", ["nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major"])
@pytest.mark.parametrize(("driver", "state"), [("535", "failed"), ("580", "ok")])
def test_a_driver_that_is_too_old_is_named_with_the_one_that_is_needed(server, tmp_path, label, driver, state) -> None:
    labels = {**A100, label: driver}
    put_node(server, "gpu", labels, {"cpu": "12", "memory": "85Gi", "nvidia.com/gpu": "1"}, [TAINT])
    found = look(server, tmp_path)["node"]
    assert found.state == state
    if state == "failed":
        image = "torch 2.13.0 of the trainer's image is built for CUDA 13.0"
        assert found.told == f"the NVIDIA driver of gpu is 535, and {image}, which needs 580 or newer"


def test_the_driver_is_that_of_the_torch_that_is_installed() -> None:
    """Another torch may be built for another CUDA: then look at its release notes, and correct both."""
    constraints = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    assert f"torch=={nodes.TORCH}" in constraints


def test_ephemeral_storage_below_what_tasks_write_is_told(server, tmp_path) -> None:
    disks = {"download-dataset": "16Gi", "preprocess-dataset": "29Gi", "register-model": "1Gi"}
    limits = [{"type": "Container", "default": {"ephemeral-storage": "2Gi"}}]
    server.put("/api/v1/namespaces/ml/limitranges/runs", {"spec": {"limits": limits}})
    found = look(server, tmp_path, with_needs(disks=disks))["disk"]
    assert found.told == (
        "limit range runs of ml gives a container 2Gi of ephemeral storage, and download-dataset, "
        "preprocess-dataset need up to 29Gi: beyond it a pod is evicted"
    )
    limits[0]["default"]["ephemeral-storage"] = "100Gi"
    server.put("/api/v1/namespaces/ml/limitranges/runs", {"spec": {"limits": limits}})
    assert look(server, tmp_path, with_needs(disks=disks))["disk"].state == "ok"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("OnError", "whose pod was deleted; not one whose pod failed, was evicted"),
        ("Always", "whose pod was lost in any way, or failed"),
        ("Never", "a policy that is not known here, Never"),
    ],
)
def test_what_the_platform_repeats_is_read_from_its_controller(server, tmp_path, policy, words) -> None:
    server.put(CONTROLLER, {"data": {"workflowDefaults": defaults(policy)}})
    found = look(server, tmp_path)["retries"]
    assert found.state == "ok"
    assert words in found.told
    whole = "workflowDefaults:\n" + "".join(f"  {line}\n" for line in defaults(policy).splitlines())
    server.put(CONTROLLER, {"data": {"config": whole}})  # the other way in which Argo takes it
    assert words in look(server, tmp_path)["retries"].told


@pytest.mark.parametrize("how", ["forbidden", "absent", "broken", "another shape"])
def test_a_controller_whose_settings_cannot_be_read_is_unknown_not_wrong(server, tmp_path, how) -> None:
    if how == "forbidden":
        server.denied.add(("get", "", "configmaps"))
    elif how == "absent":
        server.remove(CONTROLLER)
    else:
        text = "{" if how == "broken" else "- a list"
        server.put(CONTROLLER, {"data": {"workflowDefaults": text}})
    assert look(server, tmp_path)["retries"].state == "unknown"


def test_a_store_that_is_smaller_than_a_run_is_told(server, tmp_path) -> None:
    needs = with_needs(store="38Gi")
    assert look(server, tmp_path, needs)["store"].state == "unknown"  # no claim of that name
    server.put(CLAIM, {"spec": {"resources": {"requests": {"storage": "20Gi"}}}})
    found = look(server, tmp_path, needs)["store"]
    assert found.told == (
        "the platform's store has 20Gi in all (claim seaweedfs-pvc), and a run of this recipe puts 38Gi there"
    )
    server.patch(CLAIM, {"status": {"capacity": {"storage": "200Gi"}}})  # it was enlarged
    assert look(server, tmp_path, needs)["store"].state == "ok"
    root = {"data": {"defaultPipelineRoot": "gs://bucket/root"}}
    server.put("/api/v1/namespaces/ml/configmaps/kfp-launcher", root)
    assert look(server, tmp_path, needs)["store"].state == "unknown"


def test_a_runs_room_is_that_of_its_recipe() -> None:
    """What the check compares with is what `mmgemma plan` prints; the sample's is not worth a look."""
    parameters = {"secret_store": "object-store"}
    recipe = needs_of.of_run(parameters, config.compose("llava-150k"), "ml")
    assert (recipe.disks["preprocess-dataset"], recipe.store) == ("29Gi", "38Gi")
    work = config.compose("llava-150k", ["training.nodes=2", "nodes.work_uri=s3://mlpipeline/work"])
    assert needs_of.of_run(parameters, work, "ml").store == "57Gi"  # which lies in the platform's own store too
    scored = needs_of.of_run(parameters, work, "ml", trains=False)  # a re-evaluation of it
    assert (scored.disks, scored.store, scored.train_job) == ({}, "", False)
    sample = needs_of.of_run(parameters, config.compose("sample"), "ml")
    assert (sample.disks, sample.store) == ({}, "")


def test_nodes_that_may_not_be_looked_at_stop_nothing(server, tmp_path) -> None:
    server.denied.add(("list", "", "nodes"))
    assert look(server, tmp_path)["node"].state == "unknown"


def test_a_quota_of_training_nodes_does_not_count_for_a_run_without_them(server, tmp_path) -> None:
    scope = {"scopeName": "PriorityClass", "operator": "In", "values": ["multimodal-gemma-training"]}
    spec = {"scopeSelector": {"matchExpressions": [scope]}}
    server.put(
        "/api/v1/namespaces/ml/resourcequotas/ranks",
        {"spec": spec, "status": {"hard": {"pods": "8"}, "used": {"pods": "8"}}},
    )
    assert look(server, tmp_path)["quota"].state == "ok"
    server.patch("/api/v1/namespaces/ml/resourcequotas/ranks", {"spec": {"scopeSelector": None}})
    assert "8 of 8 pods" in look(server, tmp_path)["quota"].told


def test_a_quota_that_is_used_up_is_told_with_its_figures(server, tmp_path) -> None:
    hard, used = {"requests.nvidia.com/gpu": "8", "limits.memory": "640Gi"}, {"requests.nvidia.com/gpu": "8"}
    server.put("/api/v1/namespaces/ml/resourcequotas/accelerators", {"status": {"hard": hard, "used": used}})
    found = look(server, tmp_path)["quota"]
    assert found.state == "failed"
    assert "quota accelerators of ml has 8 of 8 requests.nvidia.com/gpu in use, and the run asks for 1" in found.told


def test_quantities_are_compared_as_amounts_not_as_texts(server, tmp_path) -> None:
    hard, used = {"limits.memory": "64Gi", "limits.cpu": "10"}, {"limits.memory": "30000Mi", "limits.cpu": "1500m"}
    server.put("/api/v1/namespaces/ml/resourcequotas/size", {"status": {"hard": hard, "used": used}})
    assert look(server, tmp_path)["quota"].state == "ok"
    server.patch("/api/v1/namespaces/ml/resourcequotas/size", {"status": {"used": {"limits.cpu": "2100m"}}})
    assert "2100m of 10 limits.cpu" in look(server, tmp_path)["quota"].told


def test_a_limit_range_that_forbids_the_size_is_told(server, tmp_path) -> None:
    limits = [{"type": "Container", "max": {"memory": "16Gi"}}]
    server.put("/api/v1/namespaces/ml/limitranges/limits", {"spec": {"limits": limits}})
    assert "allows a container 16Gi memory" in look(server, tmp_path)["quota"].told


def test_a_secret_without_its_key_and_one_that_is_missing_are_told(server, tmp_path) -> None:
    encoded = base64.b64encode(b"never shown").decode()
    server.put("/api/v1/namespaces/ml/secrets/object-store", {"data": {"accesskey": encoded}})
    wanted = {"object-store": ["accesskey", "secretkey"], "huggingface": ["token"], "mlflow": ["username"]}
    found = look(server, tmp_path, with_needs(secrets=wanted, required=["huggingface"]))
    assert "has no key 'secretkey'; it has: accesskey" in found["secret object-store"].told
    assert "has no Secret huggingface, which this run needs" in found["secret huggingface"].told
    assert "create secret generic huggingface --from-literal=token=…" in found["secret huggingface"].remedy
    assert found["secret mlflow"].state == "ok"
    assert "never shown" not in json.dumps([dataclasses.asdict(finding) for finding in found.values()])


def test_a_service_is_there_only_with_a_ready_pod_behind_it(server, tmp_path) -> None:
    needs = with_needs(registry="http://mlflow.mlflow:5000")
    assert "does not have" in look(server, tmp_path, needs)["service mlflow.mlflow"].told
    server.put("/api/v1/namespaces/mlflow/services/mlflow", {"spec": {"ports": [{"port": 5000}]}})
    assert "no pod is ready" in look(server, tmp_path, needs)["service mlflow.mlflow"].told
    slices = {"metadata": {"labels": {"kubernetes.io/service-name": "mlflow"}}, "addressType": "IPv4", "endpoints": []}
    slices["endpoints"] = [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]
    server.put("/apis/discovery.k8s.io/v1/namespaces/mlflow/endpointslices/mlflow-x", slices)
    assert look(server, tmp_path, needs)["service mlflow.mlflow"].state == "ok"


@pytest.mark.parametrize(("address", "state"), [("{server}/version", "ok"), ("http://127.0.0.1:9", "failed")])
def test_an_address_outside_the_cluster_is_asked_itself(server, tmp_path, address, state) -> None:
    found = look(server, tmp_path, with_needs(registry=address.format(server=server.url)))
    assert [finding.state for check, finding in found.items() if check.startswith("server")] == [state]


def test_rights_that_the_service_account_lacks_are_named(server, tmp_path) -> None:
    server.denied |= {("create", "trainer.kubeflow.org", "trainjobs"), ("get", "", "pods")}
    server.groups["trainer.kubeflow.org"] = ["v1alpha1"]
    found = look(server, tmp_path, with_needs(train_job=True))["rights"]
    lacking = "get pods, create trainer.kubeflow.org trainjobs, get pods/log"
    assert found.told == f"service account multimodal-gemma in ml may not: {lacking}"


def test_a_pod_asks_about_its_own_rights(server, tmp_path) -> None:
    """For a review of somebody else a run has no right."""
    server.denied.add(("create", "authorization.k8s.io", "subjectaccessreviews"))
    assert look(server, tmp_path, with_needs(inside=True))["rights"].state == "ok"
    assert [path for _, path in server.requests if path.endswith("/selfsubjectaccessreviews")]
    assert not [path for _, path in server.requests if path.endswith("/subjectaccessreviews")]


def test_the_account_is_the_projects_where_it_is_and_else_that_of_the_ui(server, tmp_path) -> None:
    assert "service account multimodal-gemma may" in look(server, tmp_path)["rights"].told
    server.remove("/api/v1/namespaces/ml/serviceaccounts/multimodal-gemma")
    assert "no service account multimodal-gemma or pipeline-runner" in look(server, tmp_path)["rights"].told
    server.put("/api/v1/namespaces/ml/serviceaccounts/pipeline-runner", {})
    assert "service account pipeline-runner may" in look(server, tmp_path)["rights"].told


def test_a_namespace_without_the_service_account_says_what_to_apply(server, tmp_path) -> None:
    found = look(server, tmp_path, with_needs(service_account="nobody"))["rights"]
    assert "has no service account nobody" in found.told
    assert "kubectl apply -k" in found.remedy


def test_a_trainer_of_another_version_or_none_at_all_is_told(server, tmp_path) -> None:
    needs = with_needs(train_job=True, runtime="multimodal-gemma")
    assert "not installed" in look(server, tmp_path, needs)["trainer"].told
    server.groups["trainer.kubeflow.org"] = ["v1beta9"]
    assert (
        "serves TrainJob in v1beta9, and this project speaks v1alpha1" in look(server, tmp_path, needs)["trainer"].told
    )
    server.groups["trainer.kubeflow.org"] = ["v1alpha1"]
    assert look(server, tmp_path, needs)["runtime multimodal-gemma"].state == "failed"
    server.put("/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainingruntimes/multimodal-gemma", {"spec": {}})
    assert look(server, tmp_path, needs)["runtime multimodal-gemma"].state == "ok"


@pytest.mark.parametrize(
    ("own", "limit", "state"), [("", "50Gi", "failed"), ("", "90Gi", "ok"), ("80Gi", "50Gi", "ok")]
)
def test_a_scratch_volume_that_is_too_small_for_a_node_is_told(server, tmp_path, own, limit, state) -> None:
    server.groups["trainer.kubeflow.org"] = ["v1alpha1"]
    made = yaml.safe_load((Path(__file__).parents[3] / "manifests/trainer/runtime.yaml").read_text())
    pod = made["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["volumes"][0]["emptyDir"]["sizeLimit"] = limit
    server.put("/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainingruntimes/multimodal-gemma", made)
    needs = with_needs(train_job=True, runtime="multimodal-gemma", scratch="68Gi", scratch_given=own)
    found = look(server, tmp_path, needs)["runtime multimodal-gemma"]
    assert found.state == state
    if state == "failed":
        assert found.told == "a node's scratch volume has 50Gi, and this training writes up to 68Gi there"


def test_the_manifests_scratch_volume_holds_the_recipe() -> None:
    job = needs_of.of_run({}, config.compose("llava-150k", ["training.nodes=2", "nodes.work_uri=s3://b/work"]), "ml")
    made = yaml.safe_load((Path(__file__).parents[3] / "manifests/trainer/runtime.yaml").read_text())
    assert parse_quantity(spec.scratch(made)) >= parse_quantity(job.scratch) > 0


def test_a_queue_is_looked_for_where_one_is_named(server, tmp_path) -> None:
    server.groups |= {"trainer.kubeflow.org": ["v1alpha1"], "kueue.x-k8s.io": ["v1beta2"]}
    needs = with_needs(train_job=True, queue="multimodal-gemma")
    assert look(server, tmp_path, needs)["queue multimodal-gemma"].state == "failed"
    server.put("/apis/kueue.x-k8s.io/v1beta2/namespaces/ml/localqueues/multimodal-gemma", {"spec": {}})
    assert look(server, tmp_path, needs)["queue multimodal-gemma"].state == "ok"


def test_without_a_kubeconfig_it_says_how_to_get_one(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="there is no kubeconfig at .*nothing, and this is no pod. Log in"):
        client.connect()


def test_a_context_that_does_not_exist_names_those_that_do(server, tmp_path) -> None:
    path = server.kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(InputError, match="Its contexts: test"):
        client.connect(path, "prod")
    assert client.current_namespace(path) == "ml"


def test_an_expired_token_is_one_sentence(server, tmp_path) -> None:
    path = server.kubeconfig(tmp_path / "kubeconfig", token="expired")
    with pytest.raises(InputError, match="refuses the token"):
        look_at(lambda: client.connect(path), NEEDS, patience=2.0)


def test_an_api_that_does_not_answer_is_one_sentence(tmp_path) -> None:
    with KubernetesServer() as gone:
        path = gone.kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(InputError, match="has not answered"):
        look_at(lambda: client.connect(path), NEEDS, patience=0.5)


def test_a_busy_api_and_broken_connections_are_asked_again(server, tmp_path) -> None:
    server.fail_next(429, headers={"Retry-After": "0"})
    server.fail_next(503, contains="nodes")
    server.fail_next(0, contains="resourcequotas")
    assert {finding.state for finding in look(server, tmp_path, patience=10.0).values()} == {"ok"}


def test_what_is_no_kubernetes_api_is_told_as_such(server, tmp_path) -> None:
    server.fail_next(200, contains="version", body="<html>Sign in</html>")
    with pytest.raises(InputError, match="no Kubernetes API"):
        look(server, tmp_path)


def test_everything_that_failed_is_told_at_once(server, tmp_path) -> None:
    findings = list(look(server, tmp_path, with_needs(tolerations=[], service_account="nobody")).values())
    with pytest.raises(InputError) as caught:
        require(findings)
    assert "no service account nobody" in str(caught.value)
    assert "does not tolerate" in str(caught.value)


def test_a_run_looks_at_its_own_cluster_before_anything_else(server, tmp_path, monkeypatch) -> None:
    path = server.kubeconfig(tmp_path / "kubeconfig")
    connect = client.connect
    monkeypatch.setattr(client, "in_cluster", lambda: True)
    monkeypatch.setattr(client, "current_namespace", lambda: "ml")
    monkeypatch.setattr(client, "connect", lambda: connect(path))
    tracking = f"registry.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    overrides = [tracking, "resources.accelerator_count=4", "resources.cpu=8"]
    asked = {"preset": "sample", "hardware": "a100", "overrides": overrides}
    with pytest.raises(InputError, match="preflight: no node has 4 x nvidia.com/gpu"):
        stage.run(asked)


def test_a_run_on_a_cluster_refuses_a_recipe_without_a_gpu(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(client, "in_cluster", lambda: True)
    tracking = f"registry.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(InputError, match="preset llava-150k would train for days without a GPU"):
        stage.run({"preset": "llava-150k", "overrides": [tracking]})


@pytest.mark.parametrize("trainer", [True, False])
def test_a_run_on_spot_nodes_trains_as_a_trainjob_where_there_is_a_trainer(
    server,
    bucket,  # noqa: F811
    tmp_path,
    monkeypatch,
    trainer,
) -> None:
    spot = {**A100, "cloud.google.com/gke-spot": "true"}
    put_node(server, "gpu", spot, {"cpu": "12", "memory": "85Gi", "nvidia.com/gpu": "1"}, [TAINT])
    if trainer:
        server.groups["trainer.kubeflow.org"] = ["v1alpha1"]
        made = {"spec": {"template": {"spec": {"replicatedJobs": []}}}}
        server.put("/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainingruntimes/multimodal-gemma", made)
    path, connect = server.kubeconfig(tmp_path / "kubeconfig"), client.connect
    monkeypatch.setattr(client, "in_cluster", lambda: True)
    monkeypatch.setattr(client, "current_namespace", lambda: "ml")
    monkeypatch.setattr(client, "connect", lambda: connect(path))
    places = ["training.checkpoint_uri=s3://spot/kept", "nodes.work_uri=s3://spot/work"]
    tracking = f"registry.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    plans = stage.run({"preset": "sample", "hardware": "a100-spot", "overrides": [tracking, *places]})
    delegated = ("0", "500m", "2Gi", {}, [])
    own = (plans.train_count, plans.train_cpu, plans.train_memory, plans.train_nodes, plans.train_taints)
    assert (own == delegated) == trainer
    assert bool(json.loads(plans.plan)["config"].get("nodes", {}).get("train_job")) == trainer
    assert (plans.evaluate_count, plans.evaluate_nodes) == ("1", spot)


def test_the_command_prints_a_table_and_its_exit_code_tells_the_verdict(server, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    assert "KUBERNETES_SERVICE_HOST" not in os.environ
    gpu = ["preflight", "--quiet", "--param", "hardware=a100", "resources.cpu=8", "registry.tracking_uri=sqlite:///a"]
    assert main(gpu) == 0
    assert "✓ node" in capsys.readouterr().out
    assert main([*gpu, "resources.tolerations=[{key: other}]", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert not told["passed"]
    assert [check["state"] for check in told["checks"] if check["check"] == "node"] == ["failed"]


def test_an_amount_that_is_none_is_refused(server, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    assert main(["preflight", "resources.memory=lots"]) == 2
    assert "resources.memory='lots' is no amount" in capsys.readouterr().err
    assert main(["preflight", "resources.accelerator_count=two"]) == 2
    assert "does not fit preset sample" in capsys.readouterr().err
