"""What a cluster's objects must keep to together: networks closed, rights small, and every name meaning something."""

from __future__ import annotations

from typing import Any

from tests.unit.manifests.pods import PLATFORM, SOMEBODY_ELSES, Object, Pod, made_by_kubeflow, pods

# Rights whose holder could take every other right of the namespace.
_TAKES_ALL = {"*", "escalate", "bind", "impersonate"}
# Kubeflow's launcher asks the API for it (objectstore.getS3BucketCredential, 2.17); everything else is a variable.
_STORE_OF_THE_PLATFORM = "mlpipeline-minio-artifact"


def selects(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects everything."""
    selector = selector or {}
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        value = labels.get(rule["key"])
        kept = {
            "In": value in rule.get("values", []),
            "NotIn": value not in rule.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[rule["operator"]]
        if not kept:
            return False
    return True


def denied_by_default(objects: list[Object]) -> list[str]:
    """Whatever is not allowed to a pod of ours, in or out, is denied."""
    denying = [
        policy
        for policy in _of(objects, "NetworkPolicy")
        if set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].get("ingress")
        and not policy["spec"].get("egress")
    ]
    return [
        f"{pod.name} in {pod.namespace}: nothing denies it the network"
        for pod in _ours(objects)
        if not any(
            policy["metadata"]["namespace"] == pod.namespace and selects(policy["spec"]["podSelector"], pod.labels)
            for policy in denying
        )
    ]


def network_policies_mean_something(objects: list[Object]) -> list[str]:
    """Each side of each policy is a pod that exists, and listens on the port that is opened."""
    lines = []
    everyone = [*_ours(objects), *PLATFORM]
    for policy in _of(objects, "NetworkPolicy"):
        name, spec = policy["metadata"]["name"], policy["spec"]
        own = [pod for pod in everyone if pod.namespace == policy["metadata"]["namespace"]]
        subjects = [pod for pod in own if selects(spec["podSelector"], pod.labels)]
        if not subjects:
            lines.append(f"{name}: selects no pod")
        for rule in spec.get("ingress", []):
            lines += _closed(name, rule, subjects)
            lines += [f"{name}: nobody is {peer}" for peer in _unmet(rule.get("from", []), own, everyone)]
        for rule in spec.get("egress", []):
            lines += [f"{name}: nobody is {peer}" for peer in _unmet(rule.get("to", []), own, everyone)]
            for peer in rule.get("to", []):
                lines += _closed(name, rule, _met(peer, own, everyone))
    return lines


def services_find_their_pods(objects: list[Object]) -> list[str]:
    """Services and disruption budgets select a pod, and a Service's port is one that the pod names."""
    lines = []
    for one in objects:
        if one["kind"] not in ("Service", "PodDisruptionBudget"):
            continue
        selector = one["spec"]["selector"]
        labels = selector["matchLabels"] if one["kind"] == "PodDisruptionBudget" else selector
        found = [pod for pod in pods(objects) if pod.namespace == one["metadata"]["namespace"]]
        found = [pod for pod in found if selects({"matchLabels": labels}, pod.labels)]
        if not found:
            lines.append(f"{one['kind']} {one['metadata']['name']}: selects no pod")
        named = {port["name"] for pod in found for container in pod.containers for port in container.get("ports", [])}
        for port in one["spec"].get("ports", []):
            if found and port["targetPort"] not in named:
                lines.append(f"Service {one['metadata']['name']}: no pod names a port {port['targetPort']}")
    return lines


def rights_are_small(objects: list[Object]) -> list[str]:
    """No role takes everything, reads a Secret of ours, writes to the whole cluster, or is given to nobody."""
    lines = []
    for role in [*_of(objects, "Role"), *_of(objects, "ClusterRole")]:
        name = role["metadata"]["name"]
        for rule in role["rules"]:
            if "*" in rule["resources"] + rule["apiGroups"] or _TAKES_ALL & set(rule["verbs"]):
                lines.append(f"{name}: takes everything")
            if "secrets" in rule["resources"] and (
                rule.get("resourceNames") != [_STORE_OF_THE_PLATFORM] or rule["verbs"] != ["get"]
            ):
                lines.append(f"{name}: reads Secrets by the API")
            if role["kind"] == "ClusterRole" and not set(rule["verbs"]) <= {"get", "list", "watch"}:
                lines.append(f"{name}: writes to the whole cluster")
    accounts = {_key(one) for one in _of(objects, "ServiceAccount")}
    roles = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for binding in [*_of(objects, "RoleBinding"), *_of(objects, "ClusterRoleBinding")]:
        name = binding["metadata"]["name"]
        lines += [
            f"{name}: gives its role to {one.get('name')}, who is not there"
            for one in binding["subjects"]
            if (one.get("namespace"), one["name"]) not in accounts
        ]
        if (binding["roleRef"]["kind"], binding["roleRef"]["name"]) not in roles:
            lines.append(f"{name}: its role is not there")
    return lines


def others_are_left_alone(objects: list[Object]) -> list[str]:
    """In a namespace that is not ours, no network policy, quota or limit touches a pod that is not ours."""
    made = {one["metadata"]["name"] for one in _of(objects, "Namespace")}
    others = [*PLATFORM, SOMEBODY_ELSES]
    lines = []
    for one in objects:
        kind, name, namespace = one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")
        if namespace in made:
            continue
        if kind == "NetworkPolicy":
            selected = [pod for pod in others if pod.namespace == namespace]
            selected = [pod for pod in selected if selects(one["spec"]["podSelector"], pod.labels)]
            lines += [f"{name}: restricts {pod.name} in {namespace}" for pod in selected]
        if kind == "LimitRange":
            lines.append(f"{name}: changes every pod of {namespace}")
        if kind == "ResourceQuota":
            scopes = one["spec"].get("scopeSelector", {}).get("matchExpressions", [])
            classes = {value for scope in scopes if scope["scopeName"] == "PriorityClass" for value in scope["values"]}
            if not classes or not all(value.startswith("multimodal-gemma") for value in classes):
                lines.append(f"{name}: counts every pod of {namespace}")
    return lines


def scratch_is_enough(objects: list[Object]) -> list[str]:
    """What a container may write that cannot say so itself is what the recipe's largest task writes."""
    return [
        f"LimitRange {one['metadata']['name']}: a task that writes 90 GiB is evicted"
        for one in _of(objects, "LimitRange")
        for limit in one["spec"]["limits"]
        if "ephemeral-storage" in limit.get("default", {})
        and int(limit["default"]["ephemeral-storage"].removesuffix("Gi")) < 90
    ]


def names_mean_something(objects: list[Object]) -> list[str]:
    """The priority class, ServiceAccount, ConfigMap and queue that an object names are there."""
    there = {(one["kind"], *_key(one)) for one in objects}
    lines = []
    for pod in pods(objects):
        spec = pod.spec or {}
        wanted: list[tuple[Any, ...]] = [
            ("PriorityClass", None, spec.get("priorityClassName")),
            ("ServiceAccount", pod.namespace, spec.get("serviceAccountName")),
            *(
                ("ConfigMap", pod.namespace, v["configMap"]["name"])
                for v in spec.get("volumes", [])
                if "configMap" in v
            ),
        ]
        lines += [
            f"{pod.name}: {kind} {name} is not there"
            for kind, space, name in wanted
            if (kind, space, name) not in there
        ]
    flavors = {one["metadata"]["name"] for one in _of(objects, "ResourceFlavor")}
    for queue in _of(objects, "ClusterQueue"):
        used = {flavor["name"] for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]}
        lines += [f"queue {queue['metadata']['name']}: flavor {name} is not there" for name in used ^ flavors]
    for queue in _of(objects, "LocalQueue"):
        if ("ClusterQueue", None, queue["spec"]["clusterQueue"]) not in there:
            lines.append(f"queue {queue['metadata']['name']}: its ClusterQueue is not there")
    return lines


