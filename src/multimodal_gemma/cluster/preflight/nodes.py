"""Is there a node that the training pod can be put on, and does the namespace's quota let it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multimodal_gemma.cluster.kube.client import Namespace, Object, Refused
from multimodal_gemma.cluster.preflight.findings import Finding, failed, ok, unknown
from multimodal_gemma.cluster.preflight.needs import Needs

_NODES = "/api/v1/nodes"
_AUTOSCALER = "/api/v1/namespaces/kube-system/configmaps"
_KINDS = ("cloud.google.com/gke-accelerator", "nvidia.com/gpu.product")  # labels that say which accelerator it is
_REPELLING = ("NoSchedule", "NoExecute")
_QUOTAS = "/api/v1/namespaces/{namespace}/resourcequotas"
_RANGES = "/api/v1/namespaces/{namespace}/limitranges"


def node(cluster: Namespace, needs: Needs) -> Finding:
    """Is there a node with the labels, the accelerators and the size, whose taints are tolerated?"""
    check = "node"
    try:
        nodes, _ = cluster.list(_NODES, {})
    except Refused as refused:
        return unknown(check, f"the nodes cannot be looked at ({refused.message})")
    fitting = [item for item in nodes if _has(item, needs.node_selector)]
    if needs.count:
        fitting = [item for item in fitting if _allocatable(item, needs.accelerator) >= needs.count]
    if not fitting:
        return _none_has(cluster, needs, nodes)
    large = [item for item in fitting if _fits(item, needs)]
    if not large:
        return failed(
            check,
            f"none of the {len(fitting)} fitting nodes can give {needs.cpu} cores and {needs.memory} to one pod",
            "Lower resources_cpu and resources_memory, or use larger nodes.",
        )
    tolerated = [item for item in large if not _repelling(item, needs.tolerations)]
    if not tolerated:
        taint = _repelling(large[0], needs.tolerations)[0]
        text = f"{taint['key']}={taint.get('value', '')}:{taint['effect']}"
        return failed(
            check,
            f"every fitting node has a taint that the run does not tolerate: {text}",
            f'Add {{"key": "{taint["key"]}", "operator": "Exists", "effect": "{taint["effect"]}"}} to '
            "resources_tolerations.",
        )
    ready = [item for item in tolerated if _ready(item)]
    if not ready:
        return failed(check, "every fitting node is cordoned or not ready", "Uncordon one, or wait until one is ready.")
    what = f"{needs.count} x {needs.accelerator}" if needs.count else "a CPU"
    return ok(check, f"{len(ready)} of {len(nodes)} nodes can take a training pod with {what}")


def _none_has(cluster: Namespace, needs: Needs, nodes: Sequence[Object]) -> Finding:
    wanted = ", ".join(f"{key}={value}" for key, value in needs.node_selector.items())
    wanted = " and ".join(filter(None, [f"{needs.count} x {needs.accelerator}" if needs.count else "", wanted]))
    there = sorted(
        {
            f"{item['metadata']['labels'][label]} ({_allocatable(item, needs.accelerator)} a node)"
            for item in nodes
            for label in _KINDS
            if label in (item["metadata"].get("labels") or {})
        }
    )
    have = f"its accelerators: {', '.join(there)}" if there else f"none of its {len(nodes)} nodes shows an accelerator"
    told = f"no node has {wanted or 'room'}; {have}"
    grows = _grows(cluster)
    if grows is None:
        return failed(
            "node",
            told,
            "Choose an accelerator that is there with resources_node_selector and resources_accelerator_count, or add "
            "a node pool.",
        )
    return unknown("node", f"{told}. {grows}, which may add one while the pod waits")


def _grows(cluster: Namespace) -> str | None:
    """Return what adds nodes to this cluster; None where nothing does."""
    try:
        if cluster.get(_AUTOSCALER, "cluster-autoscaler-status") is not None:
            return "The cluster has an autoscaler"
        if cluster.get("/apis", "karpenter.sh") is not None:
            return "The cluster has Karpenter"
    except Refused as refused:
        return f"Whether an autoscaler is at work cannot be seen ({refused.message})"
    return None


def _has(item: Object, labels: Mapping[str, str]) -> bool:
    own = item["metadata"].get("labels") or {}
    return all(own.get(key) == str(value) for key, value in labels.items())


def _allocatable(item: Object, resource: str) -> int:
    return int((item.get("status") or {}).get("allocatable", {}).get(resource, 0))


def _fits(item: Object, needs: Needs) -> bool:
    from kubernetes.utils.quantity import parse_quantity

    room = (item.get("status") or {}).get("allocatable", {})
    asked = {"cpu": needs.cpu, "memory": needs.memory}
    return all(parse_quantity(asked[key]) <= parse_quantity(room[key]) for key in asked if key in room)


def _repelling(item: Object, tolerations: Sequence[Mapping[str, Any]]) -> list[Object]:
    """Return the taints of a node that keep the pod away."""
    taints = (item.get("spec") or {}).get("taints") or []
    return [
        taint
        for taint in taints
        if taint.get("effect") in _REPELLING
        and taint.get("key") != "node.kubernetes.io/unschedulable"  # a cordon, told as such
        and not any(_tolerates(one, taint) for one in tolerations)
    ]


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Whether a toleration matches a taint, as the scheduler decides it."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint["key"]:
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", "")


def _ready(item: Object) -> bool:
    conditions = (item.get("status") or {}).get("conditions") or []
    unready = any(one.get("type") == "Ready" and one.get("status") != "True" for one in conditions)
    return not unready and not (item.get("spec") or {}).get("unschedulable")


def quota(cluster: Namespace, needs: Needs) -> Finding:
    """Does every quota have room for one training pod, and no limit range forbid its size?"""
    from kubernetes.utils.quantity import parse_quantity

    check = "quota"
    try:
        quotas, _ = cluster.list(_QUOTAS, {})
        ranges, _ = cluster.list(_RANGES, {})
    except Refused as refused:
        return unknown(check, f"the quota cannot be looked at ({refused.message})")
    asked = {"pods": "1", "count/pods": "1"}
    for kind in ("requests", "limits"):
        asked |= {f"{kind}.cpu": needs.cpu, f"{kind}.memory": needs.memory}
        if needs.count:
            asked[f"{kind}.{needs.accelerator}"] = str(needs.count)
    asked |= {"cpu": needs.cpu, "memory": needs.memory}
    for item in quotas:
        status = item.get("status") or {}
        for name, hard in (status.get("hard") or {}).items():
            used = (status.get("used") or {}).get(name, "0")
            if name in asked and parse_quantity(used) + parse_quantity(asked[name]) > parse_quantity(hard):
                return failed(
                    check,
                    f"quota {item['metadata']['name']} of {needs.namespace} has {used} of {hard} {name} in use, and "
                    f"the run asks for {asked[name]}",
                    "Wait until other runs end, ask for less, or have the quota raised.",
                )
    own = {"cpu": needs.cpu, "memory": needs.memory}
    for item in ranges:
        for limit in (item.get("spec") or {}).get("limits") or []:
            most = limit.get("max") or {}
            for name in own.keys() & most.keys():
                if limit.get("type") in ("Container", "Pod") and parse_quantity(own[name]) > parse_quantity(most[name]):
                    return failed(
                        check,
                        f"limit range {item['metadata']['name']} allows a {limit['type'].lower()} {most[name]} {name}, "
                        f"and the run asks for {own[name]}",
                        f"Lower resources_{name}, or have the limit raised.",
                    )
    return ok(check, "what is left of it is enough for a training pod" if quotas else "there is none")
