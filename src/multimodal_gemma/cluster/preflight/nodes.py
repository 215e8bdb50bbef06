"""Is there a node that the training pod can be put on, and does the namespace let it be that large?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from multimodal_gemma.cluster.kube import pods
from multimodal_gemma.cluster.kube.client import PODS, Namespace, Object
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.cluster.preflight.findings import Finding, failed, ok, unknown
from multimodal_gemma.cluster.preflight.needs import Needs

_NODES = "/api/v1/nodes"
_EVERYBODYS = "/api/v1/pods"
_AUTOSCALER = "/api/v1/namespaces/kube-system/configmaps"
_QUOTAS = "/api/v1/namespaces/{namespace}/resourcequotas"
_RANGES = "/api/v1/namespaces/{namespace}/limitranges"
_KINDS = ("cloud.google.com/gke-accelerator", "nvidia.com/gpu.product")  # labels that say which accelerator it is
_REPELLING = ("NoSchedule", "NoExecute")
_ALIVE = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
# Labels of GPU Feature Discovery, today's name and the former one
# (https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md).
_DRIVERS = ("nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major")
# PyPI's torch 2.13.0 is built for CUDA 13.0 (https://github.com/googlecolab/colabtools/issues/6053), which needs driver
# 580 (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
TORCH, CUDA, DRIVER = "2.13.0", "13.0", 580


@dataclasses.dataclass(frozen=True)
class _Node:
    """A node as a pod that looks for a place sees it; amounts by resource."""

    item: Object
    size: dict[str, Decimal]
    services: dict[str, Decimal]  # what pods take that stay
    work: dict[str, Decimal]  # what pods take that end

    @property
    def name(self) -> str:
        return str(self.item["metadata"]["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        return self.item["metadata"].get("labels") or {}

    def takes(self, asked: Mapping[str, Decimal], *taken: Mapping[str, Decimal]) -> bool:
        """Whether what is asked fits beside what is taken."""
        return all(
            amount <= self.size[name] - sum(one.get(name, Decimal()) for one in taken)
            for name, amount in asked.items()
            if name in self.size
        )


def node(cluster: Namespace, needs: Needs) -> Finding:
    """Is there a node with the labels, the accelerators and the room, whose taints are tolerated?"""
    try:
        items, _ = cluster.list(_NODES, {})
    except Refused as refused:
        return unknown("node", f"the nodes cannot be looked at ({refused.message})")
    seen, unseen = _pods(cluster)
    every = [_node(item, seen) for item in items]
    fitting = [one for one in every if all(one.labels.get(key) == str(value) for key, value in _labels(needs))]
    if needs.count:
        fitting = [one for one in fitting if one.size.get(needs.accelerator, 0) >= needs.count]
    if not fitting:
        return _none_has(cluster, needs, every)
    if (small := _too_small(fitting, needs)) is not None:
        grows = _grows(cluster)
        return small if grows is None else unknown("node", f"{small.told}. {grows}, which may add one")
    return _refused(fitting, needs) or _told(fitting, len(every), needs, unseen)


def _too_small(fitting: Sequence[_Node], needs: Needs) -> Finding | None:
    """Return why the pod has room on none of the nodes; None where it has on one."""
    asked = _asked(needs)
    if not any(one.takes(asked) for one in fitting):
        most = max(fitting, key=lambda one: one.size.get("cpu", Decimal()))
        return failed(
            "node",
            f"no node is large enough for a training pod of {_text(asked)}; the largest of {len(fitting)} has "
            f"{_text(_part(most.size, asked))}",
            "Lower resources.cpu and resources.memory, or use larger nodes.",
        )
    if not any(one.takes(asked, one.services) for one in fitting):
        most = max(fitting, key=lambda one: one.size.get("cpu", Decimal()) - one.services.get("cpu", Decimal()))
        free = {name: most.size[name] - most.services.get(name, Decimal()) for name in asked if name in most.size}
        return failed(
            "node",
            f"no node has {_text(asked)} free for a training pod: of {most.name}'s {_text(_part(most.size, asked))}, "
            f"services take {_text(_part(most.services, asked))}, which leaves {_text(free)}",
            "Lower resources.cpu and resources.memory to what is left, or add a node.",
        )
    return None


def _refused(fitting: Sequence[_Node], needs: Needs) -> Finding | None:
    """Return why none of the nodes that have room takes the pod; None where one does."""
    roomy = [one for one in fitting if one.takes(_asked(needs), one.services)]
    tolerated = [one for one in roomy if not _repelling(one.item, needs.tolerations)]
    if not tolerated:
        taint = _repelling(roomy[0].item, needs.tolerations)[0]
        return failed(
            "node",
            "every fitting node has a taint that the run does not tolerate: "
            f"{taint['key']}={taint.get('value', '')}:{taint['effect']}",
            f'Add {{"key": "{taint["key"]}", "operator": "Exists", "effect": "{taint["effect"]}"}} to '
            "resources.tolerations.",
        )
    ready = [one for one in tolerated if _ready(one.item)]
    if not ready:
        return failed(
            "node", "every fitting node is cordoned or not ready", "Uncordon one, or wait until one is ready."
        )
    drivers = [_driver(one) for one in ready]
    if needs.count and needs.accelerator.startswith("nvidia.com/") and all(0 < one < DRIVER for one in drivers):
        return failed(
            "node",
            f"the NVIDIA driver of {ready[0].name} is {drivers[0]}, and torch {TORCH} of the trainer's image is built "
            f"for CUDA {CUDA}, which needs {DRIVER} or newer",
            "Update the driver of the nodes, or build the image with a torch for an older CUDA.",
        )
    return None


def _told(fitting: Sequence[_Node], every: int, needs: Needs, unseen: str) -> Finding:
    """Return what is to be said where some node takes the pod."""
    asked = _asked(needs)
    good = [one for one in fitting if (_too_small([one], needs) or _refused([one], needs)) is None]
    what = f"{needs.count} x {needs.accelerator}" if needs.count else "a CPU"
    told = f"{len(good)} of {every} nodes can take a training pod with {what}"
    if unseen:
        return unknown("node", f"{told} by their size; what other namespaces' pods take of them cannot be seen")
    if not any(one.takes(asked, one.services, one.work) for one in good):
        held = _text(_part(good[0].work, asked))
        return ok("node", f"{told}, when others are done: work that ends takes {held} of {good[0].name} now")
    return ok("node", told)


def quota(cluster: Namespace, needs: Needs) -> Finding:
    """Does every quota have room for one training pod, and no limit range forbid its size?"""
    from kubernetes.utils.quantity import parse_quantity

    check = "quota"
    try:
        quotas, _ = cluster.list(_QUOTAS, {})
        ranges, _ = cluster.list(_RANGES, {})
    except Refused as refused:
        return unknown(check, f"the quota cannot be looked at ({refused.message})")
    asked = {"pods": "1", "count/pods": "1", "cpu": needs.cpu, "memory": needs.memory}
    for kind in ("requests", "limits"):
        asked |= {f"{kind}.cpu": needs.cpu, f"{kind}.memory": needs.memory}
        if needs.count:
            asked[f"{kind}.{needs.accelerator}"] = str(needs.count)
    for item in quotas:
        if (item.get("spec") or {}).get("scopeSelector") and not needs.train_job:
            continue  # of a priority class, which only the nodes of a TrainJob have
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
    for item, limit in _limits(ranges):
        most = limit.get("max") or {}
        for name in own.keys() & most.keys():
            if limit.get("type") in ("Container", "Pod") and parse_quantity(own[name]) > parse_quantity(most[name]):
                return failed(
                    check,
                    f"limit range {item['metadata']['name']} allows a {limit['type'].lower()} {most[name]} {name}, "
                    f"and the run asks for {own[name]}",
                    f"Lower resources.{name}, or have the limit raised.",
                )
    return ok(check, "what is left of it is enough for a training pod" if quotas else "there is none")


def disk(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Is the ephemeral storage that a task's pod gets by default enough for what it writes?"""
    from kubernetes.utils.quantity import parse_quantity

    if not needs.disks:
        return []
    check = "disk"
    try:
        ranges, _ = cluster.list(_RANGES, {})
    except Refused as refused:
        return [unknown(check, f"the limit ranges cannot be looked at ({refused.message})")]
    task = max(needs.disks, key=lambda name: parse_quantity(needs.disks[name]))
    for item, limit in _limits(ranges):
        given = (limit.get("default") or {}).get("ephemeral-storage")
        if limit.get("type") == "Container" and given and parse_quantity(given) < parse_quantity(needs.disks[task]):
            short = [name for name, size in needs.disks.items() if parse_quantity(given) < parse_quantity(size)]
            return [
                failed(
                    check,
                    f"limit range {item['metadata']['name']} of {needs.namespace} gives a container {given} of "
                    f"ephemeral storage, and {', '.join(short)} need up to {needs.disks[task]}: beyond it a pod is "
                    "evicted",
                    f"Raise default.ephemeral-storage of the limit range to {needs.disks[task]} "
                    "(manifests/base/namespace/limits.yaml).",
                )
            ]
    return [ok(check, f"no limit range is below the {needs.disks[task]} that {task} may write")]