def namespaces_are_guarded(objects: list[Object]) -> list[str]:
    """Every namespace that we make enforces a Pod Security level and warns at the strictest."""
    prefix = "pod-security.kubernetes.io/"
    lines = []
    for one in _of(objects, "Namespace"):
        labels = one["metadata"].get("labels", {})
        if labels.get(prefix + "enforce") not in ("baseline", "restricted") or any(
            labels.get(prefix + mode) != "restricted" for mode in ("warn", "audit")
        ):
            lines.append(f"namespace {one['metadata']['name']}: admits privileged pods")
    return lines


POLICIES = (
    denied_by_default,
    network_policies_mean_something,
    services_find_their_pods,
    rights_are_small,
    others_are_left_alone,
    scratch_is_enough,
    names_mean_something,
    namespaces_are_guarded,
)


def _of(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def _key(one: Object) -> tuple[str | None, str]:
    return one["metadata"].get("namespace"), one["metadata"]["name"]


def _ours(objects: list[Object]) -> list[Pod]:
    return [*pods(objects), *made_by_kubeflow(objects)]


def _met(peer: Object, own: list[Pod], everyone: list[Pod]) -> list[Pod]:
    if "ipBlock" in peer:
        return []
    candidates = own
    if "namespaceSelector" in peer:
        name = "kubernetes.io/metadata.name"
        candidates = [pod for pod in everyone if selects(peer["namespaceSelector"], {name: pod.namespace})]
    return [pod for pod in candidates if selects(peer.get("podSelector"), pod.labels)]


def _unmet(peers: list[Object], own: list[Pod], everyone: list[Pod]) -> list[str]:
    return [str(peer) for peer in peers if "ipBlock" not in peer and not _met(peer, own, everyone)]


def _closed(name: str, rule: Object, listeners: list[Pod]) -> list[str]:
    """Ports that a rule opens and no listener has; a policy sees the pod's port, not its Service's."""
    heard = {port for pod in listeners for port in pod.ports}
    opened = {port["port"] for port in rule.get("ports", [])}
    return [f"{name}: opens {port}, where nobody listens" for port in sorted(opened - heard) if heard]
