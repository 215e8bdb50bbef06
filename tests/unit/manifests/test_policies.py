"""What is applied to a cluster keeps to the security rules, and a manifest that breaks one is found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.manifests import cluster_policies, container_policies
from tests.unit.manifests.pods import pods
from tests.unit.manifests.rendering import CLUSTERS, cluster, the

Objects = list[dict[str, Any]]
POLICIES = (*container_policies.POLICIES, *cluster_policies.POLICIES)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("name", CLUSTERS)
def test_every_manifest_keeps_to_every_policy(name: str, policy: Callable[[Objects], list[str]]) -> None:
    assert policy(cluster(name)) == []


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_pod_escapes_the_policies(name: str) -> None:
    assert sorted(pod.name for pod in pods(cluster(name))) == [
        "mlflow",
        "mlflow-database",
        "multimodal-gemma",
        "multimodal-gemma/node",
    ]


def _server(objects: Objects) -> dict[str, Any]:
    return the(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]


def _container(objects: Objects) -> dict[str, Any]:
    return _server(objects)["containers"][0]


def _ranks(objects: Objects) -> dict[str, Any]:
    (job,) = the(objects, "TrainingRuntime", "multimodal-gemma")["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def _secret(objects: Objects) -> None:
    objects.append({"kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"password": "hunter2"}})


def _in_kubeflow(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "added", "namespace": "kubeflow"}, "spec": spec}


def _without(kind: str, name: str) -> Callable[[Objects], None]:
    return lambda objects: objects.remove(the(objects, kind, name))


def _policy(name: str) -> Callable[[Objects], dict[str, Any]]:
    return lambda objects: the(objects, "NetworkPolicy", name)["spec"]


# One broken manifest a rule: how it is broken, and what the policy must say about it.
BROKEN: list[tuple[Callable[[Objects], list[str]], Callable[[Objects], Any], str]] = [
    (container_policies.not_root, lambda o: _server(o)["securityContext"].update(runAsNonRoot=False), "run as root"),
    (container_policies.not_root, lambda o: _server(o)["securityContext"].update(runAsUser=0), "run as root"),
    (container_policies.not_root, lambda o: _ranks(o)["securityContext"].pop("runAsUser"), "run as root"),
    (
        container_policies.no_privilege,
        lambda o: _container(o)["securityContext"].update(allowPrivilegeEscalation=True),
        "gain privilege",
    ),
    (
        container_policies.no_privilege,
        lambda o: _container(o)["securityContext"].update(privileged=True),
        "gain privilege",
    ),
    (container_policies.no_privilege, lambda o: _container(o)["securityContext"].pop("capabilities"), "capabilities"),
    (
        container_policies.no_privilege,
        lambda o: _container(o)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "capabilities",
    ),
    (
        container_policies.no_privilege,
        lambda o: _container(o)["securityContext"].pop("readOnlyRootFilesystem"),
        "its own image",
    ),
    (container_policies.no_privilege, lambda o: _server(o).update(hostNetwork=True), "shares hostNetwork"),
    (
        container_policies.no_privilege,
        lambda o: _server(o)["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
        "node's disk",
    ),
    (container_policies.system_calls_filtered, lambda o: _ranks(o)["securityContext"].pop("seccompProfile"), "seccomp"),
    (container_policies.sized, lambda o: _container(o)["resources"]["limits"].pop("memory"), "no limits of memory"),
    (container_policies.sized, lambda o: _container(o).pop("resources"), "no requests of cpu, memory"),
    (container_policies.sized, lambda o: _ranks(o)["volumes"][1].update(emptyDir={"medium": "Memory"}), "has no size"),
    (container_policies.images_pinned, lambda o: _container(o).update(image="mlflow/mlflow:latest"), "tomorrow"),
    (container_policies.images_pinned, lambda o: _container(o).update(image="localhost:5000/mlflow"), "tomorrow"),
    (container_policies.images_pinned, lambda o: _container(o).update(image="mlflow/mlflow:stable"), "tomorrow"),
    (container_policies.no_token, lambda o: _server(o).pop("automountServiceAccountToken"), "token"),
    (container_policies.no_plain_secret, _secret, "holds its values"),
    (
        container_policies.no_plain_secret,
        lambda o: _container(o)["env"].append({"name": "HF_TOKEN", "value": "hf_x"}),
        "stands in the manifest",
    ),
    (
        container_policies.no_plain_secret,
        lambda o: _container(o)["args"].append("--backend-store-uri=postgresql://mlflow:hunter2@db/mlflow"),
        "argument holds a password",
    ),
    (
        container_policies.no_plain_secret,
        lambda o: next(x for x in o if x["kind"] == "ConfigMap")["data"].update(x="postgresql://mlflow:hunter2@db/x"),
        "holds a password",
    ),
    (container_policies.answers_for_itself, lambda o: _container(o).pop("readinessProbe"), "no readinessProbe"),
    (cluster_policies.denied_by_default, _without("NetworkPolicy", "runs-default-deny"), "run in kubeflow"),
    (cluster_policies.denied_by_default, _without("NetworkPolicy", "trainer-default-deny"), "multimodal-gemma/node in"),
    (
        cluster_policies.denied_by_default,
        lambda o: _policy("runs-default-deny")(o).update(policyTypes=["Ingress"]),
        "nothing denies it",
    ),
    (
        cluster_policies.network_policies_mean_something,
        lambda o: _policy("runs-https")(o)["podSelector"]["matchLabels"].update(app="pipeline"),
        "runs-https: selects no pod",
    ),
    (
        cluster_policies.network_policies_mean_something,
        # What everyone writes first: the Service's port, which no pod has.
        lambda o: _policy("runs-platform")(o)["egress"][2]["ports"][0].update(port=9000),
        "opens 9000, where nobody listens",
    ),
    (
        cluster_policies.network_policies_mean_something,
        lambda o: _policy("runs-mlflow")(o)["egress"][0]["to"][0]["podSelector"]["matchLabels"].update(
            {"app": "mlflow"}
        ),
        "runs-mlflow: nobody is",
    ),
    (
        cluster_policies.network_policies_mean_something,
        lambda o: _policy("trainer-dependencies")(o)["egress"][3]["ports"][0].update(port=10444),
        "opens 10444, where nobody listens",
    ),
    (
        cluster_policies.network_policies_mean_something,
        lambda o: _policy("mlflow-database")(o)["ingress"][0]["ports"][0].update(port=5433),
        "opens 5433",
    ),
    (
        cluster_policies.services_find_their_pods,
        lambda o: the(o, "Service", "mlflow")["spec"]["selector"].update({"app": "mlflow"}),
        "Service mlflow: selects no pod",
    ),
    (
        cluster_policies.services_find_their_pods,
        lambda o: the(o, "PodDisruptionBudget", "mlflow")["spec"]["selector"]["matchLabels"].update({"app": "x"}),
        "PodDisruptionBudget mlflow: selects no pod",
    ),
    (
        cluster_policies.services_find_their_pods,
        lambda o: the(o, "Service", "mlflow")["spec"]["ports"][0].update(targetPort="https"),
        "no pod names a port https",
    ),
    (
        cluster_policies.rights_are_small,
        lambda o: the(o, "Role", "multimodal-gemma")["rules"].append(
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
        ),
        "reads Secrets by the API",
    ),
    (
        cluster_policies.rights_are_small,
        # Named, but one of ours: a pod gets its value from the kubelet.
        lambda o: next(
            rule for rule in the(o, "Role", "multimodal-gemma")["rules"] if rule["resources"] == ["secrets"]
        )["resourceNames"].append("mlflow"),
        "reads Secrets by the API",
    ),
    (
        cluster_policies.rights_are_small,
        lambda o: the(o, "Role", "multimodal-gemma")["rules"][0].update(verbs=["*"]),
        "takes everything",
    ),
    (
        cluster_policies.rights_are_small,
        lambda o: the(o, "ClusterRole", "multimodal-gemma-nodes")["rules"][0].update(verbs=["get", "delete"]),
        "writes to the whole cluster",
    ),
    (
        cluster_policies.rights_are_small,
        # What kustomize leaves when a binding names an account of another part.
        lambda o: the(o, "RoleBinding", "multimodal-gemma-trainjobs")["subjects"][0].pop("namespace"),
        "who is not there",
    ),
    (
        cluster_policies.others_are_left_alone,
        # What was here before: the label that every run of everybody has.
        lambda o: _policy("runs-default-deny")(o)["podSelector"].update(
            matchLabels={"pipelines.kubeflow.org/v2_component": "true"}
        ),
        "runs-default-deny: restricts somebody else's run",
    ),
    (
        cluster_policies.others_are_left_alone,
        lambda o: _policy("runs-https")(o).update(podSelector={}),
        "runs-https: restricts ml-pipeline",
    ),
    (
        cluster_policies.others_are_left_alone,
        lambda o: o.append(_in_kubeflow("ResourceQuota", {"hard": {"requests.nvidia.com/gpu": "8"}})),
        "counts every pod of kubeflow",
    ),
    (
        cluster_policies.others_are_left_alone,
        lambda o: o.append(_in_kubeflow("LimitRange", {"limits": []})),
        "changes every pod of kubeflow",
    ),
    (
        cluster_policies.scratch_is_enough,
        lambda o: o.append(
            _in_kubeflow("LimitRange", {"limits": [{"type": "Container", "default": {"ephemeral-storage": "2Gi"}}]})
        ),
        "is evicted",
    ),
    (cluster_policies.names_mean_something, _without("PriorityClass", "multimodal-gemma-service"), "PriorityClass"),
    (cluster_policies.names_mean_something, _without("ServiceAccount", "mlflow"), "ServiceAccount mlflow"),
    (cluster_policies.names_mean_something, _without("ResourceFlavor", "multimodal-gemma-cpu"), "flavor"),
    (cluster_policies.names_mean_something, _without("ClusterQueue", "multimodal-gemma"), "its ClusterQueue"),
    (
        cluster_policies.namespaces_are_guarded,
        lambda o: the(o, "Namespace", "mlflow")["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce"),
        "admits privileged pods",
    ),
]


@pytest.mark.parametrize(("policy", "breaking", "said"), BROKEN, ids=[f"{p.__name__}-{said}" for p, _, said in BROKEN])
def test_a_broken_manifest_is_found_out(
    policy: Callable[[Objects], list[str]], breaking: Callable[[Objects], Any], said: str
) -> None:
    objects = cluster("kind")
    assert policy(objects) == []
    breaking(objects)
    assert any(said in line for line in policy(objects)), policy(objects)


def test_every_policy_has_a_manifest_that_breaks_it() -> None:
    assert {policy for policy, _, _ in BROKEN} == set(POLICIES)