def _pods(cluster: Namespace) -> tuple[list[Object], str]:
    """Return the pods that live, of everybody or else of the own namespace, and why not everybody's."""
    try:
        return cluster.list(_EVERYBODYS, _ALIVE)[0], ""
    except Refused as refused:
        unseen = refused.message
    try:
        return cluster.list(PODS, _ALIVE)[0], unseen
    except Refused:
        return [], unseen


def _node(item: Object, seen: Iterable[Object]) -> _Node:
    from kubernetes.utils.quantity import parse_quantity

    room = (item.get("status") or {}).get("allocatable") or {}
    taken: dict[bool, dict[str, Decimal]] = {True: {}, False: {}}
    for pod in seen:
        if pod["spec"].get("nodeName") == item["metadata"]["name"]:
            table = taken[pods.stays(pod)]
            for name, amount in pods.requested(pod).items():
                table[name] = table.get(name, Decimal()) + amount
    return _Node(item, {name: parse_quantity(amount) for name, amount in room.items()}, taken[True], taken[False])


def _asked(needs: Needs) -> dict[str, Decimal]:
    from kubernetes.utils.quantity import parse_quantity

    asked = {"cpu": parse_quantity(needs.cpu), "memory": parse_quantity(needs.memory)}
    return asked | ({needs.accelerator: Decimal(needs.count)} if needs.count else {})


