"""What would stop a run on a cluster is found before the run, and told with what to do about it."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma.cli import main
from multimodal_gemma.cluster.kube import client
from multimodal_gemma.cluster.preflight.findings import Finding, require
from multimodal_gemma.cluster.preflight.look import look as look_at
from multimodal_gemma.cluster.preflight.needs import Needs
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import preflight as stage
from tests.servers.kubernetes_api import KubernetesServer

A100 = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
NEEDS = Needs("ml", count=1, cpu="8", memory="32Gi", node_selector=A100, tolerations=[TOLERATION])


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    """A cluster where everything is as a run needs it: one CPU node, one node with an A100."""
    with KubernetesServer() as made:
        made.put("/api/v1/namespaces/ml/serviceaccounts/multimodal-gemma", {})
        put_node(made, "cpu", {}, {"cpu": "4", "memory": "16Gi"})
        put_node(made, "gpu", A100, {"cpu": "12", "memory": "85Gi", "nvidia.com/gpu": "1"}, [TAINT])
        yield made


def put_node(server: KubernetesServer, name: str, labels: dict, room: dict, taints: list | None = None, **spec) -> None:
    status = {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}
    content = {"metadata": {"labels": labels}, "spec": {"taints": taints or [], **spec}, "status": status}
    server.put(f"/api/v1/nodes/{name}", content)


def look(server: KubernetesServer, tmp_path: Path, needs: Needs = NEEDS, **options) -> dict[str, Finding]:
    path = server.kubeconfig(tmp_path / "kubeconfig")
    findings = look_at(lambda: client.connect(path), needs, **{"patience": 2.0, **options})
    return {finding.check: finding for finding in findings}


def with_needs(**changes) -> Needs:
    return dataclasses.replace(NEEDS, **changes)


def test_a_cluster_that_has_everything_passes(server, tmp_path) -> None:
    found = look(server, tmp_path)
    assert {check: finding.state for check, finding in found.items()} == dict.fromkeys(
        ["api", "rights", "node", "quota"], "ok"
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
    assert "can give 16 cores" in look(server, tmp_path, with_needs(cpu="16"))["node"].told
    put_node(server, "gpu", A100, {"cpu": "12", "memory": "85Gi", "nvidia.com/gpu": "1"}, [TAINT], unschedulable=True)
    assert "cordoned" in look(server, tmp_path)["node"].told


def test_nodes_that_may_not_be_looked_at_stop_nothing(server, tmp_path) -> None:
    server.denied.add(("list", "", "nodes"))
    assert look(server, tmp_path)["node"].state == "unknown"


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
    needs = with_needs(services=["http://mlflow.mlflow:5000"])
    assert "does not have" in look(server, tmp_path, needs)["service mlflow.mlflow"].told
    server.put("/api/v1/namespaces/mlflow/services/mlflow", {"spec": {"ports": [{"port": 5000}]}})
    assert "no pod is ready" in look(server, tmp_path, needs)["service mlflow.mlflow"].told
    slices = {"metadata": {"labels": {"kubernetes.io/service-name": "mlflow"}}, "addressType": "IPv4", "endpoints": []}
    slices["endpoints"] = [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]
    server.put("/apis/discovery.k8s.io/v1/namespaces/mlflow/endpointslices/mlflow-x", slices)
    assert look(server, tmp_path, needs)["service mlflow.mlflow"].state == "ok"


def test_an_address_outside_the_cluster_is_asked_itself(server, tmp_path) -> None:
    nobody = "http://127.0.0.1:9"
    found = look(server, tmp_path, with_needs(services=[server.url + "/version", nobody]))
    assert [finding.state for check, finding in found.items() if check.startswith("server")] == ["ok", "failed"]


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
    placement = {"resources_accelerator_count": "4", "resources_node_selector": A100}
    tracking = f"registry.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(InputError, match="preflight: no node has 4 x nvidia.com/gpu"):
        stage.run("sample", [tracking], placement=placement)


def test_the_command_prints_a_table_and_its_exit_code_tells_the_verdict(server, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    assert "KUBERNETES_SERVICE_HOST" not in os.environ
    arguments = ["preflight", "--quiet", "--param", "resources_memory=64Gi", "--param", "resources_cpu=8"]
    selector = f"resources_node_selector={json.dumps(A100)}"
    tolerated = f"resources_tolerations={json.dumps([TOLERATION])}"
    gpu = ["--param", "resources_accelerator_count=1", "--param", selector, "--param"]
    assert main([*arguments, *gpu, tolerated]) == 0
    assert "✓ node" in capsys.readouterr().out
    assert main([*arguments, *gpu, "resources_tolerations=[]", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert not told["passed"]
    assert [check["state"] for check in told["checks"] if check["check"] == "node"] == ["failed"]


def test_an_amount_that_is_none_is_refused(server, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    assert main(["preflight", "--param", "resources_memory=lots"]) == 2
    assert "resources_memory='lots' is no amount" in capsys.readouterr().err
    assert main(["preflight", "--param", "resources_accelerator_count=two"]) == 2
    assert "is no count" in capsys.readouterr().err