def _part(amounts: Mapping[str, Decimal], asked: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {name: amounts.get(name, Decimal()) for name in asked}


def _text(amounts: Mapping[str, Decimal]) -> str:
    """Return amounts for a person, e.g. "1.4 cores, 7.6 GiB of memory and 1 nvidia.com/gpu"."""
    words = {"cpu": (1, "cores"), "memory": (2**30, "GiB of memory")}
    parts = []
    for name, amount in amounts.items():
        unit, word = words.get(name, (1, name))
        parts.append(f"{float(round(amount / unit, 2)):g} {word}")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _labels(needs: Needs) -> Iterable[tuple[str, str]]:
    return needs.node_selector.items()


def _driver(one: _Node) -> int:
    """Return the major version of a node's NVIDIA driver; 0 where no label tells it."""
    text = next((one.labels[label] for label in _DRIVERS if label in one.labels), "")
    return int(text) if text.isdecimal() else 0


def _limits(ranges: Iterable[Object]) -> Iterable[tuple[Object, Object]]:
    for item in ranges:
        for limit in (item.get("spec") or {}).get("limits") or []:
            yield item, limit


def _none_has(cluster: Namespace, needs: Needs, nodes: Sequence[_Node]) -> Finding:
    wanted = ", ".join(f"{key}={value}" for key, value in needs.node_selector.items())
    wanted = " and ".join(filter(None, [f"{needs.count} x {needs.accelerator}" if needs.count else "", wanted]))
    there = sorted(
        {
            f"{one.labels[label]} ({one.size.get(needs.accelerator, 0)} a node)"
            for one in nodes
            for label in _KINDS
            if label in one.labels
        }
    )
    have = f"its accelerators: {', '.join(there)}" if there else f"none of its {len(nodes)} nodes shows an accelerator"
    told = f"no node has {wanted or 'room'}; {have}"
    grows = _grows(cluster)
    if grows is None:
        return failed(
            "node",
            told,
            "Choose hardware that is there (resources.hardware, or resources.node_selector and "
            "resources.accelerator_count of your own), or add a node pool.",
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
